"""The figures that matter, flat, a file a variant: `dvc metrics show` makes them one table with a line a variant."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.command import run
from stages.storage import new_directory, read_json, write_json

FIGURES = {"gain": "gain", "retention_change": "retention", "perplexity_ratio": "perplexity"}
"""What verdicts rest on, and the short names of its columns: the changes of accuracy on the capability and on other
questions, and the perplexity on text as a ratio to the target's."""


def flat(entry: Mapping[str, Any]) -> dict[str, float | str]:
    """`{NAME, NAME_low, NAME_high}` of each figure that there is, and the verdict."""
    told: dict[str, float | str] = {}
    for figure, name in FIGURES.items():
        if found := entry.get(figure):
            told |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
    return told | {"verdict": entry["verdict"]}


def main(summary: Path, out: Path) -> None:
    """Write `out`/VARIANT.json for every variant of the summary."""
    variants = read_json(summary)["variants"]
    with new_directory(out) as directory:
        for name, entry in variants.items():
            write_json(directory / f"{name}.json", flat(entry))
    print(f"{len(variants)} variants")


if __name__ == "__main__":
    run(main)
