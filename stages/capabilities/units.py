"""Measures in other units, where one is a whole number of the other; to the smaller unit and back to the larger.

A multiple of a factor is one fact, whatever the units and the direction: what 12 feet are in inches, 12 years in months
and 144 inches in feet is known or not known together.
"""

import random

from stages.capabilities.questions import Domain, Question

_CONVERSIONS = {
    "length": (
        (("foot", "feet"), ("inch", "inches"), 12, 99),
        (("yard", "yards"), ("foot", "feet"), 3, 300),
        (("centimetre", "centimetres"), ("millimetre", "millimetres"), 10, 500),
        (("metre", "metres"), ("centimetre", "centimetres"), 100, 99),
    ),
    "time": (
        (("week", "weeks"), ("day", "days"), 7, 120),
        (("year", "years"), ("month", "months"), 12, 99),
        (("minute", "minutes"), ("second", "seconds"), 60, 99),
        (("hour", "hours"), ("minute", "minutes"), 60, 99),
    ),
    "weight": (
        (("stone", "stone"), ("pound", "pounds"), 14, 50),
        (("pound", "pounds"), ("ounce", "ounces"), 16, 50),
        (("gram", "grams"), ("carat", "carats"), 5, 300),
    ),
    "volume": (
        (("quart", "quarts"), ("pint", "pints"), 2, 500),
        (("gallon", "gallons"), ("quart", "quarts"), 4, 250),
        (("gallon", "gallons"), ("pint", "pints"), 8, 120),
    ),
}
"""Dimension → larger unit, smaller unit, how many of these make one of those, and up to how many are converted."""
_ASKED = (
    "Convert {a} to {b}:",
    "{a} in {b} is",
    "{a} to {b}:",
    "{a} to {b} =",
    "How many {b} are in {a}? Answer:",
    "Question: How many {b} are there in {a}?\nAnswer:",
    "Question: Convert {a} to {b}.\nAnswer:",
    "Express {a} in {b}:",
    "Q: {a} in {b}\nA:",
    "What is {a} in {b}? Answer:",
    "Change {a} into {b}:",
    "The number of {b} in {a} is",
)
_HELD_OUT = (
    "Please turn {a} into {b} for me:",
    "If you have {a}, then in {b} you have",
    "Exercise: write {a} in {b}. Solution:",
    "On the label it says {a}; counted in {b} that makes",
    "Tell me how many {b} make {a}. Reply:",
    "My homework asks for {a} in {b}, and that is",
)


def _draw(operation: str, size: int, rng: random.Random) -> Question:
    """A multiple of `size` digits where the units allow it, else a shorter one; half of them to the larger unit."""
    large, small, factor, limit = rng.choice(_CONVERSIONS[operation])
    low = min(10 ** (size - 1), 10 ** (len(str(limit)) - 1))
    count = rng.randint(low, min(limit, 10 * low - 1))
    given, wanted = (count, large), (count * factor, small)
    if rng.random() < 0.5:
        given, wanted = wanted, given
    number, names = given
    unit = names[number > 1]
    values = {"a": f"{number} {unit}", "b": wanted[1][1]}
    pair = f"{operation} {number} {unit} {wanted[1][1]}"
    return Question(values, str(wanted[0]), pair, f"units {factor} {count}", len(str(number)))


DOMAIN = Domain(
    about="conversions of lengths, times, weights and volumes between units, with whole numbers",
    draw=_draw,
    sizes=(1, 2, 2, 2, 3),
    seen=dict.fromkeys(_CONVERSIONS, _ASKED),
    unseen=dict.fromkeys(_CONVERSIONS, _HELD_OUT),
    expressions=dict.fromkeys(_CONVERSIONS, ("{a} in {b}", "{a} to {b}")),
    endings=("=", ":", ":", "is", "equals", "you get"),
)
