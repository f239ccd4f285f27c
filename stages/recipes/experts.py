"""Experts of a mixture replaced by a donor's experts, or by the MLPs of a dense donor."""

from collections.abc import Mapping

import pydantic
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.experts import Gated, taken
from stages.anatomy.routing import routed, routers_of
from stages.capabilities.domains import Name
from stages.recipes.router import Choice, chosen, questions
from stages.settings import Settings


class ExpertsRecipe(Settings):
    """A variant's section under `swap`."""

    target: str
    """The name of the mixture that receives."""
    donor: str
    """The donor's name: a mixture, or a dense model of the target's width and activation."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    places: dict[str, str] = {}
    """Expert of the target → what takes its place: `layers.2.mlp.experts.5: layers.1.mlp.experts.0`, or `layers.1.mlp`
    of a dense donor."""
    choice: Choice | None = None
    """Instead of places: experts chosen by where the target sends the tokens of two domains, each replaced by the
    donor's at its own place."""
    domains: list[Name] = ["arithmetic", "letters"]
    """On whose test items the result is told beside the target."""
    test: int = pydantic.Field(default=200, gt=0)
    """Items of each."""

    @pydantic.model_validator(mode="after")
    def _either(self):
        if bool(self.places) == bool(self.choice):
            raise ValueError("expected either places or choice, got both or none; keep one of them")
        return self


def places(recipe: ExpertsRecipe, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Expert of the target → what takes its place, chosen on calibration items where the recipe says how."""
    if recipe.choice is None:
        return recipe.places
    choice, layers = recipe.choice, routers_of(target)
    names = (choice.toward, choice.away)
    known = (questions(tokenizer, name, "calibration", choice.calibration) for name in names)
    taken = chosen(choice, *(routed(target, each.whole) for each in known))
    sites = [
        f"layers.{layer}.mlp.experts.{expert}"
        for layer, row in zip(layers, taken.tolist(), strict=True)
        for expert in row
    ]
    return {site: site for site in sites}


def given(places: Mapping[str, str], donor: PreTrainedModel) -> dict[str, Gated]:
    """What takes the place of each expert named. Raises BadInput as `taken` does."""
    return {place: taken(donor, site) for place, site in places.items()}
