"""Prompts, answers and names as a page shows them: cut where they are long, unable to turn the line around."""

import re

_TURNING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_LINE_ENDS = re.compile("\r\n?")


def tame(text: str) -> str:
    """`text` with unseen characters that control the terminal or the direction of writing replaced by their code
    points."""
    return _TURNING.sub(lambda found: f"‹U+{ord(found[0]):04X}›", _LINE_ENDS.sub("\n", text))


def shown(text: object, limit: int = 400) -> str:
    """`text`, tame, of at most `limit` characters and a note on how long it was; None is empty."""
    said = "" if text is None else str(text)
    kept = tame(said[:limit])
    return kept if len(said) <= limit else f"{kept}… ({len(said):,} characters in all)"
