"""Text that others wrote, as a terminal may show it."""

import unicodedata

_PICTURES = {**{code: chr(0x2400 + code) for code in range(0x20)}, 0x7F: "␡"}


def visible(text: str) -> str:
    """`text` on one line, without anything that a terminal would act on: each control character as its picture (␛ for
    ESC, ␊ for a line's end), each that turns the direction of writing, joins or has no glyph as its number (\\u202e).
    """
    return "".join(_PICTURES.get(ord(sign)) or (_number(sign) if _acts(sign) else sign) for sign in text)


def _acts(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _number(sign: str) -> str:
    return f"\\u{ord(sign):04x}"
