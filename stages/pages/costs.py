"""What a graft costs to keep and to run, beside the target."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from stages.pages.plots import DIRECT, Plot, among, plot
from stages.pages.roles import Roles
from stages.pages.words import amount

View = dict[str, Any]

_SIZES = ("B", "kB", "MB", "GB", "TB")


def costs(found: Mapping[str, Mapping[str, Any]], roles: Roles) -> list[View]:
    """A row a variant: each figure in words, those of work and time with their multiple of the target's."""
    rows = []
    for name in roles.variants:
        told = found.get(name)
        if told is None:
            rows.append({"name": name, "cells": None})
            continue
        plain, added = amount(told.get("parameters")), amount(told.get("added_parameters"))
        share = (
            f"{100 * added / (plain - added):.2g} % of the target’s"
            if plain and added is not None and plain > added
            else ""
        )
        cells = [
            (_count(plain), ""),
            (_count(added), share),
            (_size(amount(told.get("bytes"))), ""),
            (_count(amount(told.get("flops_per_token"))), _multiple(told, "flops_per_token")),
            (_time(amount(told.get("ms_per_token"))), _multiple(told, "ms_per_token")),
            (_size(amount(told.get("peak_bytes"))), ""),
        ]
        rows.append({"name": name, "cells": cells})
    return rows if found else []


def _count(value: float | None) -> str | None:
    """Exact below a million, to three figures in millions or more above."""
    if value is None:
        return None
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}"


def _size(value: float | None) -> str | None:
    if value is None:
        return None
    step = 0
    while value >= 1000 and step < len(_SIZES) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.3g} {_SIZES[step]}"


def _time(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} ms"


def _ratio(told: Mapping[str, Any], key: str) -> float | None:
    own, target = amount(told.get(key)), amount(told.get(f"target_{key}"))
    return own / target if own is not None and target else None


def _multiple(told: Mapping[str, Any], key: str) -> str:
    ratio = _ratio(told, key)
    return "" if ratio is None else f"{ratio:.2f} × target"


def slowdown(found: Mapping[str, Mapping[str, Any]], roles: Roles) -> Plot | None:
    """How many times the target's time and work a token takes."""
    kinds = {"ms_per_token": "time", "flops_per_token": "work (FLOP)"}
    rows = [
        {"model": name, "measured": words, "value": round(ratio, 4)}
        for name, told in found.items()
        if name in roles.variants
        for key, words in kinds.items()
        if (ratio := _ratio(told, key)) is not None
    ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).transform_filter("indexof(chosen, datum.model) >= 0").encode(
        y=alt.Y("model:N", sort=None, title=None),
        yOffset=alt.YOffset("measured:N", sort=list(kinds.values())),
        x=alt.X("value:Q", title="times the target’s, a token", axis=alt.Axis(tickCount=6, format="~g")),
    )  # fmt: skip
    bars = base.mark_bar(height=9).encode(
        color=alt.Color("measured:N", title=None, scale=among(list(kinds.values()))),
        tooltip=["model:N", "measured:N", alt.Tooltip("value:Q", title="× target", format=".3f")],
    )
    told = base.mark_text(**DIRECT).encode(text=alt.Text("value:Q", format=".2f"))
    one = alt.Chart(alt.Data(values=[{"at": 1}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
    caption = "The dashed line is the target itself. Time is measured on the machine that made this page’s figures."
    return plot("Time and work per token", caption, bars + told + one, alt.Step(18))
