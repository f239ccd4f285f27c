"""Agreement: the verb follows the number of its subject, whatever the number of the noun that stands between them."""

import random
from collections.abc import Mapping

from stages.contrasts.pair import Category, Words, capital
from stages.contrasts.words import PEOPLE, THINGS

_OPENINGS = ("{x}", "I think that {x}", "Everybody knows that {x}", "It seems that {x}")
_OF_THINGS = (
    "the {head} near the {other}",
    "the {head} behind the {other}",
    "the {head} beside the {other}",
    "the {head} next to the {other}",
    "the {head} in front of the {other}",
    "the {head} under the {other}",
)
_OF_PEOPLE = (
    "the {head} with the {other}",
    "the {head} behind the {other}",
    "the {head} who helped the {other}",
    "the {head} who met the {other}",
    "the {head} that the {other} admired",
    "the {head} that the {other} called",
)
_VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))


def _join(openings: tuple[str, ...], phrases: tuple[str, ...], kind: str) -> list[str]:
    return [f"{kind}: {opening.replace('{x}', phrase)}" for opening in openings for phrase in phrases]


def _moving(template: str, rng: random.Random) -> Words:
    """The subject's number changes, beside a noun that keeps its own."""
    nouns, asked = _read(template)
    head, other = rng.sample(sorted(nouns), 2)
    other = rng.choice((other, nouns[other]))
    first, second = (capital(asked.format(head=each, other=other)) for each in (head, nouns[head]))
    return Words(first, second, *rng.choice(_VERBS))


def _still(template: str, rng: random.Random) -> Words:
    """The other noun's number changes, and the subject keeps its own."""
    nouns, asked = _read(template)
    head, other = rng.sample(sorted(nouns), 2)
    one, several = rng.choice(_VERBS)
    plural = rng.random() < 0.5
    subject = nouns[head] if plural else head
    first, second = (capital(asked.format(head=subject, other=each)) for each in (other, nouns[other]))
    return Words(first, second, *((several, one) if plural else (one, several)))


def _read(template: str) -> tuple[Mapping[str, str], str]:
    kind, _, asked = template.partition(": ")
    return (PEOPLE if kind == "people" else THINGS), asked


AGREEMENT = Category(
    name="agreement",
    templates=_join(_OPENINGS, _OF_THINGS, "things") + _join(_OPENINGS, _OF_PEOPLE, "people"),
    moving=_moving,
    still=_still,
)
