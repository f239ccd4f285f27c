"""Embedding tables, and a bridge from a donor's to a target's fitted on the tokens that both spell alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.anatomy.correspondence import Correspondence
from stages.errors import BadInput
from stages.maths.affine import Affine
from stages.maths.agreement import Agreement, agreement
from stages.maths.moments import moments
from stages.maths.procrustes import orthogonal
from stages.maths.regression import ridge

LEAST = 16
"""Exactly matched tokens below which no bridge is fitted."""


@dataclass(frozen=True)
class Fitted:
    """A bridge from the donor's embeddings to the target's."""

    bridge: Affine
    rows: tuple[int, int]
    """Tokens fitted on, and held out."""
    agreement: Agreement
    """On those held out."""


def fit(ours: torch.Tensor, theirs: torch.Tensor, kind: str, penalty: float, held_out: float, seed: int) -> Fitted:
    """The bridge from rows [tokens, donor width] to rows [tokens, target width] of the same tokens.

    `kind` is identity, orthogonal, similarity or ridge of this `penalty`; a share `held_out` of the tokens is judged.
    Raises BadInput for an identity between unequal widths, and for too few tokens to fit and judge.
    """
    widths = theirs.shape[1], ours.shape[1]
    if kind == "identity" and widths[0] != widths[1]:
        raise BadInput(
            f"Expected embeddings of equal width for bridge: identity, got {widths[0]} and {widths[1]}; set bridge: "
            "orthogonal."
        )
    if len(ours) < LEAST:
        raise BadInput(
            f"Expected at least {LEAST} tokens that both tokenizers spell exactly alike, got {len(ours)}; these "
            "tokenizers cannot be aligned: inject a blade, which reads the text itself, instead."
        )
    order = torch.randperm(len(ours), generator=torch.Generator().manual_seed(seed))
    held = order[: max(1, round(held_out * len(ours)))]
    known = order[len(held) :]
    gathered = moments([(theirs[known], ours[known])])
    if kind == "identity":
        bridge = Affine(torch.eye(widths[0]), torch.zeros(widths[0]))
    elif kind == "ridge":
        bridge = ridge(gathered, penalty)
    else:
        bridge = orthogonal(gathered, *[kind == "similarity"] * 2)
    bridge = bridge.to(torch.float32)
    return Fitted(bridge, (len(known), len(held)), agreement({"": bridge}, [(theirs[held], ours[held])])[""])


def spelled(found: Correspondence, table: torch.Tensor) -> torch.Tensor:
    """[tokens, donor width], the mean of the donor's vectors for each of the target's tokens; zero where missing."""
    counts = found.starts.diff().long()
    index = torch.repeat_interleave(torch.arange(len(counts)), counts)
    sums = torch.zeros(len(counts), table.shape[1]).index_add_(0, index, table[found.ids.long()])
    return sums / counts.clamp(min=1)[:, None]


def tables_of(model: PreTrainedModel, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
    """The embedding tables [rows, width], those that are tied once."""
    made = {"input": model.get_input_embeddings().get_parameter("weight")}
    head = model.get_output_embeddings()
    if head is not None and head.get_parameter("weight") is not made["input"]:
        made["output"] = head.get_parameter("weight")
        return {name: made[name].data for name in wanted}
    return {"input": made["input"].data}
