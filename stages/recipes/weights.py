"""The donor's weights copied into the target without training: which blocks, and how far."""

import random
from typing import Literal

import pandas as pd
import pydantic
import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.errors import BadInput
from stages.settings import Settings


class WeightsRecipe(Settings):
    """A variant's section under `transplant`."""

    donor: str
    """The donor's name; it has the target's architecture."""
    control_for: str | None = None
    """The variant that this one is a control for."""
    select: Literal["evidence", "random"]
    """By the trace, or blindly: the control that any selection has to beat."""
    blocks: int = pydantic.Field(gt=0)
    """How many blocks are taken over."""
    strength: float = pydantic.Field(gt=0, le=1)
    """λ in target + λ · (donor − target), the same for every weight of these blocks."""
    seed: int = 0
    """Of the random selection."""


def chosen(recipe: WeightsRecipe, count: int, trace: pd.DataFrame) -> list[int]:
    """The blocks to take over, in order, of `count`.

    By evidence: those that the donor can spare least for the harm that they do, that is by the capability that the
    donor loses without the block over the divergence that the block alone brings to the target. The order of gain alone
    loses to chance, since the blocks that help most also harm most.
    Raises BadInput when more are asked for than there are, or the trace is of another model.
    """
    if recipe.blocks > count:
        raise BadInput(f"Expected at most {count} blocks to transplant, which is all, got {recipe.blocks}; lower it.")
    if recipe.select == "random":
        return sorted(random.Random(f"blocks {recipe.seed}").sample(range(count), recipe.blocks))
    gain = -trace[trace.intervention == "weights_out"].set_index("layer")["capability"]
    harm = trace[trace.intervention == "weights_in"].set_index("layer")["retention"]
    if sorted(gain.index) != list(range(count)) or sorted(harm.index) != list(range(count)):
        raise BadInput(f"Expected a trace of {count} blocks, got {len(gain)}; trace this donor first.")
    worth = (gain / harm.clip(lower=1e-6)).sort_values(ascending=False, kind="stable")
    return sorted(int(layer) for layer in worth.index[: recipe.blocks])


@torch.no_grad()
def transplant(target: PreTrainedModel, donor: PreTrainedModel, layers: list[int], strength: float) -> None:
    """Moves these blocks of the target towards the donor's, in place: W ← W + λ (W_donor − W).

    Raises BadInput when a block's weights differ in name or shape.
    """
    receiving, giving = blocks(target), blocks(donor)
    for layer in layers:
        ours = dict(receiving[layer].named_parameters())
        theirs = dict(giving[layer].named_parameters()) if layer < len(giving) else {}
        if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
            raise BadInput(
                f"Expected block {layer} of the donor to have the target's weights, got others; weights can only be "
                "copied between models of one architecture and width: use a blade with a bridge instead."
            )
        for name, weight in ours.items():
            weight.lerp_(theirs[name].to(weight), strength)
