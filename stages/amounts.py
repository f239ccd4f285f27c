"""How much each gate of a graft lets through, token by token, on any text."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.errors import BadInput


@dataclass(frozen=True)
class Amounts:
    """What the gates of a graft do at every token of a text."""

    parts: tuple[str, ...]
    """What has a gate, by its place in the target; empty for a graft of weights alone, which has none."""
    tokens: tuple[str, ...]
    """The text, cut into what each token spells; a special token that spells nothing stands with its name."""
    ends: tuple[int, ...]
    """Where each token ends in the text, in characters."""
    open: torch.Tensor
    """[tokens, parts], 0 where nothing is let through"""


Asked = dict[int, torch.Tensor]
"""What was seen of the gates in a pass: by the part's index, amounts that broadcast over [tokens, its gates]."""


@torch.inference_mode()
def amounts(graft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Amounts:
    """The gates of `graft`, read in one pass over `text`; the model stays as it is.

    The amount of a gate over channels is its mean over them; a gate that shares a budget, and a fusion's shares, count
    once for each blade or member. Nothing is let through where the donor is not heard, whatever its gate says. α is
    not part of it. Debates and biased routers have no gate. Raises BadInput for a text without tokens, and for one
    longer than the model reads.
    """
    ids, tokens, ends = spelled(tokenizer, text)
    longest = getattr(graft.config.get_text_config(), "max_position_embeddings", None)
    if not ids or len(ids) > (longest or len(ids)):
        raise BadInput(f"Expected a text of 1 to {longest or 'any number of'} tokens, got {len(ids)}; give another.")
    specs = getattr(graft.config, "parts", None) or []
    seen: Asked = {}
    with ExitStack() as stack:
        for number, spec in enumerate(specs):
            if spec["kind"] in _LISTENERS:
                part = graft.get_submodule(f"parts.{number}")
                stack.enter_context(_LISTENERS[spec["kind"]](part, number, seen))
        graft(input_ids=torch.tensor([ids], device=graft.device), use_cache=False)
    names, columns = [], []
    for number, spec in enumerate(specs):
        if spec["kind"] in _LISTENERS:
            gates = _gates(spec)
            names += [f"layers.{spec.get('layer', 0)} {name}" for name in gates]
            found = seen.get(number, torch.zeros(1, 1))  # a closed gate is not asked
            columns.append(found.float().cpu().expand(len(ids), len(gates)))
    told = torch.cat(columns, dim=1) if columns else torch.zeros(len(ids), 0)
    return Amounts(tuple(_distinct(names)), tuple(tokens), tuple(ends), told)


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[str], list[int]]:
    """Token ids of `text`, the stretch of it that each spells, and its end; the stretches make up the text.

    Of tokens that spell one character together, the first has it.
    """
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, reached, tokens, ends = encoded["input_ids"], 0, [], []
    for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        if start == end and token in tokenizer.all_special_ids:
            tokens.append(str(tokenizer.convert_ids_to_tokens(token)))
        else:
            tokens.append(text[reached:end])
        reached = max(reached, end)
        ends.append(reached)
    if tokens and reached < len(text):
        tokens[-1], ends[-1] = tokens[-1] + text[reached:], len(text)
    return ids, tokens, ends


def _gates(spec: Mapping[str, Any]) -> list[str]:
    """What a part's gates are called: one, or one for each blade or member."""
    several = spec.get("sources") or spec.get("members")
    return [f"{spec['kind']} {i}" for i in range(1, len(several) + 1)] if several else [spec["kind"]]


def _distinct(names: list[str]) -> Iterator[str]:
    """The names, with a number after those that occur again."""
    counts = {name: itertools.count(2) for name in names}
    known: set[str] = set()
    for name in names:
        yield f"{name} ({next(counts[name])})" if name in known else name
        known.add(name)


@contextmanager
def _of_gate(part: nn.Module, number: int, seen: Asked) -> Iterator[None]:
    """Hears a module `gate`, and, where the part is told which tokens its donor has read, only there."""

    def asked(_, args, out: torch.Tensor) -> None:
        seen[number] = out.mean(-1, keepdim=True).reshape(-1, 1)

    def done(_, args, out) -> None:
        known = args[2] if len(args) > 2 else None  # an implant's third is a state
        if isinstance(known, torch.Tensor) and known.dtype == torch.bool:
            seen[number] = seen[number] * known.reshape(-1, 1)

    handles = [part.get_submodule("gate").register_forward_hook(asked), part.register_forward_hook(done)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _of_budget(part: nn.Module, number: int, seen: Asked) -> Iterator[None]:
    """Hears a gate with an amount for each blade, which itself gives nothing to a donor that is not heard."""

    def asked(_, args, out: torch.Tensor) -> None:
        seen[number] = out.flatten(0, -2)

    handle = part.get_submodule("gate").register_forward_hook(asked)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _of_shares(part: nn.Module, number: int, seen: Asked) -> Iterator[None]:
    """Hears a fusion's shares, which are no module; a member whose change is 0 has none."""
    shares: Callable[..., torch.Tensor] = part.shares  # type: ignore[assignment]

    def heard(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        found = shares(h, x)
        seen[number] = (found[..., 1:] * x.any(-1)).flatten(0, -2)
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
"""How the parts that have a gate are listened to, by kind; they run in order, so the last one heard is the part's."""
