"""The calendar: weekdays and months some steps on or back, days on or back within a month, and days between two of it.

Days of a month are one fact in every month that has them, and a step on and the step back that undoes it are one.
"""

import random

from stages.capabilities.questions import Domain, Question

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31, "February": 28, "March": 31, "April": 30, "May": 31, "June": 30, "July": 31, "August": 31,
    "September": 30, "October": 31, "November": 30, "December": 31,
}  # fmt: skip
"""With their days in a common year."""
_STEPS = {"weekday": (("day", "days"), 24), "month": (("month", "months"), 20)}
"""The unit of a step, and how many at most."""

_ASKED = (
    "{x} is",
    "{x} comes",
    "{x}:",
    "What {noun} is {x}? Answer:",
    "Question: What {noun} is {x}?\nAnswer:",
    "Question: Which {noun} comes {x}?\nAnswer:",
    "Q: {x}\nA:",
    "Name the {noun} {x}:",
    "The {noun} {x} is",
    "Give the {noun} that is {x}:",
)
_HELD_OUT = (
    "Please tell me which {noun} falls {x}:",
    "Exercise: find the {noun} {x}. Solution:",
    "We meet {x}, so the {noun} we meet is",
    "Somebody asked for the {noun} {x}. Reply:",
    "In the calendar I looked {x} and found",
)
_NOUNS = {"weekday": "day of the week", "month": "month", "day": "date"}
_COUNTED = (
    "How many days {x}? Answer:",
    "Question: How many days are there {x}?\nAnswer:",
    "The number of days {x} is",
    "Count the days {x}:",
    "Days {x}:",
    "Q: days {x}\nA:",
    "How long is it {x} in days? Answer:",
    "{x}, days:",
)
_COUNTED_HELD_OUT = (
    "Please tell me how many days pass {x}:",
    "Exercise: work out the days {x}. Solution:",
    "My journey lasted {x}; in days it took",
    "Somebody asked how long it is {x}. Reply in days:",
)


def _asked(templates: tuple[str, ...], counted: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    asked = {name: tuple(each.replace("{noun}", noun) for each in templates) for name, noun in _NOUNS.items()}
    return asked | {"span": counted}


def _draw(operation: str, size: int, rng: random.Random) -> Question:
    """A number of steps, or a later day, of `size` digits."""
    low, high = 10 ** (size - 1), 10**size - 1
    back = rng.random() < 0.5
    if operation in _STEPS:
        names = WEEKDAYS if operation == "weekday" else tuple(MONTHS)
        unit, most = _STEPS[operation]
        steps, start = rng.randint(low, min(high, most)), rng.randrange(len(names))
        end = (start + (-steps if back else steps)) % len(names)
        x = f"{steps} {unit[steps > 1]} {'before' if back else 'after'} {names[start]}"
        fact = f"{operation} {steps} {end if back else start}"
        return Question({"x": x}, names[end], f"{operation} {x}", fact, size)
    month = rng.choice(tuple(MONTHS))
    late = rng.randint(max(2, low), min(high, MONTHS[month]))
    early = rng.randint(1, late - 1)
    if operation == "span":
        x = f"from {month} {early} to {month} {late}"
        return Question({"x": x}, str(late - early), f"span {early} {late}", f"span {early} {late}", size)
    steps = late - early
    start, end = (late, early) if back else (early, late)
    x = f"{steps} {'days' if steps > 1 else 'day'} {'before' if back else 'after'} {month} {start}"
    return Question({"x": x}, f"{month} {end}", f"day {x}", f"span {early} {late}", size)


DOMAIN = Domain(
    about="weekdays, months and dates some steps before or after another, and the days between two dates of a month",
    draw=_draw,
    sizes=(1, 1, 2, 2, 2),
    seen=_asked(_ASKED, _COUNTED),
    unseen=_asked(_HELD_OUT, _COUNTED_HELD_OUT),
    expressions=dict.fromkeys(_NOUNS, ("{x}",)) | {"span": ("days {x}", "the days {x}")},
    endings=(":", ":", "is", "gives", "="),
)
