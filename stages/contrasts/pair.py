"""What a minimal pair is, and how distinct ones are drawn from templates."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stages.errors import BadInput

_TRIES = 2_000  # draws in a row that give nothing new before there is taken to be no more


class Side(NamedTuple):
    """One prompt of a pair, and what is to be compared after it."""

    prompt: str
    right: str
    wrong: str


class Words(NamedTuple):
    """A pair before it belongs to a category."""

    first: str
    second: str
    right: str
    """What is right after the first prompt; it ends where a reader sees that it ends, and begins with its space."""
    wrong: str


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ minimally. Where the pair moves, what was right after the first is wrong after the second
    and the other way round; where it does not, the same continuation is right after both."""

    category: str
    moves: bool
    cluster: str
    """Pairs of one cluster are not independent: they are put in the same words."""
    first: str
    second: str
    right: str
    """After the first prompt."""
    wrong: str
    """After the first prompt."""

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both prompts, each with its own right and wrong continuation."""
        exchanged = (self.wrong, self.right) if self.moves else (self.right, self.wrong)
        return Side(self.first, self.right, self.wrong), Side(self.second, *exchanged)

    @property
    def id(self) -> str:
        """Of its words, so that a change of a pair cannot go unnoticed."""
        told = "\0".join((str(self.moves), self.first, self.second, self.right, self.wrong))
        return f"{self.category}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Category:
    """One kind of minimal pair."""

    name: str
    templates: Sequence[str]
    """Each is a cluster."""
    moving: Callable[[str, random.Random], Words]
    """From a template, a pair whose right continuation changes."""
    still: Callable[[str, random.Random], Words]
    """From a template, a pair that differs in what does not matter."""


def drawn(category: Category, moves: bool, count: int, seed: int) -> list[Pair]:
    """`count` distinct pairs, the templates in turn; the same seed gives the same pairs.

    A pair and its exchange count as one. Raises BadInput when the templates give no more.
    """
    rng = random.Random(f"{category.name} {moves} {seed}")
    order = random.Random(f"{category.name} {seed}").sample(category.templates, len(category.templates))
    made: dict[frozenset[str], Pair] = {}
    tries = last = 0
    while len(made) < count:
        template = order[tries % len(order)]
        words = (category.moving if moves else category.still)(template, rng)
        pair = Pair(category.name, moves, f"{category.name}: {template}", *words)
        if made.setdefault(frozenset(words[:2]), pair) is pair:
            last = tries
        tries += 1
        if tries - last > _TRIES:
            kind = "that move" if moves else "that do not"
            raise BadInput(
                f"Expected {count} distinct pairs of {category.name} {kind}, got {len(made)}; ask for fewer."
            )
    return list(made.values())


def capital(sentence: str) -> str:
    """The sentence with its first letter large."""
    return sentence[:1].upper() + sentence[1:]


def different(rng: random.Random, values: Sequence[str]) -> tuple[str, str]:
    """Two of the values, in any order."""
    one, other = rng.sample(values, 2)
    return one, other
