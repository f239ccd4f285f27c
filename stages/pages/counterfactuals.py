"""Minimal pairs: how far each model moves the odds of the right continuation, where it should and should not."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from stages.pages.plots import INKS, Plot, dots, plot
from stages.pages.texts import shown

View = dict[str, Any]

_MODELS = {"target": "target", "donor": "donor", "graft": "graft"}
_FIGURES = ("target", "donor", "graft", "difference", "consistency")


def counterfactuals(found: Mapping[str, Mapping[str, Any]]) -> dict[str, View]:
    """For each variant its categories, those that should move first, then everything together."""
    views = {}
    for name, told in found.items():
        rows = sorted(told.get("categories", ()), key=lambda row: not row.get("moves", True))
        kept = [
            {"category": _words(row), "moves": row.get("moves", True), "n": row.get("n")}
            | {key: row.get(key) for key in _FIGURES}
            for row in rows
        ]
        views[name] = {
            "rows": kept,
            "overall": told.get("overall") or {},
            "specificity": told.get("specificity") or {},
            "undefined": told.get("undefined") or {},
        }
    return views


def _words(row: Mapping[str, Any]) -> str:
    return shown(row.get("category"), 60).replace("_", " ")


def effects(found: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    """The effect by category of target, donor and graft, of the variant that is shown."""
    rows = [
        {"variant": name, "category": ("" if row.get("moves", True) else "hold: ") + _words(row)}
        | {"model": words} | {key: row[model][key] for key in ("value", "low", "high")} | {"n": row[model].get("n")}
        for name, told in found.items()
        for row in told.get("categories", ())
        for model, words in _MODELS.items()
        if isinstance(row.get(model), Mapping)
    ]  # fmt: skip
    if not rows:
        return None
    axis = {"title": "shift of the log-odds, nats", "axis": alt.Axis(tickCount=6)}
    inks = alt.Scale(domain=list(_MODELS.values()), range=[INKS[0], INKS[1], INKS[2]])
    chart = dots(rows, "category", "model", axis, inks, "datum.variant === shown")
    none = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
    caption = (
        "How far the change moves the model. The graft should lie by the donor where the capability is asked for, by "
        "the target elsewhere, and near the dashed line in what is marked “hold”, where nothing should move."
    )
    return plot("Effect on minimal pairs", caption, none + chart, alt.Step(16))
