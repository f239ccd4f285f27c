"""The target's embeddings from a donor's, token by token, through a bridge: which tokens, which bridge, how far."""

from typing import Literal

import pydantic

from stages.settings import Settings

Way = Literal["exact", "normalised", "decomposed"]


class EmbeddingsRecipe(Settings):
    """A variant's section under `embed`."""

    donor: str
    """The donor's name; width and tokenizer may be its own."""
    control_for: str | tuple[str, ...] | None = None
    """The variant, or variants, that this one is a control for."""
    tables: tuple[Literal["input", "output"], ...] = ("input", "output")
    """Which embeddings are taken over; where the target ties the two, they are one table."""
    ways: tuple[Way, ...] = ("exact", "normalised")
    """The target's own tokens that are moved, by how the donor spells them; none leaves all as they are."""
    strength: float = pydantic.Field(default=1.0, ge=0, le=1)
    """λ in e + λ · (bridged − e). For a new token e is the mean of the pieces that the target read until now, so that 0
    is that baseline."""
    vectors: Literal["donor", "random"] = "donor"
    """The donor's vectors, or random ones of the same lengths in their place: the control."""
    bridge: Literal["identity", "orthogonal", "similarity", "ridge"] = "orthogonal"
    """Fitted on tokens that both spell exactly alike; identity needs equal widths."""
    ridge: float = pydantic.Field(default=0.01, gt=0)
    """The ridge bridge's penalty, in mean squares of a column."""
    held_out: float = pydantic.Field(default=0.2, gt=0, lt=1)
    """Share of the exactly matched tokens on which the bridge is judged, not fitted."""
    add: tuple[str, ...] | Literal["donor"] = ()
    """New tokens as they stand in a text, ` plus` with its space; or `donor`, those that only the donor has."""
    most: int = pydantic.Field(default=100, gt=0)
    """Of the donor's tokens, at most so many, in order of their ids."""
    seed: int = 0
    """Of what is held out, and of random vectors."""

    @pydantic.model_validator(mode="after")
    def _something(self):
        if not self.tables or not (self.ways or self.add):
            raise ValueError("nothing would change; name tables, and ways or tokens to add")
        if len({*self.add}) < len(self.add) and self.add != "donor":
            raise ValueError("add names a token twice")
        return self
