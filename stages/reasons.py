"""Figures as JSON, with the reason where there is none."""

from collections.abc import Mapping
from typing import Any

from stages.maths.statistics import Estimate, Undefined


def told(figures: Mapping[str, Estimate | Undefined]) -> dict[str, Any]:
    """Each figure as `{value, low, high, n}` or null, and `undefined`: why each of these is null."""
    return {
        **{name: figure.rounded() if isinstance(figure, Estimate) else None for name, figure in figures.items()},
        "undefined": {name: figure.reason for name, figure in figures.items() if isinstance(figure, Undefined)},
    }


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Its numbers to six decimals: the last bits of a sum differ between machines."""
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
