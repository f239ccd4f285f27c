"""Whether a model's confidence can be trusted, and what acting on it gives: calibration, risk, sets, routes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from stages.pages.plots import (
    CHOSEN,
    INKS,
    LINES,
    QUARTERS,
    Chart,
    Plot,
    among,
    chosen,
    dots,
    numbers,
    plot,
)
from stages.pages.words import amount

Measured = Mapping[str, Mapping[str, Any]]
"""Variant → task → what was measured."""

_ROUTING = "routing"
_SHOWN = "datum.variant === shown"
_SHARE = alt.Scale(domain=[0, 1])
_PERCENT = alt.Axis(format="%", values=QUARTERS)
_ROUTED = {"accuracy": "right answers", "coverage": "answered by the graft", "cost": "cost"}
_METHODS = ("raw", "temperature", "isotonic")
_SCORES = {
    "max_probability": "probability of the answer",
    "entropy": "entropy",
    "margin": "margin",
    "mean_loglikelihood": "likelihood a token",
    "gate": "gate’s activity",
    "divergence": "donor and target disagree",
    "agreement_of_samples": "samples agree",
    "ensemble": "ensemble of seeds",
}


def tasks(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What was measured of one variant by task, without what was measured of all tasks together."""
    return {name: entry for name, entry in found.items() if name != _ROUTING}


def routing(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What routing to one variant gives: of all tasks together, else of the first task that has it."""
    return next((entry[_ROUTING] for entry in (found, *tasks(found).values()) if entry.get(_ROUTING)), {})


def plots(measured: Measured) -> list[tuple[str, list[Plot]]]:
    """Charts by task, then those of routing, each under its heading."""
    named = dict.fromkeys(task for found in measured.values() for task in tasks(found))
    draws = (reliability, risk_coverage, scores, mended, sets)
    drawn = [(task, [made for draw in draws if (made := draw(measured, task))]) for task in named]
    drawn.append((_ROUTING, [made for draw in (routed, traded) if (made := draw(measured))]))
    return [(heading.capitalize(), made) for heading, made in drawn if made]


def score_name(name: str) -> str:
    """The name of a score for the reader."""
    return _SCORES.get(name, name.replace("_", " "))


def reliability(measured: Measured, task: str) -> Plot | None:
    """Accuracy against confidence by bin, one line a chosen variant."""
    rows = _rows(measured, task, lambda entry: entry.get("bins") or ())
    if not rows:
        return None
    caption = "On the dashed line, confidence is the share of right answers; below it the model is too sure."
    lines = _calibration_lines(rows, chosen("variant"), "variant", CHOSEN)
    return plot(f"Reliability on {task}", caption, lines)


def risk_coverage(measured: Measured, task: str) -> Plot | None:
    """The share of wrong answers among the surest ones, one line a chosen variant."""
    rows = _rows(measured, task, lambda entry: entry.get("curve") or ())
    if not rows:
        return None
    lines = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter(chosen("variant"))
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("coverage:Q", title="share of items answered, surest first", axis=_PERCENT),
            y=alt.Y(
                "risk:Q",
                title="wrong answers among them",
                axis=alt.Axis(format="%", tickCount=5),
                scale=alt.Scale(domainMin=0),
            ),
            color=alt.Color("variant:N", title=None, legend=LINES, scale=CHOSEN),
            tooltip=["variant:N", *numbers("coverage", "risk")],
        )
    )
    caption = "A confidence that knows its errors keeps the line at zero for long and lets it rise at the end."
    return plot(f"Risk and coverage on {task}", caption, lines)


def scores(measured: Measured, task: str) -> Plot | None:
    """How well each score tells right from wrong answers, by chosen variant."""
    rows = [
        {"variant": name, "score": score_name(score)} | entry["auroc"]
        for name, found in measured.items()
        for score, entry in (found.get(task, {}).get("scores") or {}).items()
        if isinstance(entry.get("auroc"), Mapping)
    ]
    if not rows:
        return None
    axis = {"title": "AUROC", "axis": alt.Axis(format=".2f", tickCount=6), "scale": alt.Scale(zero=False)}
    chance = alt.Chart(alt.Data(values=[{"at": 0.5}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
    caption = "How often a right answer scores surer than a wrong one. The dashed line is a coin’s toss."
    chart = chance + dots(rows, "score", "variant", axis, CHOSEN, chosen("variant"))
    return plot(f"Scores of uncertainty on {task}", caption, chart, alt.Step(13))


def mended(measured: Measured, task: str) -> Plot | None:
    """Reliability of the variant that is shown before and after its confidence was rescaled."""
    rows = []
    for name, found in measured.items():
        for method, entry in (found.get(task, {}).get("calibration") or {}).items():
            rows += [{"variant": name, "method": method} | _short(each) for each in entry.get("bins") or ()]
    if not rows:
        return None
    lines = _calibration_lines(rows, _SHOWN, "method", among(_METHODS))
    caption = "Of the variant shown below. Scaled on the calibration split, drawn on the test."
    return plot(f"Reliability on {task}, before and after scaling", caption, lines)


def sets(measured: Measured, task: str) -> Plot | None:
    """How often conformal sets of the variant that is shown hold the right answer, by group."""
    rows, aims = [], []
    for name, found in measured.items():
        for method, entry in (found.get(task, {}).get("conformal") or {}).items():
            if entry.get("alpha") is not None:
                aims.append({"variant": name, "aim": 1 - entry["alpha"]})
            for part in entry.get("by") or ():
                held = part.get("coverage")
                told = held if isinstance(held, Mapping) else {"value": held, "low": held, "high": held}
                if told["value"] is not None:
                    group = str(part.get("group")).replace("_", " ")
                    rows.append({"variant": name, "group": group, "method": method.upper()} | _short(told)
                                | {"n": part.get("n")})  # fmt: skip
    if not rows:
        return None
    axis = {"title": "sets that hold the right answer", "axis": alt.Axis(format="%", tickCount=5),
            "scale": alt.Scale(zero=False)}  # fmt: skip
    aim = alt.Chart(alt.Data(values=aims)).transform_filter(_SHOWN).mark_rule(strokeDash=[4, 3]).encode(x="aim:Q")
    chart: Chart = aim + dots(rows, "group", "method", axis, among(["LAC", "APS"]), _SHOWN)
    caption = (
        "Of the variant shown below. The dashed line is the coverage that was asked for, over all groups together."
    )
    return plot(f"Conformal sets on {task}", caption, chart, alt.Step(15))


def routed(measured: Measured) -> Plot | None:
    """What routing by a threshold gives, for the variant that is shown."""
    rows, chosen_at, shares = [], [], [words for key, words in _ROUTED.items() if key != "cost"]
    for name, found in measured.items():
        routes = routing(found)
        for point in routes.get("curve") or ():
            told = {words: _plain(point.get(key)) for key, words in _ROUTED.items()}
            rows.append({"variant": name, "threshold": _plain(point.get("threshold"))} | told)
        at = _plain((routes.get("chosen") or {}).get("threshold"))
        if at is not None:
            chosen_at.append({"variant": name, "threshold": at})
    if not rows:
        return None
    lines = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter(_SHOWN)
        .transform_fold(shares, as_=["measured", "value"])
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("threshold:Q", title="threshold τ on the uncertainty", scale=alt.Scale(nice=False)),
            y=alt.Y("value:Q", title="share of items", scale=_SHARE, axis=_PERCENT),
            color=alt.Color("measured:N", title=None, legend=LINES, scale=among(shares)),
            tooltip=["measured:N", *numbers("threshold", "value", "cost")],
        )
    )
    rule = (
        alt.Chart(alt.Data(values=chosen_at))
        .transform_filter(_SHOWN)
        .mark_rule(strokeDash=[4, 3], color=INKS[0])
        .encode(x="threshold:Q")
    )
    caption = (
        "Of the variant shown below: the graft answers where u ≤ τ, else the target. The dashed line is the chosen τ."
    )
    return plot("Routing by a threshold", caption, lines + rule)


def traded(measured: Measured) -> Plot | None:
    """What right answers cost along each chosen variant's thresholds."""
    rows = []
    for name, found in measured.items():
        for point in routing(found).get("curve") or ():
            cost, accuracy = _plain(point.get("cost")), _plain(point.get("accuracy"))
            if cost is not None and accuracy is not None:
                rows.append({"variant": name, "cost": cost, "accuracy": accuracy,
                             "threshold": _plain(point.get("threshold"))})  # fmt: skip
    if not rows:
        return None
    lines = (
        alt.Chart(alt.Data(values=rows))
        .transform_filter(chosen("variant"))
        .mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(filled=True, size=18))
        .encode(
            x=alt.X("cost:Q", title="cost an item, times the target’s", scale=alt.Scale(zero=False)),
            y=alt.Y("accuracy:Q", title="right answers", scale=_SHARE, axis=_PERCENT),
            order="threshold:Q",
            color=alt.Color("variant:N", title=None, legend=LINES, scale=CHOSEN),
            tooltip=["variant:N", *numbers("cost", "accuracy", "threshold")],
        )
    )
    caption = "Each point is a threshold. Up is more right answers, left is cheaper."
    return plot("Right answers and cost of routing", caption, lines)


def _calibration_lines(rows: Sequence[Mapping[str, Any]], keep: str, colour: str, inks: alt.Scale) -> alt.LayerChart:
    diagonal = (
        alt.Chart(alt.Data(values=[{"at": 0}, {"at": 1}]))
        .mark_line(strokeDash=[4, 4], color=INKS[0], strokeWidth=1)
        .encode(x=alt.X("at:Q", scale=_SHARE), y=alt.Y("at:Q", scale=_SHARE))
    )
    lines = (
        alt.Chart(alt.Data(values=list(rows)))
        .transform_filter(keep)
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=28), strokeWidth=1.5)
        .encode(
            x=alt.X("confidence:Q", title="confidence", scale=_SHARE, axis=_PERCENT),
            y=alt.Y("accuracy:Q", title="right answers", scale=_SHARE, axis=_PERCENT),
            color=alt.Color(f"{colour}:N", title=None, legend=LINES, scale=inks),
            tooltip=[f"{colour}:N", *numbers("confidence", "accuracy", "low", "high"), "n:Q"],
        )
    )
    return diagonal + lines


def _rows(
    measured: Measured, task: str, points: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """The points of every variant's task."""
    return [
        {"variant": name} | _short(point) for name, found in measured.items() for point in points(found.get(task, {}))
    ]


def _short(point: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in point.items()}


def _plain(value: Any) -> float | None:
    """The number that a figure stands for, to four decimals."""
    found = amount(value)
    return None if found is None else round(found, 4)
