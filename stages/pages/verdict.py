"""What the figures of a variant allow one to say: better, no worse, undecided or worse, by rules stated beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]
"""A model's figures, as the summary has them."""

NEEDED = ("gain", "retention_change", "perplexity_ratio")


@dataclass(frozen=True)
class Rules:
    """Where the lines are drawn."""

    perplexity_limit: float = 1.02
    """The largest perplexity ratio that still counts as unharmed."""
    margin: float = 0.02
    """A loss of accuracy up to this counts as none, however sure it is, and so does a control's gain; "no worse" needs
    intervals that exclude a larger loss."""


def judge(entry: Entry, controls: Mapping[str, Entry], control_for: str | None, rules: Rules) -> dict[str, Any]:
    """`{"verdict", "reasons"}` of one variant, from its own figures and those of its controls.

    worse: the gain or the retention change is a loss beyond the margin and its interval lies below 0, or the perplexity
    ratio's interval lies above the limit.
    better: the gain's interval lies above 0, the perplexity ratio is within the limit, no control gains
    unharmed, and the difference to every control lies above 0; without a measured control nothing is better.
    no worse: neither, and a loss beyond the margin is excluded. undecided: the rest.
    A control gains when its gain's interval lies above 0 and the gain itself above the margin; else it fails as it
    should.
    """
    missing = [name for name in NEEDED if entry.get(name) is None]
    if missing:
        words = ", ".join(name.replace("_", " ") for name in missing)
        return {
            "verdict": "not measured",
            "reasons": [f"{words}: {entry['undefined'].get(missing[0], 'not measured')}"],
        }
    gain, change, ratio = (entry[name] for name in NEEDED)
    if control_for:
        if _gains(entry, rules):
            return {"verdict": "control: also gains", "reasons": [f"it gains too, so {control_for} has to surpass it"]}
        reason = f"no gain beyond {rules.margin:g}, as it should be beside {control_for}"
        return {"verdict": "control: fails as it should", "reasons": [reason]}
    limit = f"the limit of {rules.perplexity_limit:g}"
    losses = []
    if _loses(gain, rules):
        losses.append("it loses on the capability")
    if _loses(change, rules):
        losses.append("it loses on retention")
    if ratio["low"] > rules.perplexity_limit:
        losses.append(f"its perplexity ratio is above {limit}")
    if losses:
        return {"verdict": "worse", "reasons": (["it gains on the capability"] if gain["low"] > 0 else []) + losses}
    if gain["low"] > 0:
        doubts = _doubts(entry, controls, rules)
        if doubts:
            return {"verdict": "undecided", "reasons": ["it gains on the capability", *doubts]}
        held = "hold" if change["high"] >= 0 else f"hold to within {rules.margin:g}"
        reason = f"it gains, retention and perplexity {held}, and {' and '.join(controls)} cannot match it"
        return {"verdict": "better", "reasons": [reason]}
    if gain["low"] >= -rules.margin and change["low"] >= -rules.margin and ratio["high"] <= rules.perplexity_limit:
        return {"verdict": "no worse", "reasons": [f"no gain shown, and a loss beyond {rules.margin:g} is excluded"]}
    return {"verdict": "undecided", "reasons": ["no gain shown, and the intervals leave room for a loss"]}


def _doubts(entry: Entry, controls: Mapping[str, Entry], rules: Rules) -> list[str]:
    """What keeps a gain from being a verdict of better."""
    doubts = []
    if entry["perplexity_ratio"]["value"] > rules.perplexity_limit:
        doubts.append(f"its perplexity ratio is above the limit of {rules.perplexity_limit:g}, though not surely")
    if not controls:
        doubts.append("it has no control")
    for name, control in controls.items():
        if any(control.get(key) is None for key in NEEDED):
            doubts.append(f"its control {name} was not measured")
        elif _gains_unharmed(control, rules):
            doubts.append(f"its control {name} is better than the target too")
    if controls and not doubts and not (entry.get("over_control") or {"low": -1})["low"] > 0:
        doubts.append("it is not surely above its control")
    return doubts


def _gains_unharmed(entry: Entry, rules: Rules) -> bool:
    harmed = _loses(entry["retention_change"], rules) or entry["perplexity_ratio"]["value"] > rules.perplexity_limit
    return _gains(entry, rules) and not harmed


def _loses(change: Mapping[str, float], rules: Rules) -> bool:
    return change["high"] < 0 and change["value"] < -rules.margin


def _gains(control: Entry, rules: Rules) -> bool:
    return control["gain"]["low"] > 0 and control["gain"]["value"] > rules.margin
