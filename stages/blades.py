"""Injections trained on kept states: only the blocks after the first of them run."""

import functools
from collections.abc import Sequence

import torch

from stages.anatomy.encoding import pad
from stages.anatomy.head import logits_at
from stages.anatomy.restart import resumed
from stages.kept import KeptCall, Sequences, read_once
from stages.recipes.blade import Parts, Training, changing
from stages.training import Kept, Learning, chosen, places, stacked


def first(parts: Parts) -> int:
    """The first of the target's blocks that parts change."""
    return min(part.layer for part in changing(parts.parts))


def keep(parts: Parts, sequences: Sequences, predictions: bool) -> list[Kept]:
    """What injections learn from, and a condition where there is one."""
    early = next((spec["layer"] for spec in parts.specs if spec["kind"] == "condition"), None)
    return read_once(parts.target, parts.readings, sequences, predictions, first(parts), early)


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
    row, column = places(kept, h.device)
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


def learning(parts: Parts) -> Learning:
    """The injections as what learns."""
    return Learning(torch.nn.ModuleList(changing(parts.parts)), functools.partial(logits, parts))
