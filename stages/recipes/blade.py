"""A donor's hidden states injected into the running target: the recipe, and the parts that gates are trained on."""

from collections.abc import Iterable, Mapping
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
from stages.graft.condition import Condition
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


class Conditional(Settings):
    """The donor runs only where a probe of the target's early states says that the gate will open."""

    layer: str | int | float = 8
    """The target's block whose output is read."""
    opens: float = pydantic.Field(default=0.9, gt=0, lt=1)
    """The amount from which a gate counts as open. A high one gives the probe more tokens to tell by, at the cost of
    what the gate lets through before it is wide open."""
    recall: float = pydantic.Field(default=0.995, gt=0, le=1)
    """Share of the calibration prompts in which the gate opens that are to be let through before it does."""


Layer = str | int | float


def several(layer: Layer | tuple[Layer, ...]) -> tuple[Layer, ...]:
    """A layer, or layers, as a tuple."""
    return layer if isinstance(layer, tuple) else (layer,)


class BladeRecipe(Settings):
    """A variant's section under `inject` or `blades`."""

    donor: str
    """The donor's name."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for: made to fail."""
    prompts: str = "capability"
    """The folder of data/prompts that it learns on; to be named under `blades`, where domains differ."""
    layer: Layer | tuple[Layer, ...]
    """The target's block whose output is changed: an index, `n-4`, or a depth such as 0.875; or several, each with a
    gate and a bridge of its own."""
    donor_layer: Layer | tuple[Layer, ...]
    """The donor's block whose output is taken, or one for each `layer`; blocks after the last are cut off."""
    gate: Literal["identity", "closed", "scalar", "sigmoid", "linear", "softmax", "token", "channel"]
    bridge: Literal["identity", "linear", "residual", "mixture"] = "identity"
    bridges: int = pydantic.Field(default=1, ge=1)
    """How many a mixture has; 1 for every other kind."""
    start: Literal["drawn", "fitted"] = "drawn"
    """Whether a linear bridge, or a mixture, begins with random maps or with those that bring the donor's states
    closest to the target's, in closed form."""
    mix: Literal["delta", "add"] = "delta"
    alpha: float | Literal["learned"] = 1.0
    """A learned one starts at 1 and stays between 0 and 2."""
    condition: Conditional | None = None
    """None for a donor that always runs."""
    training: Training | None = None
    """None where there is nothing to learn: an identity or closed gate, a fixed alpha, and no bridge."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _decided(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "strategy" in given:
            raise ValueError("a variant that follows the plan stands under `auto`; move it there")
        return given

    @pydantic.model_validator(mode="after")
    def _learns(self):
        if len(several(self.layer)) != len(several(self.donor_layer)):
            raise ValueError(
                f"expected as many donor layers as layers, got {len(several(self.donor_layer))} and "
                f"{len(several(self.layer))}; pair each layer with one of the donor's"
            )
        if self.condition is not None and self.gate not in ("token", "channel"):
            raise ValueError(f"a {self.gate} gate is as open at every token; drop the condition or set gate: token")
        learned = self.gate not in ("identity", "closed") or self.bridge != "identity" or self.alpha == "learned"
        if learned and self.training is None:
            raise ValueError(f"a {self.gate} gate over a {self.bridge} bridge has to learn; add a training section")
        if not learned and self.training is not None:
            raise ValueError(
                f"an {self.gate} gate over an identity bridge has nothing to learn; drop the training section"
            )
        if (self.bridge == "mixture") != (self.bridges > 1):
            raise ValueError(f"a mixture has two bridges or more and others have one, got {self.bridges} of kind "
                             f"{self.bridge}; set bridge: mixture with bridges: 4, say")  # fmt: skip
        if self.start == "fitted" and self.bridge not in ("linear", "mixture"):
            raise ValueError(f"only maps can start fitted, got bridge {self.bridge}; set bridge: linear or mixture")
        return self


@dataclass(frozen=True)
class Parts:
    """What a graft is made of, before it is one model."""

    target: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    readings: tuple[Reading, ...]
    """The donors, in the order in which the parts count them."""
    parts: torch.nn.ModuleList
    """In float32."""
    specs: tuple[dict[str, Any], ...]
    """What the graft's configuration says of each part: `kind`, and what its class takes."""


def parts(recipe: BladeRecipe, target: Path, donor: Path, dtype: torch.dtype = torch.float32) -> Parts:
    """Loads target and donor in `dtype`, cuts the donor, and makes fresh injections in float32.

    Raises BadInput when a layer does not exist, or the widths differ and no bridge is named.
    """
    receiving, giving = load(target, dtype), load(donor, dtype)
    tokenizer = load_tokenizer(target)
    specs, taken = specified(recipe, receiving, giving)
    read = reading(giving, load_tokenizer(donor), receiving, tokenizer, taken)
    torch.manual_seed(recipe.training.seed if recipe.training else 0)
    with torch.device(receiving.device):
        made = torch.nn.ModuleList(built(spec) for spec in specs)
    return Parts(receiving, tokenizer, (read,), made, tuple(specs))


def specified(
    recipe: BladeRecipe, receiving: PreTrainedModel, giving: PreTrainedModel
) -> tuple[list[dict[str, Any]], list[int]]:
    """What a graft's configuration says of each part, and the donor's blocks whose states they take.

    Injections come first, a condition last.
    """
    depths = len(blocks(receiving)), len(blocks(giving))
    layers = [layer_index(layer, depths[0]) for layer in several(recipe.layer)]
    taken = [layer_index(layer, depths[1]) for layer in several(recipe.donor_layer)]
    widths = giving.config.hidden_size, receiving.config.hidden_size
    check_widths(recipe.donor, widths, recipe.bridge)
    if len(set(layers)) != len(layers):
        raise BadInput(f"Expected layers that differ, got {layers} of the target's {depths[0]}; name each once.")
    shape = {"gate": recipe.gate, "bridge": recipe.bridge, "mix": recipe.mix, "alpha": recipe.alpha}
    shape["bridges"] = recipe.bridges
    width = {"donor_width": widths[0], "target_width": widths[1]}
    specs: list[dict[str, Any]] = [
        {"kind": "injection", **shape, **width, "layer": layer, "donor": 0, "taken": place}
        for place, layer in enumerate(layers)
    ]
    if recipe.condition is not None:
        early = layer_index(recipe.condition.layer, depths[0])
        if early >= min(layers):
            raise BadInput(
                f"Expected a condition before the injection at layer {min(layers)}, got one at layer {early}; "
                "set condition.layer to an earlier one."
            )
        specs.append({"kind": "condition", "donor": 0, "layer": early, "width": widths[1]})
    return specs, taken


def check_widths(donor: str, widths: tuple[int, int], bridge: str) -> None:
    """Raises BadInput where a donor of the first width meets a target of the second without a bridge between."""
    if bridge not in ("linear", "mixture") and widths[0] != widths[1]:
        raise BadInput(
            f"Donor {donor!r} has width {widths[0]} and the target {widths[1]}; expected equal widths or a bridge: "
            "set bridge: linear."
        )


def built(spec: dict[str, Any]) -> Injection | Condition:
    """A fresh part as `specified` describes it."""
    given = {key: value for key, value in spec.items() if key != "kind"}
    return Condition(**given) if spec["kind"] == "condition" else Injection(**given)


def changing(parts: Iterable[torch.nn.Module]) -> list[Any]:
    """The parts that change what the target computes: all but conditions."""
    return [part for part in parts if not isinstance(part, Condition)]
