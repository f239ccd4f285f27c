"""A donor's largest neurons as the target's feed-forward networks: how many, chosen how, put where."""

from typing import Literal

import pydantic

from stages.errors import BadInput
from stages.settings import Settings

By = Literal["activation", "weights", "random"]


class ProjectionRecipe(Settings):
    """A variant's section under `project`."""

    donor: str
    """The donor's name; `target` prunes the target's own networks."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    keep: int | float
    """Neurons that are kept of each of the donor's networks: a count, or a share with a point such as 0.5."""
    by: By = "activation"
    """What makes a neuron large: mean |a| over tokens times the norm of what it writes; the product of its weights'
    norms; or nothing, drawn at random: the control."""
    layers: tuple[int | float | str, ...] = ()
    """The target's blocks: indices, `n-4` or depths; none means all."""
    donor_layers: tuple[int | float | str, ...] = ()
    """The donor's block for each of them; none means those of the same index."""
    place: Literal["replace", "beside"] = "replace"
    """In place of the target's own neurons, or beside them."""
    strength: float = pydantic.Field(default=1.0, gt=0)
    """Factor on what the neurons write."""
    prompts: int = pydantic.Field(default=48, ge=0)
    """Prompts with their answers on which activations are taken and bridges are fitted."""
    texts: int = pydantic.Field(default=24, ge=0)
    """Texts, likewise."""
    judged: int = pydantic.Field(default=12, gt=0)
    """Texts after those, on which the divergence from the target is measured."""
    tokens: int = pydantic.Field(default=48, gt=1)
    """Of each text, at most."""
    curve: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """Shares of neurons at which the divergence is measured, for each way to choose them."""
    ridge: float = pydantic.Field(default=0.01, gt=0)
    """Penalty of the bridges to and from a donor of another width, in mean squares of a column."""
    seed: int = 0
    """Of the neurons drawn at random."""

    @pydantic.model_validator(mode="after")
    def _whole(self):
        if (isinstance(self.keep, float) and self.keep > 1) or self.keep <= 0:
            raise ValueError("keep is a count of neurons from 1, or a share above 0 and up to 1.0")
        if self.donor_layers and len(self.donor_layers) != len(self.layers):
            raise ValueError("donor_layers names one of the donor's blocks for each of layers")
        if self.prompts + self.texts == 0:
            raise ValueError("activations need prompts or texts; set prompts or texts above 0")
        if any(not 0 < share <= 1 for share in self.curve):
            raise ValueError("curve holds shares above 0 and up to 1.0")
        return self

    def count(self, neurons: int) -> int:
        """How many are kept of `neurons`. Raises BadInput where there are fewer."""
        kept = self.keep if isinstance(self.keep, int) else max(1, round(self.keep * neurons))
        if kept > neurons:
            raise BadInput(f"Expected to keep at most the donor's {neurons} neurons a block, got {kept}; lower keep.")
        return kept
