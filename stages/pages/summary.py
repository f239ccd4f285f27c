"""The experiment in figures: one entry a model, each figure with its interval, and a verdict for every variant."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stages.errors import BadInput
from stages.maths import statistics
from stages.maths.statistics import Bootstrap, Estimate, Undefined
from stages.pages.measures import Figure, Ground, Model, as_graft, lay, on_capability, on_retention, on_text
from stages.pages.roles import Role, Roles
from stages.pages.verdict import Rules, judge

FIGURES = (
    "capability", "capability_seen", "capability_unseen", "gain", "recovery", "tir", "over_control", "retention",
    "retention_change", "perplexity", "perplexity_ratio", "kl_to_target", "agreement",
)  # fmt: skip
"""The figures of every entry; `measures` defines them."""
_AGAINST_TARGET = ("gain", "tir", "retention_change", "perplexity_ratio", "kl_to_target", "agreement")
_OF_VARIANTS = ("recovery", "over_control")


def summarize(items: Mapping[str, pd.DataFrame], roles: Roles, bootstrap: Bootstrap, rules: Rules) -> dict[str, Any]:
    """`{"target": entry, "donors": {name: entry}, "variants": {name: entry}}` from evaluated rows by model name.

    An entry has the keys FIGURES, each `{"value", "low", "high", "n"}` or null, with the reason under `undefined`, and
    capability_by, mcnemar_p. Variants also have donor, control_for, verdict and reasons. All models share the draws
    over the target's clusters, so differences are paired. Raises BadInput when the target was not evaluated, or a
    model on other items than the target.
    """
    if "target" not in items:
        raise BadInput("Expected evaluated items of the target, got none; run `dvc repro` to make them.")
    models = {name: _model(rows, items["target"], name) for name, rows in items.items()}
    shared = lay(models["target"], bootstrap)

    def entry(name: str, role: Role | None = None) -> dict[str, Any]:
        if name not in models:
            return _entry(dict.fromkeys(FIGURES, Undefined("not measured")))
        model = models[name]
        figures = on_capability(shared, model) | on_retention(shared, model) | on_text(shared, model)
        figures |= dict.fromkeys(_OF_VARIANTS, Undefined("only variants have one"))
        if role:
            controls = [models[control] for control in roles.controls(name) if control in models]
            figures |= as_graft(shared, model, models.get(role.giver or ""), controls)
        if name == "target":
            figures |= dict.fromkeys(_AGAINST_TARGET, Undefined("the target against itself"))
        return _entry(figures) | _details(shared, model, against=name != "target")

    donors = {name: entry(name) for name in roles.donors}
    variants = {name: entry(name, role) for name, role in roles.variants.items()}
    for name, role in roles.variants.items():
        controls = {control: variants[control] for control in roles.controls(name)}
        verdict = judge(variants[name], controls, role.control_for, rules)
        variants[name] |= {"donor": role.giver, "control_for": role.control_for, **verdict}
    return {"target": entry("target"), "donors": donors, "variants": variants}


def _model(rows: pd.DataFrame, target: pd.DataFrame, name: str) -> Model:
    ours, theirs = (list(zip(frame.task, frame.id, strict=True)) for frame in (rows, target))
    if ours != theirs:
        raise BadInput(f"Expected {name} to be judged on the target's {len(theirs)} items in their order, got "
                       f"{len(set(ours) & set(theirs))} of them in {len(ours)} rows; rerun evaluate.")  # fmt: skip
    return Model(*(rows.loc[rows.task == task].reset_index(drop=True) for task in ("capability", "retention", "text")))


def _entry(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {
        **dict.fromkeys(FIGURES),
        **{name: e.rounded() for name, e in figures.items() if isinstance(e, Estimate)},
        "undefined": {name: e.reason for name, e in figures.items() if isinstance(e, Undefined)},
        "capability_by": [],
        "mcnemar_p": None,
    }


def _details(shared: Ground, model: Model, against: bool) -> dict[str, Any]:
    """Accuracy by operation and digits; the exact p of the gain to three figures."""
    by = []
    for (group, digits), part in shared.cells.items():
        found = statistics.accuracy(part.draws, part.right(model.capability)) if part else None
        if isinstance(found, Estimate):
            by.append({"group": group, "digits": digits, **found.rounded()})
    whole, p = shared.capability, None
    if whole and against:
        p = float(f"{statistics.mcnemar(whole.right(model.capability), whole.right(shared.target.capability)):.3g}")
    return {"capability_by": by, "mcnemar_p": p}
