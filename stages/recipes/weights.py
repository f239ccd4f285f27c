"""The donor's weights copied into the target without training: which modules, and how far."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
import pydantic
import torch

from stages.errors import BadInput
from stages.settings import Settings

OWN = ("strengths", "subset")
"""The frontier's methods that are no control and no foil."""
RATIO = 1.02


class Sweep(Settings):
    """Numbers of components and strengths that are tried, and what they are judged on."""

    shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Of the components, those that differ most for their size first."""
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    prompts: int = pydantic.Field(default=24, gt=0)
    texts: int = pydantic.Field(default=8, gt=0)
    tokens: int = pydantic.Field(default=48, gt=1)
    """Of each text, at most."""

    @pydantic.field_validator("shares", "strengths")
    @classmethod
    def _parts(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or not all(0 < value <= 1 for value in values):
            raise ValueError("expected some numbers above 0 and at most 1")
        return values


class WeightsRecipe(Settings):
    """A variant's section under `transplant`."""

    donor: str
    """The donor's name; it has the target's architecture."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    select: Literal["frontier", "random", "modules"]
    """The best point of the selection's frontier; the same strengths dealt out blindly, the control that any selection
    has to beat; or the modules named here."""
    ratio: float = pydantic.Field(default=RATIO, gt=1)
    """For the first two, the largest perplexity ratio e^divergence, on the texts that selections were checked on, of
    the point that is taken: of those within it the one whose answers are likeliest, else the least harmful one."""
    modules: tuple[str, ...] = ()
    """Patterns such as `layers.3` (a whole block), `layers.*.mlp`, `layers.2.self_attn.q_proj`, a single head
    `layers.3.self_attn.heads.5`, heads of one key and value `layers.3.self_attn.groups.1`, `layers.*.mlp.experts.2` or
    `layers.4.mlp.neurons.0:64`."""
    strength: float | None = pydantic.Field(default=None, gt=0, le=1)
    """λ in target + λ · (donor − target), of the modules named here."""
    drawn: bool = False
    """Take as many components of each form at random, of other blocks, heads or experts: the control of named ones."""
    sweep: Sweep | None = None
    """Try numbers of the modules named here, and strengths, and tell what each does."""
    seed: int = 0
    """Of what is random."""

    @pydantic.model_validator(mode="after")
    def _whole(self):
        named = self.select == "modules"
        if named != bool(self.modules) or named != (self.strength is not None):
            raise ValueError("modules and strength go with select: modules, and with nothing else")
        if not named and (self.drawn or self.sweep):
            raise ValueError("drawn and sweep go with select: modules, and with nothing else")
        return self


def chosen(
    recipe: WeightsRecipe,
    sizes: Mapping[str, int],
    frontier: pd.DataFrame,
    strengths: Sequence[Mapping[str, float]],
) -> tuple[dict[str, float], dict[str, Any]]:
    """The strength of each module that is taken over, and the frontier's row that it comes from.

    `sizes` are the parameters of each module in which donor and target differ; `strengths` hold those of each row of
    `frontier`. Raises BadInput for a frontier of another model.
    """
    row = point(frontier, recipe.ratio)
    found = strengths[row["id"]]
    if not found.keys() <= sizes.keys():
        raise BadInput(
            f"Expected strengths of this donor's {len(sizes)} modules, got some of "
            f"{sorted(found.keys() - sizes.keys())[0]}; select with this donor first."
        )
    values = torch.tensor([found.get(name, 0.0) for name in sizes], dtype=torch.float64)
    if recipe.select == "random":
        values = dealt(values, torch.tensor(list(sizes.values())), f"transplant {recipe.seed}")
    return {name: value for name, value in zip(sizes, values.tolist(), strict=True) if value}, row


def redrawn(sites: Iterable[str], forms: Mapping[str, Sequence[str]], seed: int) -> list[str]:
    """For each of `sites` another of its form, at random and none twice; `forms` lists what can stand for each other.

    A form all of which is named comes back as it is, and is no control.
    """
    generator, found = random.Random(f"components {seed}"), []
    named = set(sites)
    for _, known in sorted(forms.items()):
        found += generator.sample(list(known), len(named.intersection(known)))
    return found


def point(frontier: pd.DataFrame, ratio: float) -> dict[str, Any]:
    """The row of our own methods with the likeliest answers among those within `ratio`, else the least harmful one."""
    own = frontier[frontier.method.isin(OWN)]
    within = own[own.divergence <= math.log(ratio)]
    best = within.nlargest(1, "capability") if len(within) else own.nsmallest(1, "divergence")
    return {str(key): None if pd.isna(value) else value for key, value in best.astype(object).iloc[0].items()}


def dealt(strengths: torch.Tensor, sizes: torch.Tensor, seed: str) -> torch.Tensor:
    """`strengths` [modules] dealt out anew among modules of equal size, so that as many parameters move as far."""
    generator, found = random.Random(seed), strengths.clone()
    for size in sizes.unique().tolist():
        places = (sizes == size).nonzero()[:, 0].tolist()
        found[places] = strengths[generator.sample(places, len(places))]
    return found
