"""The report's figures as a table for the terminal: one row a model, one column a measure, each with its interval."""

import json
from pathlib import Path

SUMMARY = Path("data/report/summary.json")
PAGE = Path("data/report/index.html")
MEASURES = {
    "capability": ("capability", 3),
    "recovery": ("recovery", 3),
    "retention": ("retention", 3),
    "perplexity_ratio": ("perplexity ratio", 3),
    "kl_to_target": ("KL to target", 4),
}
"""Key in the summary → heading and decimals."""


def results(root: Path) -> str:
    """The table and the path of the report, as far as the report stage has made them; otherwise an empty string."""
    parts = []
    if (root / SUMMARY).exists():
        parts.append(table(json.loads((root / SUMMARY).read_text(encoding="utf-8"))))
    if (root / PAGE).exists():
        parts.append(f"report: {PAGE.as_posix()}")
    return "\n\n".join(parts)


def table(summary: dict) -> str:
    """The summary as aligned text: value, [interval], and n in the heading, or in the cells where it differs by row."""
    models = [("target", summary.get("target"))]
    models += [(f"donor {name}", entry) for name, entry in summary.get("donors", {}).items()]
    models += list(summary.get("variants", {}).items())
    models = [(name, entry) for name, entry in models if entry]
    columns = [[""] + [name for name, _ in models]]
    for key, (measure, decimals) in MEASURES.items():
        figures = [entry.get(key) for _, entry in models]
        counts = {figure["n"] for figure in figures if figure and figure.get("n") is not None}
        if not any(figures):
            continue
        heading = f"{measure} (n={min(counts)})" if len(counts) == 1 else measure
        columns.append([heading] + [cell(figure, decimals, len(counts) > 1) for figure in figures])
    return "\n".join(aligned(columns))


def cell(figure: dict | None, decimals: int, with_count: bool) -> str:
    """0.974 [0.951, 0.988]; a dash for what was not measured."""
    if not figure or figure.get("value") is None:
        return "–"
    text = f"{figure['value']:.{decimals}f}"
    if figure.get("low") is not None and figure.get("high") is not None:
        text += f" [{figure['low']:.{decimals}f}, {figure['high']:.{decimals}f}]"
    if with_count and figure.get("n") is not None:
        text += f" n={figure['n']}"
    return text


def aligned(columns: list[list[str]]) -> list[str]:
    """Lines of a table given by columns: the first flush left, the others flush right, a rule under the headings."""
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [row[0].ljust(widths[0])] + [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return [lines[0], "  ".join("─" * width for width in widths), *lines[1:]]
