"""The experiment in figures: one entry a model, each figure with its interval, and a verdict for every variant."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.errors import BadInput
from stages.maths import statistics
from stages.maths.paired import mcnemar, minimum_detectable
from stages.maths.statistics import Bootstrap, Estimate, Undefined
from stages.pages.measures import (
    CORE,
    Figure,
    Ground,
    Model,
    Part,
    as_graft,
    lay,
    on_capability,
    on_retention,
    on_text,
    paired,
)  # fmt: skip
from stages.pages.repeats import repeats
from stages.pages.roles import Roles
from stages.pages.verdict import Rules, judge

FIGURES = (
    "capability", "capability_seen", "capability_unseen", "gain", "recovery", "tir", "over_control", "retention",
    "retention_change", "perplexity", "perplexity_ratio", "kl_to_target", "agreement",
)  # fmt: skip
"""The figures of every entry; `measures` defines them."""
_AGAINST_TARGET = ("gain", "tir", "retention_change", "perplexity_ratio", "kl_to_target", "agreement")
_OF_VARIANTS = ("recovery", "over_control")
_TESTED = {"capability": ("mcnemar_p", "adjusted_p", "gain"),
           "retention": ("retention_mcnemar_p", "retention_adjusted_p", "retention_change")}  # fmt: skip


def summarize(
    items: Mapping[str, pd.DataFrame],
    roles: Roles,
    bootstrap: Bootstrap,
    rules: Rules,
    seeds: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """`{"target": entry, "donors": {name: entry}, "variants": {name: entry}, "seeds": {name: ...}}` from evaluated rows
    by model name.

    An entry has the keys FIGURES, each `{"value", "low", "high", "n"}` or null, with the reason under `undefined`, and
    capability_by, mcnemar_p and adjusted_p of the gain, retention_mcnemar_p and retention_adjusted_p of the change on
    retention, minimum_detectable `{"gain", "retention_change"}`, and tasks: for each further one `{"role", "accuracy",
    "change", "recovery", "over_control", "perplexity_ratio", "mcnemar_p", "adjusted_p", "n"}`. Variants also have
    donor, control_for (a list, or null), aims, verdict and reasons. All models share the draws over the target's
    clusters, so differences are paired. p-values are adjusted over all variants that are no controls, on all tasks.
    `seeds` names variants that repeat another's recipe; `repeats` says what of them is told. `items` are of the
    test alone. Raises BadInput when the target was not evaluated, or a model on other items than the target.
    """
    if "target" not in items:
        raise BadInput("Expected evaluated items of the target, got none; run `dvc repro` to make them.")
    target = items["target"]
    shared = lay({name: _model(rows, target, name) for name, rows in items.items()}, bootstrap)

    def entry(name: str, donor: str | None = None, controls: Sequence[str] | None = None) -> dict[str, Any]:
        if name not in shared.models:
            return _entry(dict.fromkeys(FIGURES, Undefined("not measured")))
        figures = on_capability(shared, name) | on_retention(shared, name) | on_text(shared, name)
        figures |= dict.fromkeys(_OF_VARIANTS, Undefined("only variants have one"))
        if controls is not None:
            figures |= as_graft(shared.tasks.get("capability"), name, donor, controls)
        if name == "target":
            figures |= dict.fromkeys(_AGAINST_TARGET, Undefined("the target against itself"))
        return _entry(figures) | _details(shared, name, rules) | {"tasks": _tasks(shared, name, donor, controls)}

    donors = {name: entry(name) for name in roles.donors}
    variants = {name: entry(name, role.giver, roles.controls(name)) for name, role in roles.variants.items()}
    _adjust([variants[name] for name, role in roles.variants.items() if not role.control_for], rules)
    for name, role in roles.variants.items():
        controls = {control: variants[control] for control in roles.controls(name)}
        aims = roles.aims(name)
        verdict = judge(variants[name], controls, rules, aims, role.control_for)
        about = {"donor": role.giver, "control_for": list(role.control_for) or None, "aims": list(aims)}
        variants[name] |= {**about, **verdict}
    told = repeats(shared, seeds or {})
    return {"target": entry("target"), "donors": donors, "variants": variants, "seeds": told}


def _model(rows: pd.DataFrame, target: pd.DataFrame, name: str) -> Model:
    """By task; a task beyond the core that the model was not judged on is left out."""
    both = {task for task in target.task.unique() if task in CORE or (rows.task == task).any()}
    keys = [frame.loc[frame.task.isin(both), ["task", "id"]].to_numpy() for frame in (rows, target)]
    if keys[0].shape != keys[1].shape or (keys[0] != keys[1]).any():
        ours, theirs = (list(map(tuple, each.tolist())) for each in keys)
        raise BadInput(f"Expected {name} to be judged on the target's {len(theirs)} items in their order, got "
                       f"{len(set(ours) & set(theirs))} of them in {len(ours)} rows; rerun evaluate.")  # fmt: skip
    return {str(task): part.reset_index(drop=True) for task, part in rows.groupby("task", sort=False) if task in both}


def _entry(figures: Mapping[str, Figure]) -> dict[str, Any]:
    chances = dict.fromkeys(p for names in _TESTED.values() for p in names[:2])
    return {
        **dict.fromkeys(FIGURES),
        **{name: e.rounded() for name, e in figures.items() if isinstance(e, Estimate)},
        "undefined": {name: e.reason for name, e in figures.items() if isinstance(e, Undefined)},
        "capability_by": [],
        **chances,
        "minimum_detectable": {"gain": None, "retention_change": None},
        "tasks": {},
    }


def _details(shared: Ground, model: str, rules: Rules) -> dict[str, Any]:
    """Accuracy by operation and digits, the exact p of both changes, and the least ones that would have been found."""
    by = []
    for (group, digits), part in shared.cells.items():
        found = paired(part, statistics.accuracy, model)
        if isinstance(found, Estimate):
            by.append({"group": group, "digits": digits, **found.rounded()})
    told: dict[str, Any] = {"capability_by": by, "minimum_detectable": {}}
    for task, (chance, _, change) in _TESTED.items():
        part = shared.tasks.get(task) if model != "target" else None
        told[chance] = _chance(part, model)
        told["minimum_detectable"][change] = _detectable(part, model, rules)
    return told


def _tasks(shared: Ground, model: str, donor: str | None, controls: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """What is known of the further tasks that the model was judged on."""
    told = {}
    for task, role in shared.roles.items():
        if task in CORE or task not in shared.models[model]:
            continue
        part, against = shared.tasks.get(task), model != "target"
        figures: dict[str, Figure] = {}
        if role == "text":
            figures["perplexity_ratio"] = on_text(shared, model, task)["perplexity_ratio"]
        else:
            figures["accuracy"] = paired(part, statistics.accuracy, model)
            figures["change"] = paired(part, statistics.difference, model, "target")
            figures |= as_graft(part, model, donor, controls) if controls is not None else {}
        if not against:
            figures = {name: each for name, each in figures.items() if name == "accuracy"}
        empty = dict.fromkeys(("accuracy", "change", "recovery", "over_control", "perplexity_ratio"))
        found = {name: each.rounded() for name, each in figures.items() if isinstance(each, Estimate)}
        chance = _chance(part, model) if against else None
        about = {"mcnemar_p": chance, "adjusted_p": None, "n": len(shared.models[model][task])}
        told[task] = {"role": role, **empty, **found, **about}
    return told


def _adjust(entries: Sequence[dict[str, Any]], rules: Rules) -> None:
    """Writes adjusted p-values beside those of all `entries`, which are one family."""
    places = [(entry, *names[:2]) for entry in entries for names in _TESTED.values()]
    places += [(task, "mcnemar_p", "adjusted_p") for entry in entries for task in entry["tasks"].values()]
    places = [place for place in places if place[0][place[1]] is not None]
    for (into, _, key), p in zip(places, rules.adjusted([into[name] for into, name, _ in places]), strict=True):
        into[key] = _told(p)


def _chance(part: Part | None, model: str) -> float | None:
    if part is None or model not in part.scores:
        return None
    return _told(mcnemar(part.scores[model], part.scores["target"], part.draws.members))


def _detectable(part: Part | None, model: str, rules: Rules) -> float | None:
    if part is None or model not in part.scores:
        return None
    pair = np.clip([part.scores[model], part.scores["target"]], 0, 1)
    found = minimum_detectable(*pair, part.draws.members, rules.level, rules.power)
    return None if found is None else round(found, 6)


def _told(p: float) -> float:
    return float(f"{p:.3g}")
