"""What the making of a graft tells, beside what its evaluation finds: figures and curves, the same bytes every time."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.settings import Settings
from stages.storage import write_json

Curve = Mapping[str, Any]
"""`x` and `y`, what the axes are, and `points`, pairs of numbers."""


def curve(x: str, y: str, points: Sequence[tuple[float, float]]) -> Curve:
    """A line of points over labelled axes."""
    return {"x": x, "y": y, "points": [[rounded(a), rounded(b)] for a, b in points]}


def rounded(value: float | None) -> float | None:
    """To six significant digits; None where there is no number."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def write_making(
    path: Path, way: str, donors: Sequence[str], recipe: Settings, moved: int, added: int,
    figures: Mapping[str, float | None], curves: Mapping[str, Curve] | None = None,
) -> None:  # fmt: skip
    """`data/making/NAME.json`: parameters that came from the donors, those that the graft has more than the target (or
    fewer), and what was measured on the way."""
    write_json(
        path,
        {
            "way": way,
            "donors": list(donors),
            "recipe": recipe.model_dump(mode="json"),
            "parameters": {"moved": moved, "added": added},
            "figures": {name: rounded(value) for name, value in figures.items()},
            "curves": dict(curves or {}),
        },
    )
