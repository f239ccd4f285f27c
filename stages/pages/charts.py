"""Charts of what was evaluated, as Vega-Lite specifications without colours of the page: those come with its theme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from stages.pages.roles import Roles, models

ROLES = ("target", "donor", "variant", "control")
INKS = ("#8a919c", "#9067b5", "#16897b", "#cf7a26")
"""One colour a role, in the order of ROLES; they read on light and dark paper."""
PALETTE = ("#16897b", "#3f74bd", "#cf7a26", "#9067b5", "#b8456b", "#7f8f2b", "#5a6f86", "#a8743d")
"""Colours of things that are alike, in order of appearance."""


@dataclass(frozen=True)
class Plot:
    """A chart and what it says."""

    title: str
    caption: str
    """How to read it; also what a screen reader says of it."""
    spec: Mapping[str, Any]


def plot(title: str, caption: str, chart: alt.Chart | alt.LayerChart, height: int | alt.Step = 240) -> Plot:
    """`chart` as wide as its place on the page."""
    shaped = chart.properties(width="container", height=height, description=f"{title}. {caption}")
    spec = shaped.to_dict()
    return Plot(title, caption, {key: value for key, value in spec.items() if key not in ("$schema", "config")})


def among(names: Sequence[str], inks: Sequence[str] = PALETTE) -> alt.Scale:
    """A colour for each name."""
    return alt.Scale(domain=list(names), range=[inks[i % len(inks)] for i in range(len(names))])


def dash(names: Sequence[str]) -> alt.Scale:
    """A dash pattern for each name, the first one solid."""
    patterns = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3])
    return alt.Scale(domain=list(names), range=[patterns[i % len(patterns)] for i in range(len(names))])


def phrasings(summary: Mapping[str, Any], roles: Roles) -> Plot | None:
    """Capability by whether the phrasing occurs in training."""
    kinds = {"capability_seen": "seen in training", "capability_unseen": "not seen in training"}
    rows = [
        {"model": name, "phrasing": words} | entry[key]
        for name, _, entry in models(summary, roles)
        for key, words in kinds.items()
        if entry[key]
    ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("model:N", sort=None, title=None, scale=alt.Scale(paddingInner=0.35)),
        yOffset=alt.YOffset("phrasing:N", sort=list(kinds.values())),
        color=alt.Color("phrasing:N", title="phrasing", scale=among(list(kinds.values()), PALETTE[1:])),
    )
    share = {"title": "right answers", "scale": alt.Scale(domain=[0, 1]), "axis": alt.Axis(format="%")}
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", **share), x2="high:Q")
    point = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=alt.X("value:Q", **share), tooltip=["model:N", "phrasing:N", *numbers("value", "low", "high"), "n:Q"]
    )
    caption = "A capability that opens for one template only is none: both points of a model should lie together."
    return plot("Capability by phrasing", caption, interval + point, alt.Step(15))


def frontier(summary: Mapping[str, Any], roles: Roles) -> Plot | None:
    """Capability against the perplexity that it costs."""
    rows = []
    for name, role, entry in models(summary, roles):
        ratio = {"value": 1.0, "low": 1.0, "high": 1.0} if role == "target" else entry["perplexity_ratio"]
        if entry["capability"] and ratio:
            cost = {end: round(100 * (ratio[key] - 1), 4) for end, key in zip("xlh", ("value", "low", "high"), strict=True)}
            rows.append({"model": name, "role": role} | entry["capability"]
                        | {"cost": cost["x"], "cost_low": cost["l"], "cost_high": cost["h"]})  # fmt: skip
    if len(rows) < 2:
        return None
    rows = _labelled(rows)
    ticks = [-10, -3, -1, 0, 1, 3, 10, 30, 100, 300, 1000]
    least, most = min(r["cost_low"] for r in rows), max(r["cost_high"] for r in rows)
    shown = [t for t in ticks if least - 1 <= t <= most * 1.05 + 1]
    x = {
        "title": "perplexity above the target's, percent",
        "scale": alt.Scale(type="symlog", constant=0.5, domain=[min(-0.3, least), max(3, most * 1.6)], nice=False),
        "axis": alt.Axis(values=shown, labelExpr="format(datum.value, '+~')"),
    }
    y = {"title": "capability", "scale": alt.Scale(domain=[-0.04, 1.06], nice=False),
         "axis": alt.Axis(format="%", values=[0, 0.2, 0.4, 0.6, 0.8, 1])}  # fmt: skip
    base = alt.Chart(alt.Data(values=rows)).encode(
        color=alt.Color("role:N", title=None, scale=alt.Scale(domain=list(ROLES), range=list(INKS)))
    )
    tall = base.mark_rule(opacity=0.55).encode(x=alt.X("cost:Q", **x), y=alt.Y("low:Q", **y), y2="high:Q")
    wide = base.mark_rule(opacity=0.55).encode(x=alt.X("cost_low:Q", **x), x2="cost_high:Q", y=alt.Y("value:Q", **y))
    shape = alt.Scale(domain=list(ROLES), range=["square", "diamond", "circle", "cross"])
    point = base.mark_point(filled=True, size=90, opacity=0.95).encode(
        x=alt.X("cost:Q", **x),
        y=alt.Y("value:Q", **y),
        shape=alt.Shape("role:N", title=None, scale=shape),
        tooltip=["model:N", "role:N", *numbers("value", "low", "high"), *numbers("cost", "cost_low", "cost_high")],
    )
    sides = [
        base.transform_filter(f"datum.side === '{side}'")
        .mark_text(align=align, dx=dx, fontSize=11.5)
        .encode(x=alt.X("cost:Q", **x), y=alt.Y("at:Q", **y), text="model:N")
        for side, align, dx in (("right", "left", 9), ("left", "right", -9))
    ]
    caption = "Up is more of the capability, left is less harm to unrelated text. The aim is the upper left corner."
    return plot("What the capability costs", caption, alt.layer(tall, wide, point, *sides), 360)


def _labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a side and a height for their label, so that labels of near points do not lie on one another."""
    line, near = 0.047, 4.0  # a line of text in shares of the axis; the costs, in percent, that one label spans
    placed: list[tuple[str, float, float]] = []
    most = max(row["cost"] for row in rows)
    for row in sorted(rows, key=lambda r: r["value"], reverse=True):
        side = "left" if row["cost"] > 10 and row["cost"] > 0.5 * most else "right"
        at = row["value"]
        while any(s == side and abs(c - row["cost"]) < near and abs(a - at) < line - 1e-9 for s, c, a in placed):
            at -= line / 4
        placed.append((side, row["cost"], at))
        row |= {"side": side, "at": round(at, 4)}
    lowest = min(a for _, _, a in placed)
    if lowest < -0.02:  # what was pushed below the axis goes above its fellows instead
        pushed = [row for row in rows if row["value"] < 0.5 and row["side"] == "right"]
        for number, row in enumerate(sorted(pushed, key=lambda r: (r["value"], r["model"]))):
            row["at"] = round(number * line, 4)
    return rows


def reliability(measured: Mapping[str, Mapping[str, Any]], task: str) -> Plot | None:
    """Accuracy against confidence by bin, one line a model."""
    rows = [{"model": name} | b for name, tasks in measured.items() for b in tasks.get(task, {}).get("bins", ())]
    if not rows:
        return None
    share = alt.Scale(domain=[0, 1])
    diagonal = (
        alt.Chart(alt.Data(values=[{"at": 0}, {"at": 1}]))
        .mark_line(strokeDash=[4, 4], color=INKS[0], strokeWidth=1)
        .encode(x=alt.X("at:Q", scale=share), y=alt.Y("at:Q", scale=share))
    )
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=28), strokeWidth=1.5)
        .encode(
            x=alt.X("confidence:Q", title="confidence", scale=share, axis=alt.Axis(format="%")),
            y=alt.Y("accuracy:Q", title="right answers", scale=share, axis=alt.Axis(format="%")),
            color=alt.Color("model:N", title=None, scale=among(list(measured))),
            tooltip=["model:N", *numbers("confidence", "accuracy", "low", "high"), "n:Q"],
        )
    )
    caption = "On the dashed line, confidence is the share of right answers; below it the model is too sure."
    return plot(f"Reliability on {task}", caption, diagonal + lines)


def risk_coverage(measured: Mapping[str, Mapping[str, Any]], task: str) -> Plot | None:
    """The share of wrong answers among the surest ones, one line a model."""
    rows = [{"model": name} | p for name, tasks in measured.items() for p in tasks.get(task, {}).get("curve", ())]
    if not rows:
        return None
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("coverage:Q", title="share of items answered, surest first", axis=alt.Axis(format="%")),
            y=alt.Y("risk:Q", title="wrong answers among them", axis=alt.Axis(format="%"), scale=alt.Scale(domainMin=0)),
            color=alt.Color("model:N", title=None, scale=among(list(measured))),
            tooltip=["model:N", *numbers("coverage", "risk")],
        )
    )
    caption = "A confidence that knows its errors keeps the line at zero for long and lets it rise at the end."
    return plot(f"Risk and coverage on {task}", caption, lines)


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
                .mark_line(strokeWidth=1.6)
                .encode(
                    x=alt.X("step:Q", title="step"),
                    y=alt.Y("value:Q", title=unit, scale=alt.Scale(type="log"), axis=alt.Axis(format="~g", tickCount=5)),
                    color=alt.Color("variant:N", title=None, scale=among(list(curves))),
                    tooltip=["variant:N", "step:Q", *numbers("value")],
                )
            )
            plots.append(plot(title, caption, lines))
    return plots


def numbers(*fields: str) -> list[alt.Tooltip]:
    """Tooltip lines of figures."""
    return [alt.Tooltip(f"{field}:Q", title=field.replace("_", " "), format=".4~g") for field in fields]
