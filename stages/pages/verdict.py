"""What the figures of a variant allow one to say: better, no worse, undecided or worse, by rules stated beforehand."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pydantic

from stages.maths.discovery import holm, q_values
from stages.settings import Settings

Entry = Mapping[str, Any]
"""A model's figures, as the summary has them."""

_CHANGES = {"capability": ("gain", "adjusted_p"), "retention": ("retention_change", "retention_adjusted_p")}


class Rules(Settings):
    """Where the lines are drawn: the section `verdict` of params.yaml."""

    perplexity_limit: float = pydantic.Field(default=1.02, ge=1)
    """The largest perplexity ratio on unrelated text that still counts as unharmed."""
    margin: float = pydantic.Field(default=0.02, ge=0)
    """A loss of accuracy up to this counts as none, however sure it is, and so does a control's gain; "no worse" needs
    intervals that exclude a larger loss."""
    level: float = pydantic.Field(default=0.05, gt=0, lt=1)
    """The chance of a false claim that is accepted: over all variants and tasks, or as `correction` says."""
    power: float = pydantic.Field(default=0.8, gt=0, lt=1)
    """With which the least detectable difference would be found."""
    correction: Literal["holm", "benjamini_hochberg", "none"] = "holm"
    """Over all variants that are no controls, on all tasks: of the chance of any false claim, of the share of false
    claims, or of nothing. Controls are not corrected for: that would make it harder for them to speak up."""
    required: tuple[str, ...] = ("gain", "retention_change", "perplexity_ratio")
    """Figures of an entry, or further tasks, without which there is no verdict but `not measured`."""

    def adjusted(self, chances: Sequence[float]) -> list[float]:
        """The p-values of one family after correction."""
        if not chances or self.correction == "none":
            return list(chances)
        return (holm if self.correction == "holm" else q_values)(np.array(chances)).tolist()


def judge(
    entry: Entry,
    controls: Mapping[str, Entry],
    rules: Rules,
    aims: Sequence[str] = ("capability",),
    control_for: Sequence[str] = (),
) -> dict[str, Any]:
    """`{"verdict", "reasons"}` of one variant, from its own figures and those of its controls.

    `aims` are the tasks that it is to gain on. A change is sure when its interval leaves out 0 and its adjusted p is at
    most the level.
    worse: the change on any task is a sure loss beyond the margin, or a perplexity ratio's interval lies above the
    limit.
    better: every aim's gain is sure, no task shows a loss beyond the margin even before adjustment, the perplexity
    ratio is within the limit, no control gains unharmed, and the lead over every control lies above 0; without a
    measured control nothing is better.
    no worse: neither, and a loss beyond the margin is excluded. undecided: the rest.
    A control gains when its change on an aim has its interval above 0 and itself above the margin; else it fails as it
    should.
    """
    missing = [name for name in _needed(rules, aims) if _evidence(entry, name) is None]
    if missing:
        words = ", ".join(name.replace("_", " ") for name in missing)
        why = entry["undefined"].get(missing[0], "not measured")
        return {"verdict": "not measured", "reasons": [f"{words}: {why}"]}
    if control_for:
        return _of_control(entry, rules, aims, control_for)
    gained = {task: _gain(entry, task, rules) for task in aims}
    claims = [f"it gains on {_words(task)}" for task, sure in gained.items() if sure is not None]
    losses = [f"it loses on {_words(task)}" for task in _tasks(entry) if _loses(entry, task, rules, sure=True)]
    losses += [
        f"its perplexity ratio{place} is above the limit of {rules.perplexity_limit:g}"
        for place, ratio in _ratios(entry).items()
        if ratio["low"] > rules.perplexity_limit
    ]
    unmeasured = [f"{name.replace('_', ' ')}: not measured" for name in _unmeasured(entry)]
    if losses:
        return {"verdict": "worse", "reasons": claims + losses}
    if claims:
        doubts = _unsure(gained, rules) + _doubts(entry, controls, rules, aims)
        if doubts:
            return {"verdict": "undecided", "reasons": [*claims, *doubts, *unmeasured]}
        changes = [_change(entry, task) for task in _tasks(entry) if task not in aims]
        held = f"hold to within {rules.margin:g}" if any(c["high"] < 0 for c in changes) else "hold"
        reason = f"it gains, retention and perplexity {held}, and {' and '.join(controls)} cannot match it"
        return {"verdict": "better", "reasons": [reason, *unmeasured]}
    excluded = all(_change(entry, task)["low"] >= -rules.margin for task in _tasks(entry))
    if excluded and all(ratio["high"] <= rules.perplexity_limit for ratio in _ratios(entry).values()):
        reason = f"no gain shown, and a loss beyond {rules.margin:g} is excluded"
        return {"verdict": "no worse", "reasons": [reason, *unmeasured]}
    return {
        "verdict": "undecided",
        "reasons": ["no gain shown, and the intervals leave room for a loss", *unmeasured],
    }


def _of_control(entry: Entry, rules: Rules, aims: Sequence[str], control_for: Sequence[str]) -> dict[str, Any]:
    judged = " and ".join(control_for)
    if any(_control_gains(entry, task, rules) for task in aims):
        verb = "has" if len(control_for) == 1 else "have"
        return {"verdict": "control: also gains", "reasons": [f"it gains too, so {judged} {verb} to surpass it"]}
    reason = f"no gain beyond {rules.margin:g}, as it should be beside {judged}"
    return {"verdict": "control: fails as it should", "reasons": [reason]}


def _unsure(gained: Mapping[str, bool | None], rules: Rules) -> list[str]:
    """Aims that it is not shown to gain on, or not after correction for how much was tried."""
    doubts = [f"no gain shown on {_words(task)}" for task, sure in gained.items() if sure is None]
    late = [_words(task) for task, sure in gained.items() if sure is False]
    if late:
        doubts.append(f"the gain on {' and '.join(late)} is not sure at {rules.level:g} after correction")
    return doubts


def _doubts(entry: Entry, controls: Mapping[str, Entry], rules: Rules, aims: Sequence[str]) -> list[str]:
    """What keeps a gain from being a verdict of better."""
    doubts = [
        f"it may lose on {_words(task)}, though not surely after correction"
        for task in _tasks(entry)
        if _loses(entry, task, rules, sure=False)
    ]
    doubts += [
        f"its perplexity ratio{place} is above the limit of {rules.perplexity_limit:g}, though not surely"
        for place, ratio in _ratios(entry).items()
        if ratio["value"] > rules.perplexity_limit
    ]
    if not controls:
        doubts.append("it has no control")
    unmatched = True
    for name, control in controls.items():
        if any(_evidence(control, each) is None for each in _needed(rules, aims)):
            doubts.append(f"its control {name} was not measured")
        elif _gains_unharmed(control, rules, aims):
            doubts.append(f"its control {name} is better than the target too")
        else:
            continue
        unmatched = False
    if controls and unmatched and not all((_lead(entry, task) or {"low": -1})["low"] > 0 for task in aims):
        doubts.append("it is not surely above its control")
    return doubts


def _gains_unharmed(control: Entry, rules: Rules, aims: Sequence[str]) -> bool:
    harmed = any(_loses(control, task, rules, sure=False) for task in _tasks(control) if task not in aims)
    harmed |= any(ratio["value"] > rules.perplexity_limit for ratio in _ratios(control).values())
    return not harmed and any(_control_gains(control, task, rules) for task in aims)


def _control_gains(control: Entry, task: str, rules: Rules) -> bool:
    change = _change(control, task)
    return change["low"] > 0 and change["value"] > rules.margin


def _gain(entry: Entry, task: str, rules: Rules) -> bool | None:
    """None where no gain is shown, False for one that is not sure after correction."""
    return _sure(entry, task, rules) if _change(entry, task)["low"] > 0 else None


def _loses(entry: Entry, task: str, rules: Rules, sure: bool) -> bool:
    change = _change(entry, task)
    return change["high"] < 0 and change["value"] < -rules.margin and (not sure or _sure(entry, task, rules))


def _sure(entry: Entry, task: str, rules: Rules) -> bool:
    """Controls, whose p is not adjusted, and figures without one go by their intervals."""
    key = _CHANGES[task][1] if task in _CHANGES else "adjusted_p"
    p = (entry if task in _CHANGES else entry["tasks"][task]).get(key)
    return p is None or p <= rules.level


def _tasks(entry: Entry) -> list[str]:
    """The tasks on which a change from the target was measured."""
    return [task for task in (*_CHANGES, *entry.get("tasks", {})) if _change(entry, task) is not None]


def _change(entry: Entry, task: str) -> Any:
    if task in _CHANGES:
        return entry.get(_CHANGES[task][0])
    return entry.get("tasks", {}).get(task, {}).get("change")


def _lead(entry: Entry, task: str) -> Any:
    """Over the control that comes nearest."""
    return (entry if task == "capability" else entry.get("tasks", {}).get(task, {})).get("over_control")


def _ratios(entry: Entry) -> dict[str, Any]:
    """The perplexity ratios that were measured, by where, in words."""
    further = {f" on {name}": task.get("perplexity_ratio") for name, task in entry.get("tasks", {}).items()}
    return {place: ratio for place, ratio in ({"": entry.get("perplexity_ratio")} | further).items() if ratio}


def _needed(rules: Rules, aims: Sequence[str]) -> list[str]:
    """The evidence without which nothing is said."""
    return list(dict.fromkeys((*rules.required, *("gain" if task == "capability" else task for task in aims))))


def _evidence(entry: Entry, name: str) -> Any:
    """A figure of the entry, or what was measured on a task."""
    if name in entry.get("tasks", {}):
        return _change(entry, name) or entry["tasks"][name].get("perplexity_ratio")
    return entry.get(name)


def _unmeasured(entry: Entry) -> list[str]:
    return [name for name in ("gain", "retention_change", "perplexity_ratio") if entry.get(name) is None]


def _words(task: str) -> str:
    return "the capability" if task == "capability" else task
