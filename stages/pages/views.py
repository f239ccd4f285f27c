"""Figures and evidence in the order and grouping in which the page shows them."""

from collections.abc import Mapping
from typing import Any

from stages.pages import confidence
from stages.pages.roles import Roles, models
from stages.pages.words import amount, chance, listing, told

View = dict[str, Any]

_MARKS = {
    "better": ("good", "▲"),
    "no worse": ("calm", "="),
    "undecided": ("doubt", "?"),
    "worse": ("bad", "▼"),
    "control: fails as it should": ("doubt", "✓"),
    "control: also gains": ("warn", "!"),
    "not measured": ("doubt", "○"),
}


def groups(summary: Mapping[str, Any], roles: Roles) -> list[list[View]]:
    """Rows of the verdict table: the target, the donors, then each variant with its controls."""
    found: list[list[View]] = []
    for name, role, entry in models(summary, roles):
        verdict = entry.get("verdict")
        tone, mark = _MARKS.get(verdict, ("doubt", "")) if verdict else ("", "")
        about = {
            "target": "receives",
            "donor": "gives",
            "variant": f"from {entry.get('donor') or '–'}",
            "control": f"control for {listing(entry.get('control_for') or ['–'])}",
        }
        row = {"name": name, "role": role, "kind": about[role], "entry": entry, "tone": tone, "mark": mark}
        row["verdict"] = (verdict or "").removeprefix("control: ")
        row["chances"] = _chances(entry)
        row["reasons"] = "; ".join(entry.get("reasons", ()))
        if role == "control" or (role == "donor" and found[-1][0]["role"] == "donor"):
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _chances(entry: Mapping[str, Any]) -> str:
    """McNemar's p of the gain, and what it is after adjusting for all variants and tasks, where that was done."""
    adjusted = entry.get("adjusted_p")
    adjusted = adjusted.get("gain") if isinstance(adjusted, Mapping) else adjusted
    told = [chance(entry["mcnemar_p"]), f"{chance(adjusted)} adjusted" if adjusted is not None else ""]
    return "; ".join(filter(None, told))


def cells(summary: Mapping[str, Any], roles: Roles) -> View:
    """Capability by operation and digits: the columns under `kinds`, a row a model under `cells`."""
    kinds = [{"group": c["group"], "digits": c["digits"], "n": c["n"]} for c in summary["target"]["capability_by"]]
    rows = []
    for name, role, entry in models(summary, roles):
        by = {(c["group"], c["digits"]): c for c in entry["capability_by"]}
        rows.append({"name": name, "role": role, "cells": [by.get((k["group"], k["digits"])) for k in kinds]})
    return {"kinds": kinds, "cells": rows}


def counts(summary: Mapping[str, Any]) -> View:
    """How many items of each kind were asked, in words."""
    target = summary["target"]
    n = {name: (target[name] or {"n": 0})["n"] for name in ("capability", "capability_seen", "retention", "perplexity")}
    unseen = n["capability"] - n["capability_seen"]
    asked = f"{n['capability']:,} items of the capability ({unseen:,} in phrasings that training never shows)"
    return {"n": n, "basis": f"{asked}, {n['retention']:,} questions and {n['perplexity']:,} texts of other things."}


def tasks(summary: Mapping[str, Any], roles: Roles) -> View:
    """Further tasks: their `names` with role and n, and a row a model with accuracy, change and p of each."""
    every = models(summary, roles)
    names = dict.fromkeys(task for _, _, entry in every for task in entry.get("tasks") or {})
    heads = []
    for name in names:
        first = next(entry["tasks"][name] for _, _, entry in every if name in (entry.get("tasks") or {}))
        heads.append({"name": name, "role": first.get("role"), "n": first.get("n")})
    rows = [
        {"name": name, "role": role, "cells": [(entry.get("tasks") or {}).get(task) for task in names]}
        for name, role, entry in every
        if names
    ]
    return {"names": heads, "rows": rows}


def detectable(summary: Mapping[str, Any]) -> View:
    """The least effects that the items at hand could show: the largest among the variants, by figure."""
    found: dict[str, float] = {}
    for entry in summary["variants"].values():
        for name, figure in (entry.get("minimum_detectable") or {}).items():
            least = amount(figure)
            if least is not None:
                found[name] = max(found.get(name, 0.0), least)
    return found


def trust(measured: Mapping[str, Mapping[str, Any]]) -> View:
    """For each variant its tasks with their figures, and what routing to it gives as (name, words)."""
    found = {}
    for name, entry in measured.items():
        routes = confidence.routing(entry)
        facts = {
            part: [(key.replace("_", " "), told(value, key)) for key, value in (routes.get(part) or {}).items()]
            for part in ("chosen", "three_way", "splits")
        }
        by_task = {task: _named(of) for task, of in confidence.tasks(entry).items()}
        whys = dict.fromkeys(str(why) for why in (routes.get("undefined") or {}).values())
        found[name] = {"tasks": by_task, "routing": {part: of for part, of in facts.items() if of}, "whys": list(whys)}
    return found


def _named(entry: Mapping[str, Any]) -> View:
    """A task's figures with the scores under names for the reader."""
    return {**entry, "scores": {confidence.score_name(k): v for k, v in (entry.get("scores") or {}).items()}}


def controlled(summary: Mapping[str, Any], roles: Roles) -> list[View]:
    """Each variant that is no control, with its controls."""
    entries = summary["variants"]
    return [
        {
            "name": name,
            "entry": entries[name],
            "controls": [
                {"name": control, "entry": entries[control], "verdict": entries[control]["verdict"]}
                for control in roles.controls(name)
            ],
        }
        for name, role in roles.variants.items()
        if not role.control_for
    ]
