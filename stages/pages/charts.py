"""Charts of what was evaluated and trained."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from stages.pages.labels import place
from stages.pages.plots import (
    CHOSEN,
    INKS,
    LINES,
    PALETTE,
    QUARTERS,
    ROLES,
    Plot,
    among,
    chosen,
    decades,
    dots,
    numbers,
    plot,
)
from stages.pages.roles import Roles, models

_MANY = 24  # models, beyond which a chart shows or names only some
_BEND, _TALL, _SHARES = 0.5, 360, (-0.06, 1.06)  # where the symlog scale bends, pixels, and the shares they span


def phrasings(summary: Mapping[str, Any], roles: Roles, named: Sequence[str]) -> Plot | None:
    """Capability by whether the phrasing occurs in training; of many models only target, donors and `named`."""
    kinds = {"capability_seen": "seen", "capability_unseen": "unseen"}
    every = models(summary, roles)
    rows = [
        {"model": name, "phrasing": words} | entry[key]
        for name, role, entry in every
        for key, words in kinds.items()
        if entry[key] and (len(every) <= _MANY or role in ("target", "donor") or name in named)
    ]
    if not rows:
        return None
    share = {"title": "right answers", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%", values=QUARTERS)}
    chart = dots(rows, "model", "phrasing", share, among(list(kinds.values()), PALETTE[1:]))
    caption = (
        "Seen and unseen in training. A capability that opens for one template only is none: "
        "the points of a model should lie together."
    )
    return plot("Capability by phrasing", caption, chart, alt.Step(14))


def frontier(summary: Mapping[str, Any], roles: Roles, named: Sequence[str]) -> Plot | None:
    """Capability against the perplexity that it costs; of many models only target, donors and `named` have names."""
    rows = []
    for name, role, entry in models(summary, roles):
        ratio = {"value": 1.0, "low": 1.0, "high": 1.0} if role == "target" else entry["perplexity_ratio"]
        if entry["capability"] and ratio:
            cost = {f"cost_{key}": round(100 * (ratio[key] - 1), 4) for key in ("value", "low", "high")}
            rows.append({"model": name, "role": role} | entry["capability"] | cost)
    if len(rows) < 2:
        return None
    reach = min(-0.3, *(r["cost_low"] for r in rows)), max(3.0, *(1.15 * r["cost_high"] for r in rows))
    few = len(rows) <= _MANY
    labelled = [row for row in rows if few or row["role"] in ("target", "donor") or row["model"] in named]
    _label(labelled, reach)
    ticks = [t for t in (-30, -10, -3, -1, 0, 1, 3, 10, 30, 100, 300, 1000, 10000) if reach[0] <= t <= reach[1]]
    x = {
        "title": "perplexity above the target's, percent",
        "scale": alt.Scale(type="symlog", constant=_BEND, domain=list(reach), nice=False),
        "axis": alt.Axis(values=ticks, labelExpr="datum.value > 0 ? '+' + datum.value : datum.label"),
    }
    y = {"title": "capability", "scale": alt.Scale(domain=list(_SHARES), nice=False),
         "axis": alt.Axis(format="%", values=QUARTERS)}  # fmt: skip
    base = alt.Chart(alt.Data(values=rows)).encode(
        color=alt.Color("role:N", title=None, scale=alt.Scale(domain=list(ROLES), range=list(INKS)))
    )
    tall = base.mark_rule(opacity=0.55).encode(x=alt.X("cost_value:Q", **x), y=alt.Y("low:Q", **y), y2="high:Q")
    wide = base.mark_rule(opacity=0.55).encode(x=alt.X("cost_low:Q", **x), x2="cost_high:Q", y=alt.Y("value:Q", **y))
    shape = alt.Scale(domain=list(ROLES), range=["square", "diamond", "circle", "cross"])
    costs = numbers("cost_value", "cost_low", "cost_high")
    point = base.mark_point(filled=True, size=90, opacity=0.95).encode(
        x=alt.X("cost_value:Q", **x),
        y=alt.Y("value:Q", **y),
        shape=alt.Shape("role:N", title=None, scale=shape),
        tooltip=["model:N", "role:N", *numbers("value", "low", "high"), *costs],
    )
    sides = [
        base.transform_filter(f"datum.left === {str(left).lower()}")
        .mark_text(align="right" if left else "left", dx=-9 if left else 9, fontSize=11.5)
        .encode(x=alt.X("cost_value:Q", **x), y=alt.Y("at:Q", **y), text="model:N")
        for left in (False, True)
    ]
    caption = "Up is more of the capability, left is less harm to unrelated text. The aim is the upper left corner."
    return plot("Capability and perplexity", caption, alt.layer(tall, wide, point, *sides), _TALL)


def _label(rows: list[dict[str, Any]], reach: tuple[float, float]) -> None:
    """Gives each row `left` and `at`, the side and the height of its name; a narrow chart is taken, so that wide ones
    have room to spare."""
    width = 440.0

    def bent(cost: float) -> float:
        return math.copysign(math.log1p(abs(cost) / _BEND), cost)

    across = width / (bent(reach[1]) - bent(reach[0]))
    down = _TALL / (_SHARES[1] - _SHARES[0])
    points = [
        ((bent(r["cost_value"]) - bent(reach[0])) * across, (_SHARES[1] - r["value"]) * down, r["model"]) for r in rows
    ]
    for row, label in zip(rows, place(points, width, _TALL), strict=True):
        row |= {"left": label.left, "at": round(row["value"] - label.down / down, 4)}


def training(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Plot]:
    """Loss curves of what was trained, one line a variant."""
    measures = {
        "cross_entropy": ("Cross-entropy on training answers", "nats a token", "What the gate learns to gain."),
        "kl": ("Divergence from the target on text", "nats a token", "What the gate learns to leave alone."),
    }
    plots = []
    for key, (title, unit, caption) in measures.items():
        rows = [{"variant": name, "step": p["step"], "value": max(p[key], 1e-6)}
                for name, curve in curves.items() for p in curve if p.get(key) is not None]  # fmt: skip
        if rows:
            lines = (
                alt.Chart(alt.Data(values=rows))
                .transform_filter(chosen("variant"))
                .mark_line(strokeWidth=1.6)
                .encode(
                    x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False)),
                    y=alt.Y("value:Q", title=unit, scale=alt.Scale(type="log", nice=False), axis=decades(rows)),
                    color=alt.Color("variant:N", title=None, legend=LINES, scale=CHOSEN),
                    tooltip=["variant:N", "step:Q", *numbers("value")],
                )
            )
            plots.append(plot(title, caption, lines))
    return plots
