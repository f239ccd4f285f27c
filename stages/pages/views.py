"""Figures and evidence in the order and grouping in which the page shows them."""

from collections.abc import Mapping
from typing import Any

from stages.pages.evidence import Evidence
from stages.pages.roles import Roles, models
from stages.pages.words import line, listing

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


def recipes(roles: Roles, evidence: Evidence) -> list[View]:
    """How each donor was trained, unless its weights were drawn anew, and what params.yaml says of each variant.

    Of a variant that follows the plan also the layers and parts that this came to.
    """
    rows = []
    for name, adoption in roles.donors.items():
        learned = {} if adoption.get("null_seed") is not None else evidence.trained.get(name, {}).get("recipe") or {}
        rows.append({"name": name, "donor": None, "recipe": {**adoption, **learned}})
    for name, role in roles.variants.items():
        kept = ("layer", "donor_layer", "gate", "bridge", "mix") if role.strategy else ()
        followed = {key: value for key, value in evidence.built.get(name, {}).items() if key in kept}
        followed |= {"strategy": role.strategy} if role.strategy else {}
        rows.append({"name": name, "donor": role.donor, "recipe": {**followed, **role.recipe}})
    return [row | {"recipe": line(row["recipe"])} for row in rows]


def sources(roles: Roles, evidence: Evidence) -> list[View]:
    """Where each model came from, and its files by hash."""
    return [
        {"name": name, "source": line(found.get("source", "")), "revision": line(found.get("revision") or "–"),
         "files": sorted((found.get("files") or {}).items())}
        for name, found in evidence.sources.items()
    ]  # fmt: skip
