"""Entities: who is meant follows from what the prompt says of whom."""

import random

from stages.contrasts.pair import Category, Words, different
from stages.contrasts.words import DAYS, NAMES

_FACTS = {
    "lives in": ("Paris", "Rome", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Athens"),
    "comes from": ("France", "Italy", "Spain", "Norway", "Greece", "Poland", "Canada", "Japan"),
    "likes": ("coffee", "tea", "cheese", "chocolate", "bread", "soup", "rice", "honey"),
    "plays": ("the piano", "the violin", "the flute", "the guitar", "the trumpet", "the harp", "the drums"),
    "owns": ("a dog", "a cat", "a horse", "a parrot", "a rabbit", "a goat", "a donkey"),
    "studies": ("history", "physics", "music", "law", "chemistry", "biology", "medicine"),
    "speaks": ("French", "Italian", "Spanish", "German", "Greek", "Polish", "Japanese"),
    "works as": ("a baker", "a teacher", "a nurse", "a farmer", "a painter", "a judge", "a pilot"),
}
_ASKED = (
    "{a} VERB {x} and {b} VERB {y}. The one who VERB {z} is",
    "While {a} VERB {x}, {b} VERB {y}. Question: Who VERB {z}? Answer:",
    "We know that {a} VERB {x} and that {b} VERB {y}. The person who VERB {z} is called",
)
_DONE = {
    "{a} gave {b} a book. Now the book belongs to": 1,
    "{a} called {b} on the phone. The person who answered the call was": 1,
    "{a} taught {b} to swim. The teacher was": 0,
    "{a} won the game against {b}. The loser was": 1,
    "{a} won the race against {b}. The winner was": 0,
    "{a} hired {b} for the job. The boss is": 0,
    "{a} is older than {b}. The younger of the two is": 1,
    "{a} is taller than {b}. The taller of the two is": 0,
    "{a} arrived before {b}. The last to arrive was": 1,
    "{a} lent {b} some money. The money must be paid back to": 0,
    "{a} wrote {b} a letter. The letter was written by": 0,
    "{a} cooked dinner for {b}. The guest was": 1,
}
"""Sentence → which of the two it ends with."""


def _say(template: str, rng: random.Random, swapped: bool) -> tuple[tuple[str, str], tuple[str, str]]:
    """Two prompts, and what is right after each of them if they are swapped."""
    a, b = different(rng, NAMES)
    if template in _DONE:
        first, second = template.format(a=a, b=b), template.format(a=b, b=a)
        answers = (a, b) if _DONE[template] == 0 else (b, a)
    else:
        verb = next(each for each in _FACTS if f"{{a}} {each} {{x}}" in template)
        x, y = different(rng, _FACTS[verb])
        first, second = (template.format(a=a, b=b, x=x, y=y, z=z) for z in (x, y))
        answers = a, b
        if rng.random() < 0.5:
            first, second, answers = second, first, (b, a)
    return (first, second if swapped else first), (f" {answers[0]}", f" {answers[1]}")


def _moving(template: str, rng: random.Random) -> Words:
    """Another fact asked for, or the two in each other's place."""
    prompts, answers = _say(template, rng, swapped=True)
    return Words(*prompts, *answers)


def _still(template: str, rng: random.Random) -> Words:
    """The same said of the same on another day."""
    (told, _), answers = _say(template, rng, swapped=False)
    first, second = (f"It was {day}. {told}" for day in different(rng, DAYS))
    return Words(first, second, *answers)


ENTITY = Category(
    name="entity",
    templates=[asked.replace("VERB", verb) for asked in _ASKED for verb in _FACTS] + list(_DONE),
    moving=_moving,
    still=_still,
)
