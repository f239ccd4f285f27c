"""Charts over the layers: what exchanging them causes, and how well they can be bridged."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from stages.pages.plots import DASHES, LINES, Plot, among, dash, numbers, plot

_TRACE = {
    "match": (
        "Effect on right answers",
        "change of exact match",
        "States: the donor's states leave this block of the target. Weights in: the donor's block in the target. "
        "Weights out: the target's block in the donor.",
    ),
    "capability": (
        "Effect on the answers' log-likelihood",
        "change, nats",
        "The same exchanges, on a finer scale: how much likelier the right answer becomes.",
    ),
    "retention_change": (
        "Effect on text",
        "change of KL, nats a token",
        "How far the same exchanges move the predictions on unrelated text from the target's.",
    ),
}


def trace(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """What exchanging a whole block between donor and target causes, with intervals."""
    if not {"layer", "intervention"} <= set(rows.columns):
        return []
    rows = rows.loc[rows.layer.notna()]
    names = {name: str(name).replace("_", " ") for name in dict.fromkeys(rows.intervention)}
    plots = []
    for measure, (title, unit, caption) in _TRACE.items():
        ends = [f"{measure}_low", f"{measure}_high"]
        if measure not in rows or not bool(rows[measure].notna().any()):
            continue
        found = rows[["layer"]].assign(exchanged=rows.intervention.map(names), value=rows[measure])
        found = found.assign(low=rows.get(ends[0]), high=rows.get(ends[1])).dropna(subset=["value"])
        base = alt.Chart(values(found)).encode(
            x=over("layer", found.layer),
            color=alt.Color("exchanged:N", title=None, legend=LINES, scale=among(list(names.values()))),
        )
        line = base.mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(filled=True, size=22)).encode(
            y=alt.Y("value:Q", title=unit), tooltip=["exchanged:N", "layer:Q", *numbers("value", "low", "high")]
        )
        band = base.mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q")
        plots.append(plot(title, caption, band + line, about=donor))
    return plots


def alignment(rows: Sequence[Mapping[str, Any]], donor: str) -> list[Plot]:
    """Quality of the bridges on rows that the fit did not see, beside that of the donor's states as they are."""
    frame = pd.DataFrame(list(rows))
    if not {"donor_layer", "target_layer", "kind"} <= set(frame.columns):
        return []
    alike = bool((frame.donor_layer == frame.target_layer).all())
    frame["onto"] = "its like" if alike else "layer " + frame.target_layer.astype(str)
    plots = []
    for measure, title in (("cosine", "Cosine"), ("r2", "R²")):
        before = frame.assign(kind="none") if f"{measure}_before" in frame else frame.iloc[:0]
        found = [frame.assign(value=frame.get(measure)), before.assign(value=before.get(f"{measure}_before"))]
        long = pd.concat(found).loc[:, ["donor_layer", "onto", "kind", "value"]].dropna().drop_duplicates()
        if not len(long):
            continue
        kinds = sorted(set(long.kind), key=lambda kind: (kind == "none", kind))
        chart = (
            alt.Chart(values(long))
            .mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(filled=True, size=22))
            .encode(
                x=over("donor_layer", long.donor_layer),
                y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
                color=alt.Color("kind:N", title="bridge", legend=LINES, scale=among(kinds)),
                strokeDash=alt.StrokeDash(
                    "onto:N", title="onto", legend=None if alike else DASHES, scale=dash(list(dict.fromkeys(long.onto)))
                ),
                tooltip=["donor_layer:Q", "kind:N", "onto:N", *numbers("value")],
            )
        )
        caption = "The donor's states against the target's on held-out rows, through each bridge and without one."
        plots.append(plot(f"{title} of the bridges", caption, chart, about=donor))
    return plots


def over(field: str, layers: pd.Series) -> alt.X:
    """Layers along the chart, ticks at whole ones."""
    axis = alt.Axis(values=some(layers), format="d", labelOverlap=True)
    return alt.X(f"{field}:Q", title=field.replace("_", " "), scale=alt.Scale(nice=False, zero=False), axis=axis)


def some(layers: pd.Series) -> list[int]:
    """Layers to name: all, or every second, fifth or so where they are many."""
    low, high = int(layers.min()), int(layers.max())
    step = next((s for s in (1, 2, 5, 10, 20) if (high - low) / s <= 16), 50)
    return [layer for layer in range(low, high + 1) if layer % step == 0]


def values(frame: pd.DataFrame) -> alt.Data:
    """The rows inline, to six figures."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return alt.Data(values=[{k: _short(v) for k, v in record.items()} for record in records])


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
