"""Injections trained on kept states: only the blocks after the first of them run."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import batches, encode, pad
from stages.anatomy.head import logits_at
from stages.anatomy.restart import resumed
from stages.items import PROMPT, TEXT, read_items
from stages.kept import KeptCall
from stages.recipes.blade import Parts, Training, changing
from stages.training import Example, Learning, chosen, places, stacked


@dataclass(frozen=True)
class Kept(Example):
    """One text's states, without pads."""

    h: torch.Tensor
    """[tokens, width], leaving the first of the target's blocks that are changed"""
    read: tuple[tuple[torch.Tensor, ...], ...]
    """For each donor and each of its blocks that are taken, [tokens, donor width]"""
    known: tuple[torch.Tensor, ...]
    """For each donor, [tokens], where it has read something"""
    early: torch.Tensor | None
    """[tokens, width], leaving the block that a condition reads; None without one"""


def asked(
    tokenizer: PreTrainedTokenizerBase, path: Path, count: int | None = None
) -> list[tuple[tuple[int, ...], int]]:
    """The first `count` prompts of a file, or all, with their answers: ids, and where the answer starts."""
    rows = [(row["prompt"], row["answer"]) for row in read_items(path, PROMPT, count)]
    return [(e.ids, e.start) for e in encode(tokenizer, rows)]


def told(tokenizer: PreTrainedTokenizerBase, path: Path) -> list[tuple[tuple[int, ...], int]]:
    """The texts of a file: ids, and the second token, which is the first to be predicted."""
    return [(tuple(tokenizer(row["text"]).input_ids), 1) for row in read_items(path, TEXT)]


def first(parts: Parts) -> int:
    """The first of the target's blocks that parts change."""
    return min(part.layer for part in changing(parts.parts))


@torch.inference_mode()
def keep(parts: Parts, sequences: Sequence[tuple[tuple[int, ...], int]], predictions: bool) -> list[Kept]:
    """Runs target and donors once over `sequences` of ids and start."""
    kept: dict[int, Kept] = {}
    early = next((spec["layer"] for spec in parts.specs if spec["kind"] == "condition"), None)
    left: dict[int, torch.Tensor] = {}

    def leave(layer: int):
        return lambda _, args, out: left.__setitem__(layer, out[0] if isinstance(out, tuple) else out)

    layers = [first(parts)] if early is None else [first(parts), early]
    handles = [blocks(parts.target)[layer].register_forward_hook(leave(layer)) for layer in layers]
    try:
        for group in batches([len(ids) for ids, _ in sequences], budget=512):
            ids = pad([sequences[i][0] for i in group], parts.target.device)
            output = (parts.target if predictions else parts.target.base_model)(input_ids=ids, use_cache=False)
            read = [each.donor.states(ids, torch.ones_like(ids), None) for each in parts.readings]
            known = [torch.ones_like(ids, dtype=torch.bool) if where is None else where for _, where in read]
            for row, i in enumerate(group):
                tokens, start = sequences[i]
                n = len(tokens)
                h = [left[layer][row, :n].clone() for layer in layers]
                kept[i] = Kept(
                    tokens,
                    start,
                    output.logits[row, :n].log_softmax(-1).half() if predictions else None,
                    h[0],
                    tuple(tuple(state[row, :n].clone() for state in states) for states, _ in read),
                    tuple(where[row, :n].clone() for where in known),
                    None if early is None else h[1],
                )
    finally:
        for handle in handles:
            handle.remove()
    return [kept[i] for i in range(len(sequences))]


def logits(
    parts: Parts, kept: Sequence[Kept], training: Training | None = None, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The graft's logits [positions, vocabulary] where it predicts the tokens of `kept` that training looks at.

    With `training`, at as many of these positions as it says: its share of the hardest, whose states the parts at the
    first layer move the farthest for their length, and others drawn. Second, which these are, [positions], over all of
    `kept`. Parts at later layers take hold while the blocks after the first one run.
    """
    h, begin = stacked([k.h for k in kept]), first(parts)
    ids = pad([k.ids for k in kept], h.device)
    row, column = places(list(kept), h.device)
    with KeptCall(parts.target, ids, kept) as call:
        changed = h
        for part in changing(parts.parts):
            if part.layer == begin:
                changed = part.change(call, changed)
            else:
                part.attach(call)
        moved = ((changed.detach() - h).norm(dim=-1) / h.norm(dim=-1))[row, column]
        positions = chosen(moved, training, generator)
        with resumed(parts.target, begin, changed):
            return logits_at(parts.target, ids, row[positions], column[positions]), positions


def learning(parts: Parts) -> Learning[Kept]:
    """The injections as what learns."""
    return Learning(torch.nn.ModuleList(changing(parts.parts)), functools.partial(logits, parts))
