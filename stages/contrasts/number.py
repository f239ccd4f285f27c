"""Number: a noun is singular or plural as the word of quantity before it says."""

import random

from stages.contrasts.pair import Category, Words, different
from stages.contrasts.words import NAMES, THINGS

_ONE = ("one", "another", "this", "every", "each")
_MORE = ("two", "three", "four", "five", "seven", "ten", "several", "many", "these", "those")
_LIKE = ("red", "old", "small", "heavy", "cheap", "green", "new", "white")
_FRAMES = (
    "{who} bought {q}",
    "Yesterday {who} found {q}",
    "In the shop {who} saw {q}",
    "For the house {who} wanted {q}",
    "{who} carefully carried {q}",
    "Last week {who} painted {q}",
    "At the market {who} paid for {q}",
    "{who} asked the clerk for {q}",
    "In the morning {who} cleaned {q}",
    "From the shelf {who} took {q}",
    "On the way home {who} lost {q}",
    "With some help {who} repaired {q}",
)


def _put(template: str, rng: random.Random, quantities: tuple[str, str]) -> tuple[str, str]:
    who, like = rng.choice(NAMES), rng.choice(_LIKE)
    first, second = (template.format(who=who, q=each, like=like) for each in quantities)
    return first, second


def _moving(template: str, rng: random.Random) -> Words:
    """One, then more than one."""
    noun = rng.choice(sorted(THINGS))
    return Words(*_put(template, rng, (rng.choice(_ONE), rng.choice(_MORE))), f" {noun}.", f" {THINGS[noun]}.")


def _still(template: str, rng: random.Random) -> Words:
    """Another word for one, or another for more than one."""
    noun = rng.choice(sorted(THINGS))
    forms = f" {noun}.", f" {THINGS[noun]}."
    many = rng.random() < 0.5
    return Words(*_put(template, rng, different(rng, _MORE if many else _ONE)), *(forms[::-1] if many else forms))


NUMBER = Category(
    name="number",
    templates=[frame + like for frame in _FRAMES for like in ("", " {like}")],
    moving=_moving,
    still=_still,
)
