"""A donor's hidden states injected into the running target: the recipe, and the parts that gates are trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks, layer_index
from stages.anatomy.loading import load, load_tokenizer
from stages.errors import BadInput
from stages.graft.blade import Injection
from stages.reading import Reading, reading
from stages.settings import Settings


class Training(Settings):
    """How the gate and the bridge learn: cross-entropy on answers, and divergence from the target on text."""

    steps: int = pydantic.Field(gt=0)
    prompts: int = pydantic.Field(gt=0)
    """Training prompts whose states are kept."""
    batch: int = pydantic.Field(gt=0)
    """Prompts a step."""
    texts: int = pydantic.Field(gt=0)
    """Texts a step, drawn as often as they are long."""
    positions: int = pydantic.Field(gt=0)
    """Tokens of them a step at which the divergence is taken."""
    hardest: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Share of these positions that the injection moves most; the others are drawn. It teaches a gate that opens at few
    places to stay shut; a bridge that drifts everywhere a little needs drawn ones."""
    learning_rate: float = pydantic.Field(gt=0)
    divergence: float = pydantic.Field(ge=0)
    """Weight of KL(target ‖ graft) on text, in nats a token, beside the cross-entropy in nats a token."""
    seed: int = 0


class BladeRecipe(Settings):
    """A variant's section under `inject`."""

    donor: str
    """The donor's name."""
    control_for: str | None = None
    """The variant that this one is a control for: made to fail."""
    layer: str | int | float
    """The target's block whose output is changed: an index, `n-4`, or a depth such as 0.875."""
    donor_layer: str | int | float
    """The donor's block whose output is taken; blocks after it are cut off."""
    gate: Literal["identity", "closed", "scalar", "sigmoid", "linear", "softmax", "token", "channel"]
    bridge: Literal["identity", "linear", "residual"] = "identity"
    mix: Literal["delta", "add"] = "delta"
    alpha: float = 1.0
    training: Training | None = None
    """None where there is nothing to learn: an identity or closed gate, and no bridge."""

    @pydantic.model_validator(mode="after")
    def _learns(self):
        learned = self.gate not in ("identity", "closed") or self.bridge != "identity"
        if learned and self.training is None:
            raise ValueError(f"a {self.gate} gate over a {self.bridge} bridge has to learn; add a training section")
        if not learned and self.training is not None:
            raise ValueError(
                f"an {self.gate} gate over an identity bridge has nothing to learn; drop the training section"
            )
        return self


@dataclass(frozen=True)
class Parts:
    """What a blade is made of, before it is one model."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int
    reading: Reading
    injection: Injection
    spec: dict[str, Any]
    """What the graft's configuration says of the injection."""


def parts(recipe: BladeRecipe, target: Path, donor: Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Loads target and donor in `dtype`, cuts the donor, and makes a fresh injection in float32.

    Raises BadInput when a layer does not exist, or the widths differ and no bridge is named.
    """
    receiving, giving = load(target, dtype), load(donor, dtype)
    layer = layer_index(recipe.layer, len(blocks(receiving)))
    donor_layer = layer_index(recipe.donor_layer, len(blocks(giving)))
    widths = giving.config.hidden_size, receiving.config.hidden_size
    if recipe.bridge != "linear" and widths[0] != widths[1]:
        raise BadInput(
            f"Donor {recipe.donor!r} has width {widths[0]} and the target {widths[1]}; expected equal widths "
            "or a bridge: set bridge: linear."
        )
    tokenizer = load_tokenizer(target)
    spec = {
        "gate": recipe.gate,
        "bridge": recipe.bridge,
        "mix": recipe.mix,
        "alpha": recipe.alpha,
        "donor_width": widths[0],
        "target_width": widths[1],
        "layer": layer,
    }
    with torch.device(receiving.device):
        torch.manual_seed(recipe.training.seed if recipe.training else 0)
        injection = Injection(**spec)
    read = reading(giving, load_tokenizer(donor), receiving, tokenizer, [donor_layer])
    return Parts(receiving, tokenizer, layer, read, injection, {"kind": "injection", **spec})
