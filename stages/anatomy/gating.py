"""How far the gates of a loaded graft open while it runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Seen = dict[int, torch.Tensor]
"""What the last pass showed of the gates: by the part's number, [batch, tokens, its gates], or [1, 1, its gates] where
they do not depend on the text; a closed gate is not asked."""
Openings = Callable[[], torch.Tensor]
"""The amounts of the last pass [batch, tokens, parts], or of any pass [1, 1, parts] where they do not depend on it."""


def gated(model: PreTrainedModel) -> dict[int, Any]:
    """The parts of a graft that have a gate, by number; none in a model that is no graft, or one of weights alone."""
    specs = getattr(model.config, "parts", None) or []
    return {n: model.get_submodule(f"parts.{n}") for n, spec in enumerate(specs) if spec["kind"] in _LISTENERS}


@contextlib.contextmanager
def listening(model: PreTrainedModel) -> Iterator[Seen]:
    """Inside the block, what each gate lets through: a channel gate's mean over channels; of a gate that shares a
    budget, and of a fusion, one amount for each blade or member. 0 where a donor was not heard."""
    seen: Seen = {}
    with contextlib.ExitStack() as stack:
        for number, part in gated(model).items():
            stack.enter_context(_LISTENERS[model.config.parts[number]["kind"]](part, number, seen))
        yield seen


@contextlib.contextmanager
def opening(model: PreTrainedModel) -> Iterator[Openings]:
    """Inside the block, what each part with a gate lets through, summed over its blades or members."""
    with listening(model) as seen:

        def last() -> torch.Tensor:
            amounts = [seen.get(number, torch.zeros(1, 1, 1)).sum(-1) for number in gated(model)]
            seen.clear()
            return torch.stack(torch.broadcast_tensors(*amounts), dim=-1)

        yield last


@contextlib.contextmanager
def _of_gate(part: nn.Module, number: int, seen: Seen) -> Iterator[None]:
    """Hears a module `gate`, and, where the part is told which tokens its donor has read, only there."""

    def asked(_, args, out: torch.Tensor) -> None:
        amount = out.mean(-1, keepdim=True)
        seen[number] = amount if amount.dim() == 3 else amount[None, None]

    def done(_, args, out) -> None:
        known = args[2] if len(args) > 2 else None  # an implant's third is a state
        if isinstance(known, torch.Tensor) and known.dtype == torch.bool:
            seen[number] = seen[number] * known[..., None]

    handles = [part.get_submodule("gate").register_forward_hook(asked), part.register_forward_hook(done)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _of_budget(part: nn.Module, number: int, seen: Seen) -> Iterator[None]:
    """Hears a gate with an amount for each blade, which itself gives nothing to a donor that is not heard."""
    handle = part.get_submodule("gate").register_forward_hook(lambda _, args, out: seen.__setitem__(number, out))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _of_shares(part: nn.Module, number: int, seen: Seen) -> Iterator[None]:
    """Hears a fusion's shares, which are no module; a member whose change is 0 has none."""
    shares: Callable[..., torch.Tensor] = part.shares  # type: ignore[assignment]

    def heard(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found = shares(h, x)
        seen[number] = found[..., 1:] * x.any(-1)
        return found

    part.shares = heard  # type: ignore[assignment]
    try:
        yield
    finally:
        del part.shares


_LISTENERS: dict[str, Callable[..., Any]] = {
    "fusion": _of_shares,
    "implant": _of_gate,
    "injection": _of_gate,
    "shared": _of_budget,
    "stored": _of_gate,
}
"""How the parts that have a gate are listened to, by kind."""
