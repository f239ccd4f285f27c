"""The one error a user causes: bad input, answered in one sentence."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """Input that Graftline cannot use; the message says what was expected, what was got and what to do."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt `name`: the closest valid spelling, or all of them when none is close."""
    names = sorted(str(v) for v in valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "valid are: " + ", ".join(names) if names else "none are valid here"
