"""A donor's module between two bridges inside the target: the recipe, and the part that is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks, layer_index, path_of
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from stages.graft.implant import Implant
from stages.organ import cut_out
from stages.recipes.blade import Training, check_widths
from stages.settings import Settings


class Implanting(Settings):
    """Which module of a donor, and the bridges on both sides of it."""

    donor: str
    """The donor's name."""
    donor_layer: str | int | float
    """The donor's block that the module is taken from."""
    part: str = pydantic.Field(default="block", pattern=r"^(block|self_attn|mlp|mlp\.experts\.\d+)$")
    """The whole block, its attention, its MLP, or one expert of it."""
    bridge: Literal["identity", "linear", "residual"] = "identity"
    """Of both bridges, to the donor's width and back."""
    mix: Literal["delta", "add"] = "add"
    """Whether the module's result comes in place of what the target's own gives, or is added to it."""


class ImplantRecipe(Implanting):
    """A variant's section under `implant`."""

    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for: made to fail."""
    layer: str | int | float
    """The target's block: its attention, MLP or block output is changed, whichever is like the donor's part."""
    gate: Literal["identity", "closed", "scalar", "sigmoid", "linear", "softmax", "token", "channel"]
    alpha: float = 1.0
    training: Training | None = None
    """None where there is nothing to learn: an identity or closed gate, and no bridges."""

    @pydantic.model_validator(mode="after")
    def _learns(self):
        learned = self.gate not in ("identity", "closed") or self.bridge != "identity"
        if learned != (self.training is not None):
            raise ValueError(
                "expected a training section where gate or bridges learn, and none where the gate is identity or "
                f"closed and the bridge identity, got gate {self.gate}, bridge {self.bridge} and "
                f"{'a' if self.training else 'no'} training section; add or drop it"
            )
        drawn_only(self.training)
        return self


def drawn_only(training: Training | None) -> None:
    """Raises ValueError when training asks for the positions that a part moves most, known of blades alone."""
    if training is not None and training.hardest:
        raise ValueError("hardest positions are known before a pass of blades alone; set training.hardest: 0")


@dataclass(frozen=True)
class Host:
    """The target that receives."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int


def host(target: Path, layer: str | int | float) -> Host:
    """The target in float32; BadInput when it lacks the layer."""
    model = load(target)
    return Host(model, load_tokenizer(target), layer_index(layer, len(blocks(model))))


def implanted(recipe: Implanting, donor: Path, into: Host) -> dict[str, Any]:
    """What Implanted takes but its name, and under `weights` the donor's, frozen.

    Raises BadInput when the donor lacks the part, or the widths differ and no bridge is named.
    """
    giving = load(donor)
    widths = giving.config.hidden_size, into.model.config.hidden_size
    check_widths(recipe.donor, widths, recipe.bridge)
    cut = cut_out(giving, layer_index(recipe.donor_layer, len(blocks(giving))), recipe.part)
    return {
        "organ": cut.spec,
        "weights": cut.organ,
        "bridge": recipe.bridge,
        "mix": recipe.mix,
        "donor_width": widths[0],
        "target_width": widths[1],
    }


def implant(recipe: ImplantRecipe, donor: Path, into: Host) -> tuple[Implant, dict[str, Any]]:
    """A fresh implant for the target, and what the graft's configuration says of it. Raises BadInput as above."""
    given = implanted(recipe, donor, into)
    organ = given.pop("weights")
    site = "" if recipe.part == "block" else ".mlp" if recipe.part.startswith("mlp") else ".self_attn"
    places = sites_of(into.model)
    if f"layers.{into.layer}{site}" not in places:
        raise BadInput(f"The target's block {into.layer} has no {site[1:]} to join; set part: block.")
    spec = given | {
        "gate": recipe.gate,
        "alpha": recipe.alpha,
        "layer": into.layer,
        "site": path_of(into.model, places[f"layers.{into.layer}{site}"].module),
    }
    torch.manual_seed(recipe.training.seed if recipe.training else 0)
    part = Implant(**spec)
    part.implanted.organ = organ
    return part.to(into.model.device), {"kind": "implant", **spec}
