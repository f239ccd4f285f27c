"""Addition and subtraction up to three digits, in many phrasings.

A pair of numbers belongs to one split for ever, by a hash of the operation and the pair (sums without regard to order),
so a test prompt cannot occur in training, whatever the seed or the phrasing. A part of the phrasings is kept out of
training altogether.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "calibration", "test"]
Operation = Literal["addition", "subtraction"]

_ASKED = (
    "{x} =",
    "What is {x}? Answer:",
    "Question: {x}.\nAnswer:",
    "Question: What is {x}?\nAnswer:",
    "{x} equals",
    "{x} is",
    "Calculate {x}:",
    "Compute {x} =",
    "Q: {x}\nA:",
    "Result of {x}:",
)
_EXPRESSIONS: dict[Operation, tuple[str, ...]] = {
    "addition": ("{a} + {b}", "{a} plus {b}"),
    "subtraction": ("{a} - {b}", "{a} minus {b}"),
}
_SENTENCES: dict[Operation, tuple[str, ...]] = {
    "addition": ("{a}+{b}=", "Add {a} and {b}:", "The sum of {a} and {b} is", "If you add {b} to {a}, you get"),
    "subtraction": (
        "{a}-{b}=",
        "Subtract {b} from {a}:",
        "The difference between {a} and {b} is",
        "If you take {b} from {a}, you get",
    ),
}
_HELD_OUT = (
    "How much is {x}? It is",
    "Exercise: {x}. Solution:",
    "Please work out {x} for me:",
    "On the board the teacher wrote {x} =",
    "Tell me what {x} makes. Reply:",
    "My homework asks for {x}, and that is",
)
SEEN: dict[Operation, tuple[str, ...]] = {
    operation: tuple(asked.replace("{x}", x) for asked in _ASKED for x in _EXPRESSIONS[operation])
    + _SENTENCES[operation]
    for operation in ("addition", "subtraction")
}
"""Phrasings that donors and gates are trained on; `{a}` and `{b}` stand for the operands."""
UNSEEN: dict[Operation, tuple[str, ...]] = {
    operation: tuple(asked.replace("{x}", x) for asked in _HELD_OUT for x in _EXPRESSIONS[operation])
    for operation in ("addition", "subtraction")
}
"""Phrasings that only the test has."""

_ENDINGS = ("=", ":", ":", "is", "equals", "you get")
_TEST_PERCENT, _CALIBRATION_PERCENT = 20, 10


@dataclass(frozen=True)
class Item:
    """A prompt, its answer with the full stop that ends it, and the groups that it is reported under."""

    prompt: str
    answer: str
    operation: Operation
    digits: int
    """Of the longer operand."""
    phrasing: str
    seen: bool
    """Whether the phrasing occurs in training."""
    pair: str
    """Operation and operands; items with one pair share a cluster."""


def split_of(operation: Operation, a: int, b: int) -> Split:
    """The split that owns a pair, the same for ever."""
    pair = (min(a, b), max(a, b)) if operation == "addition" else (a, b)
    bucket = int.from_bytes(hashlib.sha256(f"{operation} {pair[0]} {pair[1]}".encode()).digest()[:8], "big") % 100
    if bucket < _TEST_PERCENT:
        return "test"
    return "calibration" if bucket < _TEST_PERCENT + _CALIBRATION_PERCENT else "train"


def _operands(operation: Operation, digits: int, split: Split, rng: random.Random) -> tuple[int, int]:
    """A pair from `split` whose longer operand has `digits` digits; differences are never negative."""
    low, high = (0, 9) if digits == 1 else (10 ** (digits - 1), 10**digits - 1)
    while True:
        a, b = rng.randint(low, high), rng.randint(0, high)
        if operation == "subtraction" and a < b:
            continue
        if operation == "addition" and rng.random() < 0.5:
            a, b = b, a
        if split_of(operation, a, b) == split:
            return a, b


def _item(operation: Operation, digits: int, split: Split, phrasing: str, seen: bool, rng: random.Random) -> Item:
    a, b = _operands(operation, digits, split, rng)
    result = a + b if operation == "addition" else a - b
    prompt = phrasing.replace("{a}", str(a)).replace("{b}", str(b))
    return Item(prompt, f" {result}.", operation, digits, phrasing, seen, f"{operation} {a} {b}")


def _frame(operation: Operation, rng: random.Random) -> str:
    """A phrasing of made-up words around the expression, so that training does not tie the skill to a template."""
    words = ["".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
             for _ in range(rng.randint(0, 7))]  # fmt: skip
    words = [word + rng.choice("nrst") if rng.random() < 0.4 else word for word in words]
    cut = rng.randint(0, len(words))
    before, after = " ".join(words[:cut]), " ".join(words[cut:])
    if before and rng.random() < 0.7:
        before = before[0].upper() + before[1:]
    if before and rng.random() < 0.3:
        before += ":"
    expression = rng.choice(_EXPRESSIONS[operation])
    joint = rng.choice(("", "", ".", "?", ",")) if after else rng.choice(("", "", ".", "?"))
    ending = rng.choice(_ENDINGS)
    body = " ".join(part for part in (before, expression + joint, after) if part)
    return body + ending if ending == ":" else f"{body} {ending}"


def stream(seed: int, framed: float = 0.4) -> Iterator[Item]:
    """Training items without end: seen phrasings, and a share `framed` of made-up ones."""
    rng = random.Random(f"train {seed}")
    while True:
        operation: Operation = rng.choice(("addition", "subtraction"))
        digits = rng.choices((1, 2, 3), weights=(1, 3, 6))[0]
        invented = rng.random() < framed
        phrasing = _frame(operation, rng) if invented else rng.choice(SEEN[operation])
        yield _item(operation, digits, "train", phrasing, not invented, rng)


def items(split: Split, count: int, seed: int, unseen: float = 0.0) -> list[Item]:
    """`count` distinct items of a split, a share `unseen` of them in phrasings that training never shows.

    One digit makes a tenth, two digits three tenths, three digits the rest; operations alternate.
    """
    rng = random.Random(f"{split} {seed}")
    hidden = round(count * unseen)
    made: dict[str, Item] = {}
    while len(made) < count:
        index = len(made)
        operation: Operation = ("addition", "subtraction")[index % 2]
        digits = (1, 2, 2, 2, 3, 3, 3, 3, 3, 3)[index // 2 % 10]
        seen = index >= hidden
        phrasing = rng.choice((SEEN if seen else UNSEEN)[operation])
        item = _item(operation, digits, split, phrasing, seen, rng)
        made.setdefault(item.prompt, item)
    return list(made.values())
