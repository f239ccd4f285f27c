"""One model in debate with itself: the views, and how their predictions are reconciled."""

from typing import Any, Literal

import pydantic

from stages.anatomy.names import layer_index
from stages.settings import Settings


class View(Settings):
    """One way to look at the same model; the defaults change nothing."""

    noise: float = pydantic.Field(default=0.0, ge=0)
    """Of so many root mean squares of a token's state; the same at a position whatever the text."""
    layer: str | int | float | None = None
    """The block whose output the noise is added to."""
    skip: tuple[str | int | float, ...] = ()
    """Blocks passed by, a dropout of whole blocks."""
    temperature: float = pydantic.Field(default=1.0, gt=0)
    """What the logits are divided by."""
    seed: int = 0
    """Of the noise."""

    @pydantic.model_validator(mode="after")
    def _placed(self):
        if bool(self.noise) != (self.layer is not None):
            raise ValueError("noise and the layer that it leaves go together")
        return self

    def resolved(self, blocks: int) -> dict[str, Any]:
        """The view as a configuration holds it, for a model of so many blocks; BadInput for a layer it lacks."""
        return {
            "temperature": self.temperature,
            "noise": self.noise,
            "layer": 0 if self.layer is None else layer_index(self.layer, blocks),
            "seed": self.seed,
            "skip": sorted({layer_index(each, blocks) for each in self.skip}),
        }


class Lessons(Settings):
    """How the gate over the views learns."""

    steps: int = pydantic.Field(gt=0)
    batch: int = pydantic.Field(gt=0)
    """Positions of answers, and as many of texts, a step."""
    learning_rate: float = pydantic.Field(gt=0)
    divergence: float = pydantic.Field(ge=0)
    """Weight of KL(target ‖ debate) on text, in nats a token, beside the cross-entropy of answers."""
    seed: int = 0


class DebateRecipe(Settings):
    """A variant's section under `debate`."""

    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for: as many views, all alike."""
    views: tuple[View, ...] = pydantic.Field(min_length=2)
    """The first one counts as the model itself when views are compared."""
    reconcile: Literal["average", "entropy", "maximum", "gate"] = "average"
    """Of log-probabilities: their mean; weighted by exp(−entropy) or by the likeliest token's probability; or by a
    linear gate that reads how sure every view is."""
    prompts: int = pydantic.Field(default=60, gt=0)
    """Training prompts on which the views are compared, and the gate learns."""
    texts: int = pydantic.Field(default=10, gt=0)
    """Retention texts likewise."""
    training: Lessons | None = None
    """For a gate."""

    @pydantic.model_validator(mode="after")
    def _learns(self):
        if (self.reconcile == "gate") != (self.training is not None):
            raise ValueError("a training section goes with reconcile: gate, and with nothing else")
        return self
