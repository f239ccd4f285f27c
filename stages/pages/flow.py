"""The strategy flow of each donor as the page draws it: a column of forks, each with its way aside."""

from collections.abc import Mapping
from typing import Any

from stages.pages.words import line

View = dict[str, Any]


def flows(found: Mapping[str, Any]) -> list[View]:
    """A view for each donor of the plan, its forks as rows of the main column.

    A fork has two ways out: `aside` to a method or to a detour, which is a fork whose answers all lead back to the
    column and stands beside it, and `onward` to the next row or to the last method.
    """
    methods = found.get("methods") or {}
    return [_flow(donor, made, methods) for donor, made in (found.get("donors") or {}).items()]


def _flow(donor: str, made: Mapping[str, Any], methods: Mapping[str, str]) -> View:
    steps = {step["name"]: step for step in made["path"]}
    detours = {name for name, step in steps.items() if len(set(step["exits"].values())) == 1}
    rows = []
    for name, step in steps.items():
        if name in detours:
            continue
        leads = set(step["exits"].values())
        aside = next(iter(leads & detours), step["exits"]["yes"])
        (onward,) = leads - {aside}
        ways: dict[str, View] = {to: _way(step, to) | {"to": methods.get(to)} for to in leads}
        if aside in detours:
            ways[aside]["detour"] = _fork(steps[aside])
            ways[onward] |= {"taken": ways[onward]["taken"] or steps[aside]["reached"]}
            ways[onward]["answers"] += ", or over the bridge"
        rows.append({"step": _fork(step), "aside": ways[aside], "onward": ways[onward]})
    recommended = made["recommendation"]
    recipe = recommended["recipe"] or {}
    built = line({key: recipe[key] for key in (*sorted(recipe.keys() - {"training"}), "training") if key in recipe})
    told = {"method": methods.get(recommended["method"], recommended["method"]), "note": recommended["note"]}
    return {"donor": donor, "rows": rows, "built": built} | told


def _fork(step: Mapping[str, Any]) -> View:
    """One fork in words."""
    said = {key: line(step[key]) for key in ("question", "answer", "figure", "needed", "remedy")}
    return said | {"taken": step["reached"], "tone": said["answer"].replace(" ", "-")}


def _way(step: Mapping[str, Any], to: str) -> View:
    """The answers that lead to one place, and whether the flow takes them."""
    answers = " or ".join(answer for answer in ("yes", "no", "not measured") if step["exits"][answer] == to)
    return {"answers": answers, "taken": step["reached"] and step["next"] == to, "detour": None}
