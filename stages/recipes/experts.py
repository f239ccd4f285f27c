"""Experts of a mixture replaced by a donor's experts, or by the MLPs of a dense donor."""

import pydantic
from transformers import PreTrainedModel

from stages.anatomy.experts import Gated, taken
from stages.capabilities.domains import Name
from stages.settings import Settings


class ExpertsRecipe(Settings):
    """A variant's section under `swap`."""

    target: str
    """The name of the mixture that receives."""
    donor: str
    """The donor's name: a mixture, or a dense model of the target's width and activation."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    places: dict[str, str] = pydantic.Field(min_length=1)
    """Expert of the target → what takes its place: `layers.2.mlp.experts.5: layers.1.mlp.experts.0`, or `layers.1.mlp`
    of a dense donor."""
    domains: list[Name] = ["arithmetic", "letters"]
    """On whose test items the result is told beside the target."""
    test: int = pydantic.Field(default=200, gt=0)
    """Items of each."""


def given(recipe: ExpertsRecipe, donor: PreTrainedModel) -> dict[str, Gated]:
    """What takes the place of each expert that the recipe names. Raises BadInput as `taken` does."""
    return {place: taken(donor, site) for place, site in recipe.places.items()}
