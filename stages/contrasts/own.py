"""Pairs of the user's own, from JSONL."""

from pathlib import Path

import pydantic

from stages.contrasts.pair import Pair
from stages.errors import BadInput
from stages.settings import Settings, parse
from stages.storage import read_jsonl


class OwnPair(Settings):
    """One line."""

    category: str = pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")
    """What the pair is reported under."""
    moves: bool = True
    """Whether the right continuation after the second prompt is the wrong one after the first; else it is the same."""
    first: str = pydantic.Field(min_length=1)
    second: str = pydantic.Field(min_length=1)
    """The prompts."""
    right: str = pydantic.Field(min_length=1)
    wrong: str = pydantic.Field(min_length=1)
    """After the first prompt, with the space that they begin with."""
    cluster: str | None = None
    """What pairs share that are put in the same words; None for a pair that stands alone."""

    @pydantic.model_validator(mode="after")
    def _is_a_contrast(self) -> "OwnPair":
        if self.first == self.second:
            raise ValueError(f"expected two prompts that differ, got {self.first!r} twice; change one")
        if self.right.startswith(self.wrong) or self.wrong.startswith(self.right):
            raise ValueError(
                "expected continuations of which neither begins with the other, which would be the likelier one "
                f"everywhere, got {self.right!r} and {self.wrong!r}; end both with a full stop or choose others"
            )
        return self


def own(path: Path, taken: set[str]) -> list[Pair]:
    """The pairs of a JSONL file. Raises BadInput that names the line when one lacks something, has a category that is
    `taken`, or is there twice."""
    made: dict[frozenset[str], Pair] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        where = f"{path}, line {number}"
        told = parse(row, where, OwnPair)
        if told.category in taken:
            raise BadInput(f"{where}: the category {told.category!r} is generated already; give it another name.")
        prompts = frozenset((told.first, told.second))
        if prompts in made:
            raise BadInput(f"{where}: expected distinct pairs, got {told.first!r} and {told.second!r} again; drop one.")
        cluster = f"{told.category}: {told.first if told.cluster is None else told.cluster}"
        made[prompts] = Pair(told.category, told.moves, cluster, told.first, told.second, told.right, told.wrong)
    return list(made.values())
