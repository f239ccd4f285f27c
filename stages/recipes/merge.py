"""Whole models' weights merged into the target's: by which method, from whom, and how much of each."""

import zlib
from collections.abc import Callable
from typing import Any, Literal

import pydantic
import torch

from stages.maths import merging
from stages.settings import Settings

_SPARSE = ("ties", "dare", "dare_ties")


class MergeRecipe(Settings):
    """A variant's section under `merge`; the target is the base of every method."""

    method: Literal["linear", "slerp", "task_arithmetic", "ties", "dare", "dare_ties", "random", "mergekit"]
    """`stages.maths.merging` has the formulas. `random` is the control: a random task vector as long as the donor's in
    each tensor. `mergekit` runs that program, where it is installed."""
    donors: dict[str, float] = pydantic.Field(min_length=1)
    """Each donor's name and weight; with `slerp` the one donor's share of the way."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    density: float | None = pydantic.Field(default=None, ge=0, le=1)
    """Share of each task vector's entries that are kept, for `ties`, `dare` and `dare_ties`."""
    seed: int = 0
    """Of what is dropped or drawn at random."""
    mergekit: dict[str, Any] | None = None
    """With `mergekit`: its configuration but for the models, such as {merge_method: della, parameters: {density: .5}};
    a weight here is each model's `weight`."""

    @pydantic.model_validator(mode="after")
    def _whole(self):
        if (self.density is not None) != (self.method in _SPARSE):
            raise ValueError(f"a density goes with the methods {', '.join(_SPARSE)}, and with nothing else")
        if (self.mergekit is not None) != (self.method == "mergekit"):
            raise ValueError("mergekit's configuration goes with method: mergekit, and with nothing else")
        weights = self.donors.values()
        if self.method == "slerp" and (len(weights) != 1 or not 0 <= min(weights) <= 1):
            raise ValueError("slerp goes from the target to one donor, by a share from 0 to 1")
        if self.method == "linear" and (min(weights) < 0 or sum(weights) > 1 + 1e-6):
            raise ValueError(
                "linear takes a mean, with shares of 0 or more and at most 1 together; the rest is the target's"
            )
        return self


def merged(recipe: MergeRecipe, name: str, target: torch.Tensor, donors: torch.Tensor) -> torch.Tensor:
    """The tensor `name` of the graft, from the target's [*shape] and the donors' [donors, *shape], in float32.

    Chance is drawn from the seed and the tensor's name, so no other tensor changes it.
    """
    weights = torch.tensor(list(recipe.donors.values()))
    if recipe.method == "linear":
        return merging.linear(target, donors, weights)
    if recipe.method == "slerp":
        return merging.slerp(target, donors[0], float(weights[0]))
    generator = torch.Generator().manual_seed(zlib.crc32(f"{recipe.seed} {name}".encode()))
    density = recipe.density or 0.0
    methods: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "task_arithmetic": lambda vectors: merging.task_arithmetic(vectors, weights),
        "ties": lambda vectors: merging.ties(vectors, weights, density),
        "dare": lambda vectors: merging.dare(vectors, weights, density, generator),
        "dare_ties": lambda vectors: merging.dare_ties(vectors, weights, density, generator),
        "random": lambda vectors: merging.random(vectors, weights, generator),
    }
    return target + methods[recipe.method](donors - target)
