"""Maps of what each site causes, on the capability beside on text, and how far estimates can be trusted for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from stages.anatomy.names import kind_of, layer_of
from stages.pages.layers import some, values
from stages.pages.plots import INKS, Plot, among, numbers, plot
from stages.pages.words import number, span

_PANELS = {"capability": ("the capability", "nats an answer"), "retention_change": ("text", "KL, nats a token")}
_TESTED = {"capability": "capability_q", "retention_change": "retention_q"}
_SURE = 0.05
_DONOR = ("states", "donor_states", "attribution_states")
_MAPS = {
    "donor": ("the donor's states", "The donor's states stand in place of the target's."),
    "zero": ("silence", "Zeros stand in place of the target's states."),
    "mean": ("the mean", "The mean over texts stands in place of the target's states."),
    "clean_states": ("the clean prompt", "States of a prompt stand in the run of the same prompt with other numbers."),
}
_KINDS = ("block", "attention", "head", "mlp", "neurons", "router", "expert")
_WORDS = {"mlp": "MLP"}
_NUMBERED = ("head", "neurons", "expert")
_ESTIMATES = {
    "attribution_blocks": "Estimates of blocks’ weights",
    "attribution_weights": "Estimates of single modules",
    "attribution_states": "Estimates of states",
}


def maps(rows: pd.DataFrame, donor: str) -> list[Plot]:
    """For each intervention on states two maps of its effects, kind of site by layer: on the capability, on text.

    An exact effect stands wherever there is one, else its estimate, in a row that says so. Effects at single positions
    have maps of their own.
    """
    if not {"site", "intervention"} <= set(rows.columns):
        return []
    inside = [isinstance(site, str) and layer_of(site) is not None for site in rows.site]
    found = rows[inside].reset_index(drop=True)
    found["position"] = found.get("position")
    found["estimated"] = found.intervention == "attribution_states"
    found["put"] = found.intervention.where(~found.intervention.isin(_DONOR), "donor")
    found["rank"] = found.intervention.map({name: rank for rank, name in enumerate(_DONOR)}).fillna(0)
    found = found.sort_values("rank", kind="stable").drop_duplicates(["put", "site", "position"])
    plots = []
    for name, (words, what) in _MAPS.items():
        for alone in (False, True):
            cells = found[(found.put == name) & (found.position.notna() == alone)]
            plots += _panels(cells, words + (" at single positions" if alone else ""), what, donor)
    return plots


def _panels(cells: pd.DataFrame, words: str, what: str, donor: str) -> list[Plot]:
    """The same sites twice; nothing where fewer than two effects were measured."""
    cells = cells.assign(at=cells.site.map(layer_of), row=[_row(cell) for cell in cells.to_dict("records")])
    order = sorted({(_place(cell), cell["row"]) for cell in cells.to_dict("records")})
    names = list(dict.fromkeys(row for _, row in order))
    plots = []
    for measure, (on, unit) in _PANELS.items():
        if measure in cells and cells[measure].notna().sum() > 1:
            plots.append(_panel(cells, measure, names, f"Effect of {words} on {on}", unit, what, donor))
    return plots


def _panel(
    cells: pd.DataFrame, measure: str, names: Sequence[str], title: str, unit: str, what: str, donor: str
) -> Plot:
    shown = cells.assign(value=cells[measure], q=cells.get(_TESTED[measure])).dropna(subset=["value"])
    shown = pd.DataFrame(shown.loc[:, ["at", "row", "value", "q", "site"]])
    reach = max(float(f"{shown.value.abs().max():.2g}"), 1e-9)
    ends = [-reach, reach] if measure == "capability" else [reach, -reach]
    scale = alt.Scale(
        type="symlog", constant=reach / 30, domain=[ends[0], 0, ends[1]], range="diverging", interpolate="lab"
    )
    legend = alt.Legend(values=[-reach, 0, reach], format=".2~g", gradientLength=160)
    base = alt.Chart(values(shown)).encode(
        x=alt.X("at:O", title="layer", axis=alt.Axis(values=some(pd.Series(shown["at"])), labelAngle=0)),
        y=alt.Y("row:N", title=None, sort=list(names), axis=alt.Axis(labelLimit=220)),
    )
    heat = base.mark_rect().encode(
        color=alt.Color("value:Q", title=unit, scale=scale, legend=legend),
        tooltip=["site:N", *numbers("value", "q")],
    )
    sure = base.mark_text(text="•", fontSize=11, baseline="middle").transform_filter(
        f"isValid(datum.q) && datum.q < {_SURE}"
    )
    caption = (
        f"{what} Green helps, orange harms; the scale is compressed far from zero. A dot: q < {_SURE:g} over the sites."
    )
    return plot(title, caption, heat + sure, 30 + max(18 * len(names), 70), donor)


def _row(cell: Mapping[str, Any]) -> str:
    """The map's row that a site stands in."""
    kind, last = kind_of(cell["site"]), cell["site"].rpartition(".")[2]
    words = _WORDS.get(kind, kind) + (f" {last.replace(':', '–')}" if kind in _NUMBERED else "")
    at = f" · {str(cell['position']).replace('_', ' ').replace('-', '−')}" if pd.notna(cell["position"]) else ""
    return words + at + (" (estimate)" if cell["estimated"] else "")


def _place(cell: Mapping[str, Any]) -> tuple[int, int, str, bool]:
    """What the map's rows are sorted by: the kind, its number, the position."""
    kind, last = kind_of(cell["site"]), cell["site"].rpartition(".")[2].partition(":")[0]
    at = str(cell["position"]) if pd.notna(cell["position"]) else ""
    return _KINDS.index(kind), int(last) if kind in _NUMBERED else 0, at, bool(cell["estimated"])


def agreement(rows: pd.DataFrame, compared: Sequence[Mapping[str, Any]], donor: str) -> list[Plot]:
    """Each estimated effect against the exact one, by site, with their rank correlation."""
    plots = []
    for pair in compared:
        names = [pair["estimate"], pair["exact"]]
        placed = rows["position"].notna() if "position" in rows else False
        alone = rows[rows.intervention.isin(names) & ~pd.Series(placed, index=rows.index)]
        for measure, (on, unit) in _PANELS.items():
            figure = pair.get(measure.removesuffix("_change"))
            both = (
                alone.pivot_table(index="site", columns="intervention", values=measure).reindex(columns=names).dropna()
            )
            if len(both) < 3:
                continue
            both = both.set_axis(["estimate", "exact"], axis=1).reset_index()
            both["kind"] = [_WORDS.get(kind_of(site), kind_of(site)) for site in both.site]
            kinds = list(dict.fromkeys(both.kind))
            low, high = max(both.exact.min(), both.estimate.min()), min(both.exact.max(), both.estimate.max())
            ends = [{"x": float(f"{end:.6g}"), "y": float(f"{end:.6g}")} for end in (low, high)]
            line = alt.Chart(alt.Data(values=ends)).mark_line(strokeDash=[4, 3], strokeWidth=1, color=INKS[0])
            points = (
                alt.Chart(values(both))
                .mark_point(filled=True, size=32, opacity=0.75)
                .encode(
                    x=alt.X("exact:Q", title=f"exact, {unit}"),
                    y=alt.Y("estimate:Q", title=f"estimate, {unit}"),
                    color=alt.Color(
                        "kind:N", title=None, scale=among(kinds), legend=alt.Legend() if len(kinds) > 1 else None
                    ),
                    tooltip=["site:N", *numbers("exact", "estimate")],
                )
            )
            title = f"{_ESTIMATES.get(names[0], names[0])} beside {names[1].replace('_', ' ')}, on {on}"
            plots.append(plot(title, _said(figure, pair["sites"]), line.encode(x="x:Q", y="y:Q") + points, about=donor))
    return plots


def _said(figure: Mapping[str, float] | None, sites: int) -> str:
    """How well the estimate ranks the sites."""
    ranked = "undefined" if figure is None else f"{number(figure['value'])} {span(figure)}"
    return f"Spearman’s rank correlation {ranked} over {sites} sites. On the dashed line both are the same."
