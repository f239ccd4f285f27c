"""Figures as text, the same in the page and in the Markdown summary."""

import json
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from stages.pages.roles import Roles
from stages.pages.texts import shown

DASH = "–"
_DECIMALS = {"perplexity": 2, "kl_to_target": 4, "tir": 2, "aurc": 4, "excess_aurc": 4}
_NAMED = 6
_LINE = 4000  # characters of a line of Markdown
_SIGNED = ("gain", "retention_change", "over_control")


def number(value: float, name: str = "") -> str:
    """`value` with the decimals of the figure `name`, a real minus sign, and a plus sign on differences."""
    decimals = _DECIMALS.get(name, 3)
    rounded = round(value, decimals) or 0.0  # no signed zero
    return f"{rounded:{'+' if name in _SIGNED and rounded else ''}.{decimals}f}".replace("-", "−")


def span(figure: Mapping[str, float], name: str = "") -> str:
    """The interval alone: [low, high]."""
    return f"[{number(figure['low'], name)}, {number(figure['high'], name)}]"


def figure(entry: Mapping[str, Any], name: str) -> str:
    """value [low, high], or a dash."""
    found = entry.get(name)
    return f"{number(found['value'], name)} {span(found, name)}" if found else DASH


def chance(p: float | None) -> str:
    """A p-value for the eye; empty without one."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def breakable(name: str) -> Markup:
    """`name`, escaped and apart from the direction of its surroundings, with places where a line may break: after
    underscores, hyphens and points."""
    parted = re.sub(r"([_.-])", r"\1<wbr>", str(escape(shown(name))))
    return Markup(f"<bdi>{parted}</bdi>")


def amount(value: Any) -> float | None:
    """The number that a figure stands for, or that stands alone; None for neither."""
    found = value.get("value") if isinstance(value, Mapping) else value
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def told(value: Any, name: str = "") -> str:
    """Whatever a stage wrote, on a line: a figure with its interval, a number, a list, named values."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else number(value, name)
    if isinstance(value, Mapping):
        if value.get("value") is not None:
            return (
                f"{number(value['value'], name)} {span(value, name)}" if "low" in value else told(value["value"], name)
            )
        return " · ".join(f"{str(key).replace('_', ' ')} {told(each, str(key))}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(told(each, name) for each in value)
    return shown(value)


def listing(names: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def finding(summary: Mapping[str, Any], roles: Roles) -> str:
    """The result in a sentence, from the figures: the variant with the highest recovery among those that are better."""
    variants = summary["variants"]
    tried = [name for name, role in roles.variants.items() if not role.control_for]
    good = _better(summary, roles)
    if not tried:
        return "No variant was built, so there is nothing to judge."
    if not good:
        return f"No variant is shown to be better than the target: {_grouped(variants, tried)}."
    best, controls = good[0], roles.controls(good[0])
    if "capability" not in variants[best]["aims"]:
        return f"{best} is better than the target on {listing(variants[best]['aims'])}."
    entry, target = variants[best], summary["target"]
    lead = f", {_percent(entry['recovery'])} of {entry['donor']}’s lead" if entry["recovery"] else ""
    ends = [f"{name} gains {'less' if variants[name]['gain']['low'] > 0 else 'nothing'}" for name in controls]
    return (
        f"{best} raises the capability from {_percent(target['capability'])} to {_percent(entry['capability'])}{lead}, "
        f"at {number(entry['perplexity_ratio']['value'])} times the target’s perplexity on unrelated text; "
        f"its control{'s' if len(controls) > 1 else ''} {listing(ends)}."
    )


def others(summary: Mapping[str, Any], roles: Roles) -> str:
    """What became of the other variants, in a sentence; empty without any."""
    good = _better(summary, roles)
    rest = [name for name, role in roles.variants.items() if not role.control_for and name not in good[:1]]
    if not good or not rest:
        return ""
    return f"Of the other variants, {_grouped(summary['variants'], rest)}."


def _grouped(entries: Mapping[str, Mapping[str, Any]], names: list[str]) -> str:
    """The verdicts on the variants `names`, those of the same verdict together, by number where they are many."""
    verdicts = {name: entries[name]["verdict"] for name in names}
    clauses = []
    for verdict in dict.fromkeys(verdicts.values()):
        alike = [name for name in names if verdicts[name] == verdict]
        clauses.append(
            f"{listing(alike) if len(alike) <= _NAMED else len(alike)} {'is' if len(alike) == 1 else 'are'} {verdict}"
        )
    return listing(clauses)


def _better(summary: Mapping[str, Any], roles: Roles) -> list[str]:
    """The variants that are better than the target, the best on the capability first."""
    variants = {name: summary["variants"][name] for name in roles.variants}
    good = [name for name, entry in variants.items() if entry["verdict"] == "better"]
    gains = {name: (variants[name]["recovery"] or variants[name]["gain"])["value"] for name in good}
    return sorted(good, key=lambda name: ("capability" not in variants[name]["aims"], -gains[name]))


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.1f} %".replace("-", "−")


def inert(text: str) -> str:
    """`text` on one line, with everything that Markdown or HTML could act on escaped."""
    kept = "".join(f"\\{c}" if c in "\\`*_[]()#|!~" else c for c in " ".join(shown(text, _LINE).split()))
    return kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def line(value: Any) -> str:
    """A value of params.yaml or JSON as a line for the reader."""
    if isinstance(value, Mapping):
        return " · ".join(
            f"{key} ({line(v)})" if isinstance(v, Mapping) else f"{key} {line(v)}" for key, v in value.items()
        )
    if isinstance(value, list):
        return ", ".join(line(each) for each in value)
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
