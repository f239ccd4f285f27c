"""What a generated domain is, and the items that any of them gives.

A question belongs to one split for ever, by a hash of what it asks, so a test prompt cannot occur in training, whatever
the seed or the phrasing. A part of the phrasings is kept out of training altogether.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from stages.errors import BadInput

Split = Literal["train", "calibration", "test"]
Phrasings = Mapping[str, tuple[str, ...]]
"""Operation → how it can be asked; `{name}` stands for a value of the question."""

_TEST_PERCENT, _CALIBRATION_PERCENT = 20, 10
_TRIES = 3_000  # draws in a row that give nothing new before there is taken to be no more


@dataclass(frozen=True)
class Question:
    """What is asked, before it is put into words."""

    values: Mapping[str, str]
    """What a phrasing's placeholders stand for."""
    answer: str
    pair: str
    """Operation and operands; items with one pair share a cluster."""
    fact: str
    """What has to be known; questions with one fact belong to one split."""
    digits: int | None = None


@dataclass(frozen=True)
class Item:
    """A prompt, its answer with the full stop that ends it, and the groups that it is reported under."""

    prompt: str
    answer: str
    operation: str
    """What is done with the operands: the kind of question within its domain."""
    digits: int | None
    """Of the longest operand; None where a domain has no numbers."""
    phrasing: str
    seen: bool
    """Whether the phrasing occurs in training."""
    pair: str
    """Operation and operands; items with one pair share a cluster."""


@dataclass(frozen=True)
class Domain:
    """One capability: its questions and how they are put."""

    about: str
    """What its questions are, as a model card says it."""
    draw: Callable[[str, int, random.Random], Question]
    """Any question of an operation and a size."""
    sizes: tuple[int, ...]
    """How large questions are, each as often as it shall come up; what a size means is the domain's own."""
    seen: Phrasings
    """Phrasings that donors and gates are trained on."""
    unseen: Phrasings
    """Phrasings that only the test has."""
    expressions: Phrasings
    """Bare questions, to be set among made-up words."""
    endings: tuple[str, ...]
    """What can stand between such a question and its answer."""

    def stream(self, seed: int, framed: float = 0.4) -> Iterator[Item]:
        """Training items without end: seen phrasings, and a share `framed` of made-up ones."""
        rng = random.Random(f"train {seed}")
        operations = tuple(self.seen)
        while True:
            operation, size = rng.choice(operations), rng.choices(self.sizes)[0]
            invented = rng.random() < framed
            phrasing = self._frame(operation, rng) if invented else rng.choice(self.seen[operation])
            yield self._item(operation, size, "train", phrasing, not invented, rng)

    def items(self, split: Split, count: int, seed: int, unseen: float = 0.0) -> list[Item]:
        """`count` distinct items of a split, a share `unseen` of them in phrasings that training never shows.

        Operations alternate; sizes come up as often as `sizes` says. Raises BadInput when the split has no more.
        """
        rng = random.Random(f"{split} {seed}")
        operations = tuple(self.seen)
        hidden = round(count * unseen)
        made: dict[str, Item] = {}
        stale = 0
        while len(made) < count:
            index = len(made)
            operation = operations[index % len(operations)]
            size = self.sizes[index // len(operations) % len(self.sizes)]
            seen = index >= hidden
            phrasing = rng.choice((self.seen if seen else self.unseen)[operation])
            item = self._item(operation, size, split, phrasing, seen, rng)
            stale = stale + 1 if item.prompt in made else 0
            if stale > _TRIES:
                raise BadInput(f"Expected {count} distinct items of the {split} split, got {index}; ask for fewer.")
            made.setdefault(item.prompt, item)
        return list(made.values())

    def _item(self, operation: str, size: int, split: Split, phrasing: str, seen: bool, rng: random.Random) -> Item:
        question = self.draw(operation, size, rng)
        while split_of(question.fact) != split:
            question = self.draw(operation, size, rng)
        prompt = phrasing
        for name, value in question.values.items():
            prompt = prompt.replace(f"{{{name}}}", value)
        return Item(prompt, f" {question.answer}.", operation, question.digits, phrasing, seen, question.pair)

    def _frame(self, operation: str, rng: random.Random) -> str:
        """A phrasing of made-up words around the question, so that training does not tie the skill to a template."""
        words = ["".join(rng.choice("bcdfghklmnprstvw") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
                 for _ in range(rng.randint(0, 7))]  # fmt: skip
        words = [word + rng.choice("nrst") if rng.random() < 0.4 else word for word in words]
        cut = rng.randint(0, len(words))
        before, after = " ".join(words[:cut]), " ".join(words[cut:])
        if before and rng.random() < 0.7:
            before = before[0].upper() + before[1:]
        if before and rng.random() < 0.3:
            before += ":"
        expression = rng.choice(self.expressions[operation])
        joint = rng.choice(("", "", ".", "?", ",")) if after else rng.choice(("", "", ".", "?"))
        ending = rng.choice(self.endings)
        body = " ".join(part for part in (before, expression + joint, after) if part)
        return body + ending if ending == ":" else f"{body} {ending}"


def split_of(fact: str) -> Split:
    """The split that owns a fact, the same for ever."""
    bucket = int.from_bytes(hashlib.sha256(fact.encode()).digest()[:8], "big") % 100
    if bucket < _TEST_PERCENT:
        return "test"
    return "calibration" if bucket < _TEST_PERCENT + _CALIBRATION_PERCENT else "train"
