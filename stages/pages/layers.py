"""Charts over the layers: what changed there, what it causes, and how well it can be bridged."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from stages.pages.charts import PALETTE, Plot, among, dash, numbers, plot

_CATALOG = {
    "change": ("Change by layer", "relative change", "How far the donor's states lie from the target's, by site."),
    "cka": ("Similarity by layer", "CKA", "1 where both models see the same items as alike; what falls is what was learned."),
}
_KINDS = ("block", "attention", "mlp")


def catalog(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """What the analysis measured of each site, on the capability's prompts and on text."""
    if "donor_layer" in rows and (rows.donor_layer != rows.layer).any():
        return _pairs(rows, donor)
    plots = []
    for measure, (title, unit, caption) in _CATALOG.items():
        columns = {f"{on}_{measure}": on for on in ("capability", "text") if f"{on}_{measure}" in rows}
        if "layer" not in rows or not columns:
            continue
        kinds = rows[rows.kind.isin(_KINDS)] if "kind" in rows else rows.assign(kind="block")
        long = kinds.melt(["layer", "kind"], list(columns), "measured", "value").dropna(subset=["value", "layer"])
        long["measured"] = long["measured"].map(columns)
        if not len(long):
            continue
        found = [kind for kind in _KINDS if (long.kind == kind).any()]
        lines = (
            alt.Chart(values(long))
            .mark_line(strokeWidth=1.8)
            .encode(
                x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
                y=alt.Y("value:Q", title=unit),
                color=alt.Color("measured:N", title="on", scale=among(["capability", "text"])),
                strokeDash=alt.StrokeDash("kind:N", title="site", scale=dash(found)),
                tooltip=["layer:Q", "kind:N", "measured:N", *numbers("value")],
            )
        )
        plots.append(plot(f"{title}: {donor}", caption, lines))
    return plots


def _pairs(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """Similarity of every donor layer to every target layer, for a donor of another width."""
    plots = []
    for on in ("capability", "text"):
        column = f"{on}_cka"
        if column in rows and rows[column].notna().any():
            cells = rows.rename(columns={column: "value", "layer": "target_layer"})
            cells = cells.dropna(subset=["value", "donor_layer", "target_layer"])
            caption = "CKA of the donor's layer with the target's: bright pairs see the same items as alike."
            plots.append(_grid(f"Similarity on {on}: {donor}", caption, cells, "CKA"))
    return plots


def _grid(title: str, caption: str, cells: pd.DataFrame, unit: str) -> Plot:
    chart = (
        alt.Chart(values(cells[["donor_layer", "target_layer", "value"]]))
        .mark_rect()
        .encode(
            x=alt.X("target_layer:O", title="target layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("donor_layer:O", title="donor layer", sort="descending"),
            color=alt.Color("value:Q", title=unit, scale=alt.Scale(scheme="viridis")),
            tooltip=["donor_layer:O", "target_layer:O", *numbers("value")],
        )
    )
    return plot(title, caption, chart, alt.Step(26))


def trace(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """What exchanging a whole layer between donor and target causes, with intervals."""
    rows = rows[rows.site.str.fullmatch(r"layers\.\d+")] if "site" in rows else rows
    wanted = {
        "capability": ("Effect on the capability", "What is gained where this layer alone comes from the donor."),
        "retention": ("Effect on text", "How far the target's predictions on text move by the same exchange."),
    }
    plots = []
    for part, (title, caption) in wanted.items():
        found = _figure(rows, part)
        if found is None:
            continue
        names = list(dict.fromkeys(found["intervention"]))
        base = alt.Chart(values(found)).encode(
            x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
            color=alt.Color("intervention:N", title="exchanged", scale=among(names)),
        )
        line = base.mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(filled=True, size=22)).encode(
            y=alt.Y("value:Q", title=found.attrs["unit"]),
            tooltip=["intervention:N", "layer:Q", *numbers("value", *(("low", "high") if "low" in found else ()))],
        )
        band = [base.mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q")] if "low" in found else []
        plots.append(plot(f"{title}: {donor}", caption, alt.layer(*band, line)))
    return plots


def _figure(rows: pd.DataFrame, part: str) -> pd.DataFrame | None:
    """layer, intervention, value and, where there, low and high of the columns that begin with `part`."""
    mine = [c for c in rows.columns if c.startswith(part)]
    ends = {end: next((c for c in mine if c.endswith(f"_{end}")), None) for end in ("low", "high")}
    value = next((c for c in mine if c not in ends.values()), None)
    if value is None or "layer" not in rows:
        return None
    found = {"layer": rows["layer"], "value": rows[value]}
    found["intervention"] = (
        rows["intervention"].astype(str).str.replace("_", " ") if "intervention" in rows else pd.Series("states", rows.index)
    )
    if all(ends.values()):
        found |= {end: rows[column] for end, column in ends.items()}
    frame = pd.DataFrame(found).dropna(subset=["layer", "value"])
    frame.attrs["unit"] = "KL, nats a token" if value.endswith("kl") else "effect"
    return frame if len(frame) else None


def alignment(rows: Sequence[Mapping[str, Any]], donor: str) -> list[Plot]:
    """Quality of the bridges on rows that the fit did not see, beside that of the donor's states as they are."""
    frame = pd.DataFrame(list(rows))
    if not {"donor_layer", "target_layer", "kind"} <= set(frame.columns):
        return []
    alike = (frame.donor_layer == frame.target_layer).all()
    frame["onto"] = "its like" if alike else "layer " + frame.target_layer.astype(str)
    plots = []
    for measure, title in (("cosine", "Cosine"), ("r2", "R²")):
        before = frame.assign(kind="none") if f"{measure}_before" in frame else frame.iloc[:0]
        found = [frame.assign(value=frame.get(measure)), before.assign(value=before.get(f"{measure}_before"))]
        long = pd.concat(found)[["donor_layer", "onto", "kind", "value"]].dropna().drop_duplicates()
        if not len(long):
            continue
        kinds = sorted(set(long.kind) - {"none"})
        chart = (
            alt.Chart(values(long))
            .mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(filled=True, size=22))
            .encode(
                x=alt.X("donor_layer:Q", title="donor layer", axis=alt.Axis(tickMinStep=1)),
                y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
                color=alt.Color("kind:N", title="bridge", scale=among([*kinds, "none"])),
                strokeDash=alt.StrokeDash("onto:N", title="onto", scale=dash(list(dict.fromkeys(long.onto)))),
                tooltip=["donor_layer:Q", "kind:N", "onto:N", *numbers("value")],
            )
        )
        caption = "The donor's states against the target's on held-out rows, through each bridge and without one."
        plots.append(plot(f"{title} of the bridges: {donor}", caption, chart))
    return plots


def values(frame: pd.DataFrame) -> alt.Data:
    """The rows inline, to six figures."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return alt.Data(values=[{k: _short(v) for k, v in record.items()} for record in records])


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
