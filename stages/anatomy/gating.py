"""How far the gates of a loaded graft open while it runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

Openings = Callable[[], torch.Tensor]
"""The amounts of the last pass [batch, tokens, gates], or of any pass [1, 1, gates] where they do not depend on it."""


def gated(model: PreTrainedModel) -> list[Any]:
    """The parts of a graft that have a gate; none in a model that is no graft, or one of weights alone."""
    return [part for part in getattr(model, "parts", ()) if isinstance(getattr(part, "gate", None), torch.nn.Module)]


@contextlib.contextmanager
def opening(model: PreTrainedModel) -> Iterator[Openings]:
    """Inside the block, what each gate lets through: a channel gate's mean over channels, the sum of a gate that shares
    a budget among blades.

    0 where a closed gate was not asked, and where a donor was not heard.
    """
    parts, asked, seen = gated(model), {}, {}

    def decide(place: int, gate: torch.nn.Module, out: torch.Tensor) -> None:
        asked[place] = out.mean(-1) if hasattr(gate, "kind") else out.sum(-1)

    def heard(place: int, given: tuple[Any, ...]) -> None:
        amount, known = asked.pop(place), given[2] if len(given) > 2 else None
        seen[place] = amount * known if isinstance(known, torch.Tensor) and known.dtype == torch.bool else amount

    def last() -> torch.Tensor:
        amounts = [seen.get(place, torch.zeros(())) for place in range(len(parts))]
        seen.clear()
        whole = torch.broadcast_tensors(*(each if each.dim() == 2 else each[None, None] for each in amounts))
        return torch.stack(whole, dim=-1)

    with contextlib.ExitStack() as stack:
        for place, part in enumerate(parts):
            handles = (
                part.gate.register_forward_hook(lambda m, given, out, place=place: decide(place, m, out)),
                part.register_forward_hook(lambda m, given, out, place=place: heard(place, given)),
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield last
