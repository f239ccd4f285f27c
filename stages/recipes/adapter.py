"""Low-rank changes of the target's linear modules: imported, extracted or carried over, added up, and cut."""

from typing import Literal

import pydantic

from stages.settings import Settings


class AdapterRecipe(Settings):
    """A variant's section under `adapt`."""

    donors: dict[str, float] = pydantic.Field(min_length=1)
    """Each donor's name and strength. The strengthened changes are added exactly, by putting their ranks side by side;
    PEFT's `linear` combination, which adds up the factors and so mixes the donors, is not offered."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    source: Literal["adapter", "difference", "bridge"] = "adapter"
    """What a donor is: an adapter trained on the target; a model of the target's architecture, of which the difference
    to the target is taken; or an adapter trained on another model, carried over by bridges."""
    base: str | None = None
    """With `bridge`: the model that the adapters were trained on."""
    rank: int | None = pydantic.Field(default=None, gt=0)
    """Of the sum in each module, at most, by singular values; null keeps all. `difference` needs one."""
    random: bool = False
    """Draw the sum's factors anew, each module's as long as before: the control."""
    seed: int = 0
    """Of that."""
    texts: int = pydantic.Field(default=40, gt=1)
    """With `bridge`: texts that bridges are fitted on; every fifth judges them."""
    strength: float = pydantic.Field(default=0.05, ge=0)
    """With `bridge`: ridge penalty, as a multiple of a channel's mean variance."""

    @pydantic.model_validator(mode="after")
    def _whole(self):
        if (self.source == "bridge") != (self.base is not None):
            raise ValueError("a base goes with source: bridge, and with nothing else")
        if self.source == "difference" and self.rank is None:
            raise ValueError("source: difference needs a rank, or name a merge of the whole model instead")
        return self
