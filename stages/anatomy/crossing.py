"""Maps between what two models' feed-forward networks read and write on the same texts."""

from collections.abc import Sequence
from typing import Any

import torch

from stages.anatomy.activity import Activity
from stages.maths.affine import Affine
from stages.maths.agreement import agreement
from stages.maths.moments import moments
from stages.maths.offsets import donor_rows
from stages.maths.regression import ridge

_HELD_OUT = 5
"""Every fifth text is for judging bridges."""


def rows_of(encoded: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The donor's row for each of the target's, -1 for none and for first tokens, and which rows are held out."""
    offsets, starts = [], []
    for each in encoded:
        lengths = torch.tensor([len(ids) for ids in each.input_ids])
        offsets.append(torch.tensor([pair for row in each.offset_mapping for pair in row]))
        starts.append(torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]))
    rows = donor_rows(offsets[0], starts[0], offsets[1], starts[1])
    rows[starts[0][:-1]] = -1
    rows[torch.isin(rows, starts[1][:-1])] = -1
    text = torch.repeat_interleave(torch.arange(len(starts[0]) - 1), starts[0].diff())
    return rows, (text % _HELD_OUT == 0)


def bridges(
    ours: Activity, theirs: Activity, rows: torch.Tensor, held: torch.Tensor, strength: float
) -> tuple[Affine, Affine, dict[str, float]]:
    """The map from what the target's network reads to what the donor's does, that from what the donor's writes to what
    the target's does, and how near they come on rows held out."""
    told, maps = {}, []
    for name, source, goal in (
        ("into", ours.entering, theirs.entering),
        ("out", theirs.leaving, ours.leaving),
    ):
        both = []
        for mask in ((rows >= 0) & ~held, (rows >= 0) & held):
            index, other = mask.nonzero()[:, 0], rows[mask]
            picked = (index, other) if name == "into" else (other, index)
            both.append((source[picked[0]].double(), goal[picked[1]].double()))
        fitted = ridge(moments([both[0]]), strength, intercept=False)
        agreed = agreement({"": fitted}, [both[1]])[""]
        told |= {f"{name}_r2": agreed.r2, f"{name}_cosine": agreed.cosine}
        maps.append(fitted.to(source.dtype))
    return maps[0], maps[1], told
