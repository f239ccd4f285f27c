"""Charts of a donor's catalog: where it departs from the target, by which parts, and what either knows by then."""

import altair as alt
import pandas as pd

from stages.pages.layers import grid, over, some, values
from stages.pages.plots import DASHES, LINES, Plot, among, dash, numbers, plot

_ON = ("capability", "text")
_KINDS = ("block", "attention", "mlp")
_LINES = {
    "change": (
        "Change by layer",
        "relative change",
        "How far the donor's states lie from the target's, by site, when each runs on its own.",
        _KINDS,
    ),
    "local_change": (
        "Change of each part by itself",
        "relative change",
        "The donor's part on the target's own input: what arises there. Where a site changes much when each model runs "
        "on its own and little here, the change was handed on from earlier blocks.",
        _KINDS,
    ),
    "cka": (
        "Similarity by layer",
        "CKA",
        "1 where both models see the same items as alike; what falls is what was learned.",
        _KINDS,
    ),
    "change_rank": (
        "Directions of the change",
        "effective rank",
        "Over how many directions the change of the blocks' states spreads, at most as many as tokens were looked at. "
        "Few: one shift does most of it; many: each token moves its own way.",
        ("block",),
    ),
}


def catalog(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """What the analysis measured of each site, on the capability's prompts and on text."""
    if not {"layer", "kind"} <= set(rows.columns):
        return []
    paired = rows[rows.layer.notna() & rows.donor_layer.notna()] if "donor_layer" in rows else rows
    if "donor_layer" in rows and bool((paired.donor_layer != paired.layer).any()):
        return [*_pairs(rows, donor), *_lens(rows, donor, alike=False)]
    plots = [_lines(rows, donor, measure) for measure in _LINES]
    return [each for each in plots if each] + [*_lens(rows, donor, alike=True), *_heads(rows, donor)]


def _lines(rows: pd.DataFrame, donor: str, measure: str) -> Plot | None:
    """One figure over the layers, a colour for what it was taken on, a dash for each kind of site."""
    title, unit, caption, kinds = _LINES[measure]
    columns = {f"{on}_{measure}": on for on in _ON if f"{on}_{measure}" in rows}
    long = rows[rows.kind.isin(kinds)].melt(["layer", "kind"], list(columns), "measured", "value")
    long = long.dropna(subset=["value", "layer"])
    if not columns or not len(long):
        return None
    long["measured"] = long["measured"].replace(columns)
    found = [kind for kind in kinds if (long.kind == kind).any()]
    lines = (
        alt.Chart(values(long))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=over("layer", long.layer),
            y=alt.Y("value:Q", title=unit),
            color=alt.Color("measured:N", title="on", legend=LINES, scale=among(_ON)),
            strokeDash=alt.StrokeDash(
                "kind:N", title="site", legend=DASHES if len(found) > 1 else None, scale=dash(found)
            ),
            tooltip=["layer:Q", "kind:N", "measured:N", *numbers("value")],
        )
    )
    return plot(title, caption, lines, about=donor)


def _lens(rows: pd.DataFrame, donor: str, alike: bool) -> list[Plot]:
    """How early either model's prediction stands: by layer, or by depth where the models have other layers."""
    parts = []
    for model, prefix, layer in (("target", "", "layer"), (donor, "donor_", "donor_layer")):
        for on in _ON:
            column = f"{on}_{prefix}lens_agreement"
            if column in rows and layer in rows:
                found = rows.dropna(subset=[column, layer])
                count = found[layer].max() + 1
                parts.append(
                    pd.DataFrame(
                        {"model": model, "measured": on, "layer": found[layer], "value": found[column]}
                        | {"depth": (found[layer] + 1) / count, "positions": found.get(f"{on}_lens_rows")}
                    )
                )
    long = pd.concat(parts) if parts else pd.DataFrame()
    if not len(long):
        return []
    x = over("layer", long.layer) if alike else alt.X("depth:Q", title="depth", axis=alt.Axis(format="%"))
    lines = (
        alt.Chart(values(long))
        .mark_line(strokeWidth=1.8, point=False if alike else alt.OverlayMarkDef(filled=True, size=14))
        .encode(
            x=x,
            y=alt.Y("value:Q", title="same first token", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("measured:N", title="on", legend=LINES, scale=among(_ON)),
            strokeDash=alt.StrokeDash("model:N", title="model", legend=DASHES, scale=dash(["target", donor])),
            tooltip=["model:N", "layer:Q", "measured:N", "positions:Q", *numbers("value")],
        )
    )
    caption = (
        "How often the prediction read off a block's state is already the model's own last one (logit lens): where a "
        "line rises, the answer is made. Few positions, so steps are coarse."
    )
    return [plot("When the prediction stands", caption, lines, about=donor)]


def _heads(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """Similarity of every head's attention with that of the donor's same head, on the capability."""
    column = "capability_head_similarity"
    if column not in rows or "site" not in rows:
        return []
    cells = rows[(rows.kind == "head") & rows[column].notna()]
    if not len(cells):
        return []
    cells = cells.assign(head=cells.site.str.rpartition(".")[2].astype(int), value=cells[column])
    chart = (
        alt.Chart(values(cells.loc[:, ["layer", "head", "value"]]))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(values=some(cells.layer), labelAngle=0)),
            y=alt.Y("head:O", sort="descending"),
            color=alt.Color("value:Q", title="similarity", scale=alt.Scale(scheme="viridis")),
            tooltip=["layer:O", "head:O", *numbers("value")],
        )
    )
    caption = "1 where a head looks at the same tokens in both models; dark heads were taught to look elsewhere."
    return [plot("Attention heads on the capability", caption, chart, 24 * cells["head"].nunique(), donor)]


def _pairs(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """Similarity of every donor layer to every target layer, for a donor of another width."""
    plots = []
    for on in _ON:
        column = f"{on}_cka"
        if column in rows and bool(rows[column].notna().any()):
            cells = rows.rename(columns={column: "value", "layer": "target_layer"})
            cells = cells.dropna(subset=["value", "donor_layer", "target_layer"])
            caption = "CKA of the donor's layer with the target's: bright pairs see the same items as alike."
            plots.append(grid(f"Similarity on {on}", caption, cells, "CKA", donor))
    return plots
