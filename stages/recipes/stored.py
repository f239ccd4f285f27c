"""A blade that carries no donor, a stored direction or features scaled: the recipe, and what is made of states."""

from typing import Literal

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor

from stages.graft.stored import Features, Vector
from stages.maths.autoencoder import Autoencoder
from stages.recipes.blade import Training
from stages.settings import Settings


class Dictionary(Settings):
    """The sparse autoencoder whose features are scaled."""

    features: int = pydantic.Field(default=1024, gt=0)
    """Of one that is trained here; a published one has its own."""
    active: int = pydantic.Field(default=24, gt=0)
    """Features at work in a state, on average, of one that is trained here."""
    steps: int = pydantic.Field(default=300, gt=0)
    learning_rate: float = pydantic.Field(default=0.003, gt=0)
    centred: bool = True
    """Whether a published one takes its decoder's bias off the states before encoding."""
    chosen: int = pydantic.Field(default=16, gt=0)
    """Features that are scaled: those that work harder in the donor at answers than in the target on text, by the most;
    or as many drawn from those that work at answers, for a random control."""


class StoredRecipe(Settings):
    """A variant's section under `store`."""

    donor: str
    """The name of the donor whose states are read here, and not later; of the target's width and tokenizer."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    source: Literal["vector", "features"]
    """What is stored: the mean difference of donor and target where they predict answers, or features to scale."""
    random: bool = False
    """In place of that a direction of the same length, or features, drawn at random."""
    file: str | None = None
    """A published vector or sparse autoencoder, among the published files, in place of one that is fitted."""
    dictionary: Dictionary | None = None
    """For features."""
    layer: str | int | float
    """The target's block whose output is changed: an index, `n-4`, or a depth such as 0.875."""
    donor_layer: str | int | float
    """The donor's block whose output is compared with it."""
    gate: Literal["identity", "scalar", "sigmoid", "linear", "softmax", "token", "channel"] = "identity"
    alphas: tuple[float, ...] = pydantic.Field(default=(0.5, 1.0, 2.0), min_length=1)
    """Strengths, of which that is taken that does best on calibration items: cross-entropy of the answers' tokens +
    divergence · KL(target ‖ graft) on text. A gate that learns takes one."""
    prompts: int = pydantic.Field(default=160, gt=0)
    """Training prompts whose states are read."""
    calibration: int = pydantic.Field(default=60, gt=0)
    """Calibration prompts on which the strength is chosen."""
    divergence: float = pydantic.Field(default=1.0, ge=0)
    """Nats of cross-entropy that a nat of divergence counts for in that choice."""
    training: Training | None = None
    """Of a gate that learns, on as many of the prompts that are read."""
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _whole(self):
        if (self.gate == "identity") != (self.training is None):
            raise ValueError("a training section goes with a gate that learns, which is any but identity")
        if self.training is not None and len(self.alphas) != 1:
            raise ValueError("a gate that learns takes one of alphas; name one")
        if self.training is not None and self.training.prompts > self.prompts:
            raise ValueError("a gate learns from prompts that are read; raise prompts to training's")
        if (self.source == "features") != (self.dictionary is not None):
            raise ValueError("a dictionary section goes with source: features, and with nothing else")
        if self.random and self.source == "vector" and self.file is not None:
            raise ValueError("a random vector has the length of the fitted one; leave out the file")
        return self


def direction(difference: Float[Tensor, "rows width"], drawn: torch.Generator | None) -> Vector:
    """The mean of the rows; with a generator one of its length, drawn evenly over the sphere."""
    mean = difference.mean(0)
    if drawn is not None:
        other = torch.randn(len(mean), generator=drawn).to(mean)
        mean = other * (mean.norm() / other.norm())
    made = Vector(len(mean)).to(mean.device)
    made.vector.copy_(mean)
    return made


def chosen(
    working: Float[Tensor, "rows features"],
    usual: Float[Tensor, "texts features"],
    count: int,
    drawn: torch.Generator | None,
) -> list[int]:
    """The features whose mean in `working` exceeds that in `usual` by the most, in descending order.

    With a generator, as many of those that work anywhere in `working`, or all of them.
    """
    if drawn is not None:
        alive = (working > 0).any(0).nonzero()[:, 0]
        return alive[torch.randperm(len(alive), generator=drawn)[:count].to(alive.device)].tolist()
    return (working.mean(0) - usual.mean(0)).topk(min(count, working.shape[1])).indices.tolist()


def scaling(dictionary: Autoencoder, features: list[int], longest: float) -> Features:
    """The part that scales these features of a dictionary fitted to states up to so long."""
    width = dictionary.decoder.shape[1]
    made = Features(width, len(features)).to(dictionary.decoder.device)
    for name in ("encoder", "encoder_bias", "threshold", "decoder"):
        getattr(made, name).copy_(getattr(dictionary, name)[features])
    made.centre.copy_(dictionary.centre)
    made.longest.fill_(longest)
    return made
