"""Variants side by side: every figure that there is of each, in the words in which the rest of the page has them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import altair as alt

from stages.pages.confidence import tasks
from stages.pages.costs import costs
from stages.pages.evidence import Evidence
from stages.pages.plots import CHOSEN, Plot, chosen, dots, plot
from stages.pages.regressions import regressions
from stages.pages.roles import Roles
from stages.pages.words import figure, told

Line = tuple[str, dict[str, str]]

ABSENT = "not measured"
AT_ONCE = 8
"""Variants that can be compared at once, as many as there are colours."""
_AT_FIRST = 5
FIGURES = {
    "capability": "capability",
    "capability_unseen": "capability, unseen phrasings",
    "gain": "gain over target",
    "recovery": "recovery",
    "over_control": "lead over control",
    "retention": "retention",
    "retention_change": "retention, change",
    "perplexity_ratio": "perplexity ratio",
    "kl_to_target": "KL to target, nats a token",
    "agreement": "same first choice as target",
}
_TRUST = {"ece": "calibration error (ECE)", "auroc": "AUROC of confidence", "aurc": "AURC"}
_FORESTS = {
    "gain": ("Gain", "right answers more than the target", "+.0%"),
    "retention_change": ("Change of retention", "right answers more than the target", "+.1%"),
    "perplexity_ratio": ("Perplexity", "times the target’s", "~g"),
}
COSTS = ("parameters", "parameters added", "bytes on disk", "work per token", "time per token", "memory at most")
"""The cells of a row of costs."""


def at_first(summary: Mapping[str, Any], roles: Roles) -> list[str]:
    """The variants that the page compares before the reader chooses: the first five by verdict and gain, no control."""
    first = set(ranked(summary, roles)[:_AT_FIRST])
    return [name for name in roles.variants if name in first]


def ranked(summary: Mapping[str, Any], roles: Roles) -> list[str]:
    """The variants that are no control, the best first by verdict, then by recovery or gain."""
    order = ("better", "no worse", "undecided", "worse")
    tried = [name for name, role in roles.variants.items() if not role.control_for] or list(roles.variants)

    def rank(name: str) -> tuple[int, float]:
        entry = summary["variants"][name]
        verdict, lead = entry["verdict"], entry["recovery"] or entry["gain"]
        return order.index(verdict) if verdict in order else len(order), -lead["value"] if lead else math.inf

    return sorted(tried, key=rank)


def lines(summary: Mapping[str, Any], roles: Roles, evidence: Evidence) -> list[tuple[str, list[Line]]]:
    """Topics, each with lines of a name and the words of every variant; what a variant lacks is called not measured."""
    entries: Mapping[str, Any] = summary["variants"]
    topics = [
        ("Verdict", _verdicts(entries, roles)),
        ("Further tasks", _tasks(entries)),
        ("Cost", _costs(roles, evidence)),
        ("Minimal pairs", _pairs(roles, evidence)),
        ("Confidence", _trust(roles, evidence)),
        ("Items that got worse", _losses(roles, evidence)),
    ]
    return [(heading, found) for heading, found in topics if found]


def _across(roles_or_names: Any, of: Callable[[str], str | None]) -> dict[str, str]:
    return {name: of(name) or ABSENT for name in roles_or_names}


def _verdicts(entries: Mapping[str, Any], roles: Roles) -> list[Line]:
    found: list[Line] = [("verdict", _across(roles.variants, lambda name: entries[name]["verdict"]))]
    for key, words in FIGURES.items():
        found.append((words, {name: figure(entries[name], key) for name in roles.variants}))
    return found


def _tasks(entries: Mapping[str, Any]) -> list[Line]:
    """Accuracy, and its change from the target, on each further task."""
    names = list(dict.fromkeys(task for entry in entries.values() for task in entry.get("tasks") or {}))
    found = []
    for task in names:
        for key, words in (("accuracy", ""), ("change", ", change")):
            cells = {n: (e.get("tasks") or {}).get(task, {}).get(key) for n, e in entries.items()}
            name = "gain" if key == "change" else key
            found.append((task + words, {n: told(cell, name) if cell else ABSENT for n, cell in cells.items()}))
    return found


def _costs(roles: Roles, evidence: Evidence) -> list[Line]:
    rows = {row["name"]: row["cells"] for row in costs(evidence.cost, roles)}
    found = []
    for at, words in enumerate(COSTS if rows else ()):
        cells = {n: ", ".join(filter(None, rows[n][at])) if rows[n] else ABSENT for n in roles.variants}
        found.append((words, {name: cell or ABSENT for name, cell in cells.items()}))
    return found


_PAIRS = {
    ("overall", "graft"): "shift of the log-odds, nats",
    ("overall", "difference"): "beyond the target’s",
    ("overall", "difference_from_donor"): "beyond the donor’s",
    ("overall", "consistency"): "pairs with both sides right",
    ("overall", "consistency_difference"): "more than the target has",
    ("specificity", "graft"): "specificity, 1 at best",
    ("specificity", "difference"): "specificity beyond the target’s",
}


def _pairs(roles: Roles, evidence: Evidence) -> list[Line]:
    """What was found of all pairs together, of those figures that any variant has."""
    found = []
    for (part, key), words in _PAIRS.items():
        cells = {n: (evidence.counterfactual.get(n, {}).get(part) or {}).get(key) for n in roles.variants}
        if any(cells.values()):
            found.append((words, {name: ABSENT if cell is None else told(cell, key) for name, cell in cells.items()}))
    return found


def _trust(roles: Roles, evidence: Evidence) -> list[Line]:
    found = []
    for task in dict.fromkeys(task for measured in evidence.uncertainty.values() for task in tasks(measured)):
        for key, words in _TRUST.items():
            cells = {n: figure(evidence.uncertainty.get(n, {}).get(task, {}), key) for n in roles.variants}
            missing = {name for name in cells if task not in evidence.uncertainty.get(name, {})}
            found.append((f"{words}, {task}", {n: ABSENT if n in missing else cell for n, cell in cells.items()}))
    return found


def _losses(roles: Roles, evidence: Evidence) -> list[Line]:
    counted = {name: {count["task"]: count for count in view["counts"]} for name, view in regressions(evidence).items()}
    found = []
    for task in dict.fromkeys(task for by in counted.values() for task in by):
        cells = {}
        for name in roles.variants:
            count = counted.get(name, {}).get(task)
            of = f" of {count['had']:,}" if count and count["had"] is not None else ""
            cells[name] = f"{count['lost']:,}{of}" if count else ABSENT
        found.append((task, cells))
    return found


def forests(summary: Mapping[str, Any], roles: Roles) -> list[Plot]:
    """The chosen variants' figures against the target's, one chart a figure."""
    plots = []
    for key, (title, unit, ticks) in _FORESTS.items():
        rows = [{"variant": name} | found for name in roles.variants if (found := summary["variants"][name].get(key))]
        if not rows:
            continue
        axis = {"title": unit, "axis": alt.Axis(format=ticks, tickCount=5), "scale": alt.Scale(zero=False)}
        level = 1 if key == "perplexity_ratio" else 0
        line = alt.Chart(alt.Data(values=[{"at": level}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
        chart = line + dots(rows, "variant", "variant", axis, CHOSEN, chosen("variant"))
        caption = "The dashed line is the target; an interval that crosses it leaves the direction open."
        plots.append(plot(title, caption, chart, alt.Step(26)))
    return plots


def controls(summary: Mapping[str, Any], roles: Roles) -> Plot | None:
    """The gain of each chosen variant above those of its controls."""
    rows = []
    for name, role in roles.variants.items():
        entry, kind = summary["variants"][name], "control" if role.control_for else "variant"
        if entry["gain"] and (role.control_for or roles.controls(name)):
            rows += [{"of": of, "model": name, "kind": kind} | entry["gain"] for of in role.control_for or (name,)]
    if not rows:
        return None
    axis = {"title": "right answers more than the target", "axis": alt.Axis(format="+.0%", tickCount=5)}
    inks = alt.Scale(domain=["variant", "control"], range=["#16897b", "#cf7a26"])
    none = alt.Chart(alt.Data(values=[{"at": 0}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
    caption = "A gain counts where it lies above that of the control, which was made to fail, on the same items."
    chart = none + dots(rows, "model", "kind", axis, inks, chosen("of"), spread=False)
    return plot("Gain beside the control’s", caption, chart, alt.Step(26))
