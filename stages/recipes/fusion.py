"""Modules and states of several donors fused at one block of the target: the recipe, and the part that is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch

from stages.anatomy.blocks import blocks, layer_index
from stages.anatomy.loading import load, load_tokenizer
from stages.graft.fusion import Fusion
from stages.reading import Reading, reading
from stages.recipes.blade import Training, check_widths
from stages.recipes.implant import Host, Implanting, drawn_only, implanted
from stages.settings import Settings


class Spoken(Settings):
    """A donor that reads along, and whose states are a member."""

    donor: str
    """The donor's name."""
    part: Literal["states"]
    donor_layer: str | int | float
    """The donor's block whose output is taken."""
    bridge: Literal["identity", "linear", "residual"] = "identity"
    mix: Literal["delta", "add"] = "add"
    """Whether the state comes in place of the target's, or is added to it."""


class FusionRecipe(Settings):
    """A variant's section under `fuse`."""

    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for: made to fail."""
    layer: str | int | float
    """The target's block whose output is changed."""
    members: tuple[Spoken | Implanting, ...] = pydantic.Field(min_length=2)
    """A donor's states, `part: states`, or a donor's module, as under `implant`; `mix: add` for all modules."""
    combiner: Literal["softmax", "attention"] = "attention"
    """How the members' shares follow from the states."""
    tasks: tuple[str, ...] = ("capability",)
    """The folders of prompts whose training items are learned from, as many of each."""
    training: Training

    @property
    def donors(self) -> list[str]:
        """Every donor once, in order."""
        return list(dict.fromkeys(member.donor for member in self.members))

    @pydantic.model_validator(mode="after")
    def _fits(self):
        if any(isinstance(member, Implanting) and member.mix == "delta" for member in self.members):
            raise ValueError("several modules cannot each come in place of the target's own; set mix: add for them")
        drawn_only(self.training)
        return self


@dataclass(frozen=True)
class Fused:
    """The part, and what it carries."""

    part: Fusion
    spec: dict[str, Any]
    """What the graft's configuration says of it."""
    readings: list[Reading]


def fused(recipe: FusionRecipe, donors: Mapping[str, Path], into: Host) -> Fused:
    """A fresh fusion for the target.

    Raises BadInput when a donor lacks what is taken from it, or the widths differ and no bridge is named.
    """
    readings, places = _read(recipe, donors, into)
    width, members, organs = into.model.config.hidden_size, [], {}
    for number, member in enumerate(recipe.members):
        if isinstance(member, Spoken):
            donor, taken = places[number]
            given = readings[donor].donor.donor.config.hidden_size
            members.append({"bridge": member.bridge, "mix": member.mix, "donor_width": given,
                            "donor": donor, "taken": taken})  # fmt: skip
        else:
            cut = implanted(member, donors[member.donor], into)
            organs[number] = cut.pop("weights")
            cut.pop("target_width")
            members.append(cut | {"name": f"member {number}"})
    spec = {"layer": into.layer, "combiner": recipe.combiner, "members": members, "target_width": width}
    torch.manual_seed(recipe.training.seed)
    part = Fusion(**spec)
    for number, organ in organs.items():
        part.members[number].organ = organ
    return Fused(part.to(into.model.device), {"kind": "fusion", **spec}, readings)


def _read(
    recipe: FusionRecipe, donors: Mapping[str, Path], into: Host
) -> tuple[list[Reading], dict[int, tuple[int, int]]]:
    """The donors that read along, each once, and for each member that speaks its donor and which state it takes."""
    wanted: dict[str, list[tuple[int, Spoken]]] = {}
    for number, member in enumerate(recipe.members):
        if isinstance(member, Spoken):
            wanted.setdefault(member.donor, []).append((number, member))
    readings, places = [], {}
    for name, speaking in wanted.items():
        giving = load(donors[name])
        widths = giving.config.hidden_size, into.model.config.hidden_size
        for _, member in speaking:
            check_widths(name, widths, member.bridge)
        layers = [layer_index(member.donor_layer, len(blocks(giving))) for _, member in speaking]
        places |= {number: (len(readings), place) for place, (number, _) in enumerate(speaking)}
        readings.append(reading(giving, load_tokenizer(donors[name]), into.model, into.tokenizer, layers))
    return readings, places
