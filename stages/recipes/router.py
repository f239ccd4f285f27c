"""A mixture's routers biased toward the experts of one domain: which experts, and how far."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.encoding import Encoded, encode
from stages.anatomy.likelihood import Reference, read, score
from stages.anatomy.routing import Routed, biased, preferred, raised, routed
from stages.capabilities.domains import DOMAINS, Name
from stages.settings import Settings


class Choice(Settings):
    """Which experts of a mixture."""

    toward: Name
    """The domain whose experts they are."""
    away: Name
    """The domain that they are told apart from."""
    select: Literal["preferred", "random"] = "preferred"
    """The experts that `toward` uses more than `away` does by the most, or as many drawn blindly."""
    experts: int = pydantic.Field(gt=0)
    """Chosen in each layer's mixture."""
    calibration: int = pydantic.Field(default=200, gt=0)
    """Items of each domain on which the experts are chosen."""
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _two(self):
        if self.toward == self.away:
            raise ValueError(f"toward and away are both {self.away}; name another domain to tell its experts from")
        return self


class RouterRecipe(Choice):
    """A variant's section under `route`; the harm is measured on the domain `away`."""

    target: str
    """The name of the mixture whose routers are biased."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    strength: float = pydantic.Field(ge=0, le=20)
    """What is added to their logits."""
    strengths: list[Annotated[float, pydantic.Field(ge=0, le=20)]] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0]
    """Those that are measured beside it."""
    test: int = pydantic.Field(default=200, gt=0)
    """Items of each domain on which the bias is judged."""
    resamples: int = pydantic.Field(default=2000, gt=0)


@dataclass(frozen=True)
class Questions:
    """Items of one domain as a model reads them."""

    encoded: list[Encoded]
    clusters: list[str]

    @property
    def whole(self) -> list[tuple[int, ...]]:
        """Prompts with their answers."""
        return [each.ids for each in self.encoded]


def questions(
    tokenizer: PreTrainedTokenizerBase, domain: Name, split: Literal["calibration", "test"], count: int
) -> Questions:
    """`count` items of a domain's split."""
    items = DOMAINS[domain].items(split, count, seed=0)
    return Questions(encode(tokenizer, [(i.prompt, i.answer) for i in items]), [i.pair for i in items])


def chosen(recipe: Choice, inside: Routed, outside: Routed) -> torch.Tensor:
    """[layers, experts a mixture], from the routing of items of `toward` and of `away`.

    Raises BadInput unless some experts are chosen and some are not.
    """
    own = preferred(inside, outside, recipe.experts)
    if recipe.select == "preferred":
        return own
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = [torch.randperm(inside.mass.shape[2], generator=generator)[: recipe.experts] for _ in own]
    return torch.stack(drawn).sort(1).values


@dataclass(frozen=True)
class Effect:
    """What a bias does on test items."""

    inside: Routed
    outside: Routed
    divergence: list[float]
    """[items of `away`], KL(unbiased ‖ biased), a mean over tokens in nats"""
    right_inside: torch.Tensor
    right_outside: torch.Tensor
    """[items], whether greedy decoding gives exactly the answer"""


def effects(
    model: PreTrainedModel, chosen: torch.Tensor, strengths: Sequence[float], inside: Questions, outside: Questions
) -> dict[float, Effect]:
    """Strength → what that bias toward the experts in `chosen` [layers, count] does; 0 is among them."""
    reference = Reference(model, [told.states for told in read(model, outside.whole)])
    count, found = routed(model, inside.whole[:1]).mass.shape[2], {}
    for strength in sorted({0.0, *strengths}):
        with biased(model, raised(chosen, count, strength)):
            found[strength] = Effect(
                routed(model, inside.whole),
                routed(model, outside.whole),
                [float(told.divergence or 0.0) for told in read(model, outside.whole, reference)],
                *(score(model, each.encoded).greedy for each in (inside, outside)),
            )
    return found
