"""Operands: a capability's test question, and the same with one operand changed, so that the answer is another."""

import functools
import random
from collections import defaultdict

from stages.capabilities.domains import DOMAINS
from stages.capabilities.names import Name
from stages.capabilities.questions import Question, split_of
from stages.contrasts.pair import Category, Words, different
from stages.contrasts.words import DAYS

_DRAWS = 12_000  # of an operation, before those of other splits are left out


def operand(name: Name) -> Category:
    """Pairs of a capability, all of them from the split that is never trained on, in seen and unseen phrasings."""
    domain = DOMAINS[name]
    phrasings = {operation: (*domain.seen[operation], *domain.unseen[operation]) for operation in domain.seen}

    def moving(template: str, rng: random.Random) -> Words:
        operation, _, phrasing = template.partition(": ")
        one, other = _neighbours(name, operation, rng)
        return Words(_ask(phrasing, one), _ask(phrasing, other), f" {one.answer}.", f" {other.answer}.")

    def still(template: str, rng: random.Random) -> Words:
        """The same question in other words, or said on another day."""
        operation, _, phrasing = template.partition(": ")
        one, other = _neighbours(name, operation, rng)
        if rng.random() < 0.5:
            again = rng.choice([each for each in phrasings[operation] if each != phrasing])
            prompts = _ask(phrasing, one), _ask(again, one)
        else:
            day, another = different(rng, DAYS)
            prompts = f"It is {day}. {_ask(phrasing, one)}", f"It is {another}. {_ask(phrasing, one)}"
        return Words(*prompts, f" {one.answer}.", f" {other.answer}.")

    return Category(
        name="operand" if name == "arithmetic" else f"operand_{name}",
        templates=[f"{operation}: {phrasing}" for operation, each in phrasings.items() for phrasing in each],
        moving=moving,
        still=still,
    )


def _ask(phrasing: str, question: Question) -> str:
    for name, value in question.values.items():
        phrasing = phrasing.replace(f"{{{name}}}", value)
    return phrasing


def _neighbours(name: Name, operation: str, rng: random.Random) -> tuple[Question, Question]:
    """Two test questions that differ in one operand and in the answer."""
    groups = _groups(name, operation)
    while True:
        one, other = rng.sample(rng.choice(groups), 2)
        if one.answer != other.answer:
            return one, other


@functools.cache
def _groups(name: Name, operation: str) -> list[list[Question]]:
    """Test questions that are alike but for one word of what is asked, whichever it is.

    Numbers among their answers have as many digits, so that none is ruled out by its size.
    """
    domain, rng = DOMAINS[name], random.Random(f"operands {name} {operation}")
    asked: dict[tuple[str, ...], Question] = {}
    for number in range(_DRAWS):
        question = domain.draw(operation, domain.sizes[number % len(domain.sizes)], rng)
        if split_of(question.fact) == "test":
            asked.setdefault(tuple(" ".join(question.values.values()).split()), question)
    alike: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    for words, question in asked.items():
        digits = str(len(question.answer)) if question.answer.isdigit() else ""
        for place in range(len(words)):
            alike[(digits, *words[:place], "", *words[place + 1 :])].append(question)
    return [group for group in alike.values() if len({question.answer for question in group}) > 1]
