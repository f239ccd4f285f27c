"""Negation: a `not` turns a statement into its opposite; an adverb does not."""

import random

from stages.contrasts.pair import Category, Words, capital, different
from stages.contrasts.words import NAMES

_THINGS = {
    ("open", "closed"): ("door", "gate", "window", "shop", "museum", "bank", "bakery", "park", "library", "garage"),
    ("locked", "unlocked"): ("drawer", "cupboard", "cellar", "safe", "trunk", "shed", "cabin", "office"),
    ("on", "off"): ("lamp", "radio", "heater", "fan", "oven", "television", "alarm", "engine", "pump", "printer"),
    ("true", "false"): ("story", "claim", "rumour", "report", "answer", "theory", "sentence", "message"),
    ("legal", "illegal"): ("trade", "contract", "sale", "meeting", "strike", "game", "race", "hunt"),
    ("visible", "invisible"): ("island", "bridge", "tower", "moon", "mountain", "coast", "road", "ship"),
    ("complete", "incomplete"): ("list", "set", "puzzle", "plan", "record", "collection", "map", "index"),
    ("wet", "dry"): ("towel", "shirt", "floor", "grass", "carpet", "roof", "street", "blanket"),
}
_OF_PEOPLE = (("awake", "asleep"), ("alive", "dead"), ("present", "absent"), ("married", "single"))
_HOLD_OF = (
    *((pair, tuple(f"the {noun}" for noun in nouns)) for pair, nouns in _THINGS.items()),
    *((pair, NAMES) for pair in _OF_PEOPLE),
)
"""Opposites, exactly one of which holds of each of the subjects."""
_ADVERBS = ("really", "certainly", "clearly", "definitely", "surely")
_STATED = (
    "{s} {is} {a}. So {s} is",
    "We know that {s} {is} {a}. In other words, {s} is",
    "{s} {is} {a}, which means that {s} is",
    "Somebody told me that {s} {is} {a}. That means that {s} is",
    "It is a fact that {s} {is} {a}, so {s} is",
    "If {s} {is} {a}, then {s} is",
    "Since {s} {is} {a}, we can say that {s} is",
    "Yes, {s} {is} {a}. To put it differently, {s} is",
    "I saw that {s} {is} {a}. Therefore {s} is",
    "Note: {s} {is} {a}. Conclusion: {s} is",
)
_ASKED = (
    "{s} {is} {a}. Is {s} {a}? Answer:",
    "Fact: {s} {is} {a}.\nQuestion: Is {s} {a}?\nAnswer:",
    "We know that {s} {is} {a}. Question: is {s} {a}? Answer:",
    "Q: If {s} {is} {a}, is {s} {a}?\nA:",
    "Remember that {s} {is} {a}. Is it a fact that {s} is {a}? Answer:",
    "Somebody told me that {s} {is} {a}. Would you say that {s} is {a}? Answer:",
)


def _told(template: str, rng: random.Random, forms: tuple[str, str], denied: bool) -> Words:
    """Both prompts, with one form of `is` each, and what is right after the first, which is denied or not."""
    opposites, subjects = rng.choice(_HOLD_OF)
    said, other = different(rng, opposites)
    subject = rng.choice(subjects)
    first, second = (capital(template.format(s=subject, a=said, **{"is": form})) for form in forms)
    affirmed = (" Yes", " No") if template in _ASKED else (f" {said}", f" {other}")
    return Words(first, second, *(affirmed[::-1] if denied else affirmed))


def _moving(template: str, rng: random.Random) -> Words:
    """Affirmed, then denied."""
    return _told(template, rng, ("is", "is not"), denied=False)


def _still(template: str, rng: random.Random) -> Words:
    """Affirmed twice or denied twice, by different adverbs."""
    denied = rng.random() < 0.5
    one, other = different(rng, _ADVERBS)
    end = " not" if denied else ""
    return _told(template, rng, (f"is {one}{end}", f"is {other}{end}"), denied)


NEGATION = Category(name="negation", templates=_STATED + _ASKED, moving=_moving, still=_still)
