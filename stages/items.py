"""Prompts with their answers, and texts, as stages read them: no row is without its words."""

from pathlib import Path
from typing import Any

from stages.errors import BadInput
from stages.storage import read_jsonl

PROMPT = ("prompt", "answer")
TEXT = ("text",)
"""The keys of a capability's item and of a text."""


def read_items(path: Path, keys: tuple[str, ...], count: int | None = None) -> list[dict[str, Any]]:
    """The first `count` rows of a JSONL file, or all, each with words under all of `keys`.

    Raises BadInput that names the row when one lacks a key or has nothing but space there, and when there is no row.
    """
    rows = read_jsonl(path)[:count]
    for number, row in enumerate(rows, start=1):
        for key in keys:
            value = row.get(key) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                name = f", {row['id']}" if isinstance(row, dict) and "id" in row and key != "id" else ""
                got = f"{value!r}" if isinstance(row, dict) and key in row else "no such key"
                raise BadInput(
                    f"Expected words under {key!r} in each row of {path}, got {got} in line {number}{name}; complete "
                    "the row or remove it."
                )
    return rows
