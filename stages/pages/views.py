"""Figures and evidence in the order and grouping in which the page shows them."""

import json
from collections.abc import Mapping
from typing import Any

from stages.pages.evidence import Evidence
from stages.pages.roles import Roles, models

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
            "control": f"control for {entry.get('control_for')}",
        }
        row = {"name": name, "role": role, "kind": about[role], "entry": entry, "tone": tone, "mark": mark}
        row["verdict"] = (verdict or "").removeprefix("control: ")
        row["reasons"] = "; ".join(entry.get("reasons", ()))
        if role == "control" or (role == "donor" and found[-1][0]["role"] == "donor"):
            found[-1].append(row)
        else:
            found.append([row])
    return found


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


def plan(found: Mapping[str, Any]) -> View:
    """The plan's steps and its recommendation as (key, value) pairs of text."""
    keys = ("question", "answer", "figure", "threshold")
    recommendation = found.get("recommendation") or {}
    if not isinstance(recommendation, Mapping):
        recommendation = {"recommendation": recommendation}
    return {
        "path": [{key: text(step.get(key, "")) for key in keys} for step in found.get("path") or ()],
        "recommendation": [(key.replace("_", " "), text(value)) for key, value in recommendation.items()],
    }


def recipes(roles: Roles, evidence: Evidence) -> list[View]:
    """How each donor was trained, unless its weights were drawn anew, and what params.yaml says of each variant."""
    rows = []
    for name, adoption in roles.donors.items():
        learned = {} if adoption.get("null_seed") is not None else evidence.trained.get(name, {}).get("recipe") or {}
        rows.append({"name": name, "donor": None, "recipe": {**adoption, **learned}})
    rows += [{"name": name, "donor": role.donor, "recipe": role.recipe} for name, role in roles.variants.items()]
    return [row | {"recipe": text(row["recipe"])} for row in rows]


def sources(roles: Roles, evidence: Evidence) -> list[View]:
    """Where each model came from, and its files by hash."""
    return [
        {"name": name, "source": text(found.get("source", "")), "revision": text(found.get("revision") or "–"),
         "files": sorted((found.get("files") or {}).items())}
        for name, found in evidence.sources.items()
    ]  # fmt: skip


def text(value: Any) -> str:
    """A value of params.yaml or JSON as a line for the reader."""
    if isinstance(value, Mapping):
        return " · ".join(
            f"{key} ({text(v)})" if isinstance(v, Mapping) else f"{key} {text(v)}" for key, v in value.items()
        )
    if isinstance(value, list):
        return ", ".join(text(each) for each in value)
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
