"""The summary in Markdown, in the same words and figures as the page beside it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stages.pages.plots import Plot
from stages.pages.roles import Roles, models
from stages.pages.words import figure, finding, inert, others

_INTERVAL = re.compile(r"\\\[([+−\d., ]+)\\\]")
_COUNTED = re.compile(r"\\\((n = \d+)\\\)")
_COLUMNS = {
    "capability": "capability",
    "gain": "gain",
    "recovery": "recovery",
    "retention": "retention",
    "perplexity_ratio": "perplexity ratio",
    "kl_to_target": "KL to target",
}


def markdown(summary: Mapping[str, Any], roles: Roles) -> str:
    """The finding and the table of verdicts."""
    every = models(summary, roles)
    counts = {name: {e[name]["n"] for _, _, e in every if e.get(name)} for name in _COLUMNS}
    heads = [f"{words} (n = {min(counts[name])})" if counts[name] else words for name, words in _COLUMNS.items()]
    rows = [
        [name, *(figure(entry, key) for key in _COLUMNS), entry.get("verdict", role)] for name, role, entry in every
    ]
    said = " ".join(filter(None, (finding(summary, roles), others(summary, roles))))
    table = _table(["model", *heads, "verdict"], rows)
    return f"{inert(said)}\n\n{table}\nIn brackets: bootstrap intervals, paired by item.\n"


def measured(topics: Sequence[tuple[str, Sequence[tuple[str, Mapping[str, str]]]]], names: Sequence[str]) -> str:
    """The figures beyond the verdict's, a table a topic with a column for each of the variants `names`."""
    parts = []
    for heading, rows in topics:
        if heading != "Verdict" and names:
            table = _table(["", *names], [[words, *(cells[name] for name in names)] for words, cells in rows])
            parts.append(f"## {heading}\n\n{table}")
    return "\n".join(parts)


def images(drawn: Mapping[str, Plot]) -> str:
    """The charts by file name, each with what it says."""
    return "\n".join(f"![{inert(plot.title)}. {inert(plot.caption)}]({name})\n" for name, plot in drawn.items())


def _cell(words: str) -> str:
    return _INTERVAL.sub(r"[\1]", _COUNTED.sub(r"(\1)", inert(words)))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, every cell inert but for the brackets of intervals."""
    told = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in (heads, *rows)]
    return "\n".join([told[0], "|---" * len(heads) + "|", *told[1:]]) + "\n"
