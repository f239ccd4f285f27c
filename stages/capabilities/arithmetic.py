"""Addition and subtraction up to three digits, in many phrasings; a sum and its commuted sum are one fact."""

import random

from stages.capabilities.questions import Domain, Question

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
_EXPRESSIONS = {
    "addition": ("{a} + {b}", "{a} plus {b}"),
    "subtraction": ("{a} - {b}", "{a} minus {b}"),
}
_SENTENCES = {
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


def fact(operation: str, a: int, b: int) -> str:
    """What has to be known: operation and operands, the smaller addend first."""
    return f"{operation} {min(a, b)} {max(a, b)}" if operation == "addition" else f"{operation} {a} {b}"


def _draw(operation: str, size: int, rng: random.Random) -> Question:
    """Operands of which the longer has `size` digits; differences are never negative."""
    low, high = (0, 9) if size == 1 else (10 ** (size - 1), 10**size - 1)
    a, b = rng.randint(low, high), rng.randint(0, high)
    while operation == "subtraction" and a < b:
        a, b = rng.randint(low, high), rng.randint(0, high)
    if operation == "addition" and rng.random() < 0.5:
        a, b = b, a
    result = a + b if operation == "addition" else a - b
    pair = f"{operation} {a} {b}"
    return Question({"a": str(a), "b": str(b)}, str(result), pair, fact(operation, a, b), size)


def _asked(templates: tuple[str, ...], operation: str) -> tuple[str, ...]:
    return tuple(asked.replace("{x}", x) for asked in templates for x in _EXPRESSIONS[operation])


DOMAIN = Domain(
    about="additions and subtractions of numbers up to three digits",
    draw=_draw,
    sizes=(1, 2, 2, 2, 3, 3, 3, 3, 3, 3),
    seen={operation: _asked(_ASKED, operation) + more for operation, more in _SENTENCES.items()},
    unseen={operation: _asked(_HELD_OUT, operation) for operation in _SENTENCES},
    expressions=_EXPRESSIONS,
    endings=("=", ":", ":", "is", "equals", "you get"),
)
