"""Chart of the selections among a donor's modules: what each brings of the capability, and what it costs."""

import altair as alt
import pandas as pd

from stages.pages.layers import values
from stages.pages.plots import INKS, LINES, PALETTE, QUARTERS, Plot, decades, numbers, plot

_METHODS = {
    "strengths": PALETTE[0],
    "subset": PALETTE[1],
    "random strengths": PALETTE[2],
    "random subset": PALETTE[7],
    "gain": PALETTE[3],
    "gain over harm": PALETTE[4],
    "all": INKS[0],
    "donor": PALETTE[6],
}
_FLOOR = 1e-3
_COLUMNS = ("method", "size", "strength", "match", "match_low", "match_high", "divergence", "capability", "passes")


def selection(rows: pd.DataFrame, donor: str) -> Plot | None:
    """Right answers against divergence on what was held out of the selecting, one line a method."""
    if not set(_COLUMNS) <= set(rows.columns):
        return None
    found = rows.loc[rows.method.isin(list(_METHODS)), list(_COLUMNS)].sort_values("divergence", kind="stable")
    if not len(found):
        return None
    found["divergence"] = found.divergence.clip(lower=_FLOOR)
    methods = [method for method in _METHODS if (found.method == method).any()]
    cost = alt.X(
        "divergence:Q",
        title="divergence from the target, nats a token",
        scale=alt.Scale(type="log", nice=False),
        axis=decades([{"value": value} for value in found.divergence]),
    )
    share = {"title": "right answers", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", values=QUARTERS)}
    base = alt.Chart(values(found)).encode(
        x=cost,
        color=alt.Color(
            "method:N",
            title=None,
            legend=LINES,
            scale=alt.Scale(domain=methods, range=[_METHODS[method] for method in methods]),
        ),
    )
    line = base.mark_line(strokeWidth=1.6).encode(y=alt.Y("match:Q", **share), order="divergence:Q")
    interval = (
        base.transform_filter("datum.method === 'strengths' || datum.method === 'random strengths'")
        .mark_rule(opacity=0.5)
        .encode(y=alt.Y("match_low:Q", **share), y2="match_high:Q")
    )
    point = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=alt.Y("match:Q", **share),
        tooltip=["method:N", "size:Q", "passes:Q",
                 *numbers("strength", "match", "match_low", "match_high", "divergence", "capability")],
    )  # fmt: skip
    counts = f"n = {int(rows.prompts.max())} answers and {int(rows.texts.max())} pieces of text"
    caption = (
        "Copied weights: up is more of the capability, left is less harm. Strengths are each part's own, a subset has "
        f"one for all; random is the same dealt out blindly. Held out of the selecting, {counts}."
    )
    return plot("Selections among the modules", caption, alt.layer(interval, line, point), 320, donor)
