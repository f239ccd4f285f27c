"""Charts over the layers: what exchanging them causes, and how well they can be bridged."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from stages.pages.plots import LINES, Plot, among, numbers, plot

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
_UNBRIDGED, _OUTLINE = "none", "#e0402f"


def grid(title: str, caption: str, cells: pd.DataFrame, unit: str, donor: str) -> Plot:
    """The `value` of each pair of a donor's and a target's layer; the one marked `best` is outlined."""
    kept = [name for name in ("donor_layer", "target_layer", "value", "kind", "best") if name in cells]
    base = alt.Chart(values(cells.loc[:, kept])).encode(
        x=alt.X("target_layer:O", title="target layer", axis=alt.Axis(values=some(cells.target_layer), labelAngle=0)),
        y=alt.Y("donor_layer:O", title="donor layer", sort="descending"),
    )
    heat = base.mark_rect().encode(
        color=alt.Color("value:Q", title=unit, scale=alt.Scale(scheme="viridis")),
        tooltip=["donor_layer:O", "target_layer:O", *(["kind:N"] if "kind" in kept else []), *numbers("value")],
    )
    outline = base.mark_rect(filled=False, stroke=_OUTLINE, strokeWidth=2.5).transform_filter("datum.best")
    chart = heat + outline if "best" in kept else heat
    return plot(title, caption, chart, 30 * cells.donor_layer.nunique(), donor)


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
    """Quality of the bridges on rows that the fit did not see, beside that of the donor's states as they are.

    Lines where each donor layer meets one of the target's, a grid of the pairs where it meets several, of each pair
    the bridge with the highest R². A ring, or an outline, marks the best of all.
    """
    frame = pd.DataFrame(list(rows))
    if not {"donor_layer", "target_layer", "kind"} <= set(frame.columns):
        return []
    frame = frame.assign(best=frame.get("best", False))
    alike = bool((frame.donor_layer == frame.target_layer).all())
    several = not alike and frame.target_layer.nunique() > 1
    plots = []
    for measure, title in (("cosine", "Cosine"), ("r2", "R²")):
        if measure not in frame or not bool(frame[measure].notna().any()):
            continue
        caption = "The donor's states against the target's on held-out rows" + _counted(frame)
        if several:
            cells = frame.assign(value=frame[measure]).dropna(subset=["value"])
            cells = cells.sort_values("r2" if "r2" in cells else "value", ascending=False, kind="stable")
            cells = cells.drop_duplicates(["donor_layer", "target_layer"])
            caption += " Of each pair the bridge with the highest R²; an outline marks the best of all."
            plots.append(grid(f"{title} of the bridges", caption, cells, title, donor))
        else:
            onto = "its like" if alike else f"layer {frame.target_layer.iloc[0]}"
            plots.append(_lines(frame, measure, title, f"{caption} Onto {onto}.", donor))
    return plots


def _counted(frame: pd.DataFrame) -> str:
    """How many rows bridges were fitted and judged on, as the end of a sentence."""
    counts = [frame[name].max() for name in ("rows_fit", "rows_held_out") if name in frame]
    return f": {counts[0]:,} fitted on, {counts[1]:,} judged." if len(counts) == 2 else "."


def _lines(frame: pd.DataFrame, measure: str, title: str, caption: str, donor: str) -> Plot:
    """One line a kind of bridge over the donor's layers, and one for the states without any."""
    found = [frame.assign(value=frame[measure])]
    if f"{measure}_before" in frame:
        found.append(frame.assign(kind=_UNBRIDGED, value=frame[f"{measure}_before"], best=False))
    long = pd.concat(found).loc[:, ["donor_layer", "target_layer", "kind", "value", "best"]]
    long = long.dropna(subset=["value"]).drop_duplicates()
    kinds = sorted(set(long.kind), key=lambda kind: (kind == _UNBRIDGED, kind))
    base = alt.Chart(values(long)).encode(
        x=over("donor_layer", long.donor_layer),
        y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
        color=alt.Color("kind:N", title="bridge", legend=LINES, scale=among(kinds)),
        tooltip=["donor_layer:Q", "target_layer:Q", "kind:N", *numbers("value")],
    )
    lines = base.mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(filled=True, size=22))
    best = long[long.best.astype(bool)]
    if len(best):
        ring = base.properties(data=values(best)).mark_point(filled=False, size=160, strokeWidth=1.8)
        lines, caption = lines + ring, f"{caption} A ring marks the best bridge."
    return plot(f"{title} of the bridges", caption, lines, about=donor)


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
