"""What the charts share: inks, legends, ticks, and how a chart becomes a specification that takes the page's theme."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import altair as alt

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart

ROLES = ("target", "donor", "variant", "control")
INKS = ("#8a919c", "#9067b5", "#16897b", "#cf7a26")
"""One colour a role, in the order of ROLES; they read on light and dark paper."""
PALETTE = ("#16897b", "#3f74bd", "#cf7a26", "#9067b5", "#b8456b", "#7f8f2b", "#5a6f86", "#a8743d")
"""Colours of things that are alike, in order of appearance."""
QUARTERS = (0, 0.25, 0.5, 0.75, 1)
"""Ticks of a share."""
LINES = alt.Legend(symbolType="stroke", symbolStrokeWidth=2.5)
DASHES = alt.Legend(symbolType="stroke", symbolStrokeWidth=2, symbolStrokeColor=INKS[0])
"""The legends of a chart of lines, by colour and by dash."""
DIRECT = {"align": "left", "dx": 5, "fontSize": 11}
"""Of figures written beside bars."""
CHOSEN = alt.Scale(domain=alt.ExprRef("chosen"), range=list(PALETTE))
"""A colour for each of the variants that the reader chose to compare; the page's script keeps the list `chosen`, and
the name `shown` of the one variant that its other sections show."""


def chosen(field: str) -> str:
    """The condition on a row that its `field` names one of the chosen variants."""
    return f"indexof(chosen, datum.{field}) >= 0"


@dataclass(frozen=True)
class Plot:
    """A chart and what it says."""

    title: str
    caption: str
    """How to read it; also what a screen reader says of it."""
    spec: Mapping[str, Any]


def plot(title: str, caption: str, chart: Chart, height: int | alt.Step = 240, about: str = "") -> Plot:
    """`chart` as wide as its place on the page; `about` names what the heading above it names, for a screen reader."""
    described = f"{title}{', ' if about else ''}{about}. {caption}"
    width = "container" if isinstance(height, int) else 640  # the page's script widens those that grow with their rows
    spec = chart.properties(width=width, height=height, description=described).to_dict(validate=False)
    return Plot(title, caption, {key: value for key, value in spec.items() if key not in ("$schema", "config")})


def among(names: Sequence[str], inks: Sequence[str] = PALETTE) -> alt.Scale:
    """A colour for each name."""
    return alt.Scale(domain=list(names), range=[inks[i % len(inks)] for i in range(len(names))])


def dash(names: Sequence[str]) -> alt.Scale:
    """A dash pattern for each name, the first one solid."""
    patterns = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3])
    return alt.Scale(domain=list(names), range=[patterns[i % len(patterns)] for i in range(len(names))])


def decades(rows: Sequence[Mapping[str, Any]]) -> alt.Axis:
    """Ticks of a logarithmic axis over the rows' values: powers of ten, and steps between them on a short one."""
    low, high = (end(row["value"] for row in rows) for end in (min, max))
    steps = (1,) if high > 1000 * low else (1, 3) if high > 10 * low else (1, 2, 3, 5, 7)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [round(step * 10.0**e, 12) for e in exponents for step in steps]
    return alt.Axis(format="~g", values=[tick for tick in ticks if low <= tick <= high])


def numbers(*fields: str) -> list[alt.Tooltip]:
    """Tooltip lines of figures."""
    return [alt.Tooltip(f"{field}:Q", title=field.replace("_", " "), format=".4~g") for field in fields]


def dots(
    rows: Sequence[Mapping[str, Any]],
    row: str,
    colour: str,
    axis: Mapping[str, Any],
    inks: alt.Scale,
    keep: str | None = None,
    spread: bool = True,
) -> alt.LayerChart:
    """A point and its interval for each of `rows`, which have value, low, high and n: a line a `row`, and within it one
    a `colour`, where they `spread`. `axis` describes x; `keep` is a condition on rows."""
    base = alt.Chart(alt.Data(values=list(rows)))
    base = (base.transform_filter(keep) if keep else base).encode(
        y=alt.Y(f"{row}:N", sort=None, title=None, scale=alt.Scale(paddingInner=0.35)),
        color=alt.Color(f"{colour}:N", title=None, scale=inks, legend=alt.Legend() if colour != row else None),
    )
    if colour != row and spread:
        base = base.encode(yOffset=alt.YOffset(f"{colour}:N", sort=None))
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **axis), x2="high:Q")
    names = dict.fromkeys((row, colour))
    point = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=alt.X("value:Q", **axis),
        tooltip=[*(f"{name}:N" for name in names), *numbers("value", "low", "high"), "n:Q"],
    )
    return interval + point
