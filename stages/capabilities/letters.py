"""Letters: of made-up words one by one, spelled out, spelled backwards, and in the order of the alphabet.

A made-up word is one fact, whatever is asked of it.
"""

import random
import string

from stages.capabilities.questions import Domain, Question

_CONSONANTS, _VOWELS = "bdfklmnprstvz", "aeiou"
_PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}
_MOST_STEPS = 4

_LETTER = (
    "The {n} letter of {w} is",
    "What is the {n} letter of {w}? Answer:",
    "Question: What is the {n} letter of {w}?\nAnswer:",
    "Question: Which letter is the {n} in {w}?\nAnswer:",
    "Q: {n} letter of {w}\nA:",
    "Give the {n} letter of {w}:",
    "Find the {n} letter in {w}:",
    "{n} letter of {w}:",
    "In {w}, the {n} letter is",
)
_SPELL = (
    "Spell {w}:",
    "{w} is spelled",
    "Spell out {w}:",
    "The letters of {w} are",
    "What are the letters of {w}? Answer:",
    "Question: How is {w} spelled?\nAnswer:",
    "Q: spell {w}\nA:",
    "Write {w} letter by letter:",
    "Letters of {w}:",
)
_BACKWARDS = (
    "Spell {w} backwards:",
    "{w} spelled backwards is",
    "{w} backwards:",
    "The letters of {w} from last to first are",
    "What is {w} backwards? Answer:",
    "Question: How is {w} spelled backwards?\nAnswer:",
    "Q: spell {w} backwards\nA:",
    "Write {w} backwards, letter by letter:",
    "Reverse the letters of {w}:",
)
_ALPHABET = (
    "{x} is",
    "{x}:",
    "What is {x} in the alphabet? Answer:",
    "Question: Which letter is {x}?\nAnswer:",
    "Q: {x}\nA:",
    "Give the letter {x}:",
    "The letter {x} is",
    "In the alphabet, {x} comes",
)
_HELD_OUT = {
    "letter": (
        "Please tell me which letter stands {n} in {w}:",
        "Exercise: the {n} letter of {w}. Solution:",
        "Somebody wrote {w} and pointed at the {n} letter, which is",
        "Looking at {w}, what comes as its {n} letter? Reply:",
    ),
    "spell": (
        "Please dictate {w} to me one letter at a time:",
        "Exercise: take {w} apart into letters. Solution:",
        "On the phone I had to spell the name {w}, so I said",
        "Which letters make up {w}? Reply:",
    ),
    "backwards": (
        "Please read {w} from the end, letter for letter:",
        "Exercise: turn {w} around. Solution in letters:",
        "In the mirror the letters of {w} read",
        "What letters do you get from {w} in reverse order? Reply:",
    ),
    "alphabet": (
        "Please go through the alphabet and name what is {x}:",
        "Exercise: find the letter {x}. Solution:",
        "The children sang the alphabet and stopped {x}, at",
        "Which letter would you meet {x}? Reply:",
    ),
}


def _word(length: int, rng: random.Random) -> str:
    """Consonants and vowels in turn."""
    return "".join(rng.choice(_VOWELS if place % 2 else _CONSONANTS) for place in range(length))


def _draw(operation: str, size: int, rng: random.Random) -> Question:
    """Asked of a word of `size` letters, or of the alphabet."""
    if operation == "alphabet":
        steps = rng.randint(1, _MOST_STEPS)
        early = rng.randrange(26 - steps)
        ends = string.ascii_lowercase[early], string.ascii_lowercase[early + steps]
        after = rng.random() < 0.5
        start, end = ends if after else ends[::-1]
        x = f"{steps} {'letters' if steps > 1 else 'letter'} {'after' if after else 'before'} {start}"
        return Question({"x": x}, end, f"alphabet {x}", f"alphabet {ends[0]} {ends[1]}")
    word = _word(size, rng)
    if operation == "letter":
        place = rng.choice(tuple(_PLACES))
        return Question({"n": place, "w": word}, word[_PLACES[place]], f"letter {place} {word}", f"word {word}")
    told = word[::-1] if operation == "backwards" else word
    return Question({"w": word}, " ".join(told), f"{operation} {word}", f"word {word}")


DOMAIN = Domain(
    about="letters of short made-up words by their place, spelled out and spelled backwards, and steps in the alphabet",
    draw=_draw,
    sizes=(4, 4, 5),
    seen={"letter": _LETTER, "spell": _SPELL, "backwards": _BACKWARDS, "alphabet": _ALPHABET},
    unseen=_HELD_OUT,
    expressions={
        "letter": ("{n} letter of {w}", "the {n} letter of {w}"),
        "spell": ("spell {w}", "the letters of {w}"),
        "backwards": ("spell {w} backwards", "{w} backwards"),
        "alphabet": ("{x}",),
    },
    endings=(":", ":", "is", "gives", "="),
)
