"""Figures as text, the same in the page and in the Markdown summary."""

from collections.abc import Mapping
from typing import Any

from stages.pages.roles import Roles, models

DASH = "–"
_DECIMALS = {"perplexity": 2, "kl_to_target": 4, "tir": 2}
_SIGNED = ("gain", "retention_change", "over_control")


def number(value: float, name: str = "") -> str:
    """`value` with the decimals of the figure `name`, a real minus sign, and a plus sign on differences."""
    text = f"{value:{'+' if name in _SIGNED else ''}.{_DECIMALS.get(name, 3)}f}"
    return text.replace("-", "−")


def span(figure: Mapping[str, float], name: str = "") -> str:
    """The interval alone: [low, high]."""
    return f"[{number(figure['low'], name)}, {number(figure['high'], name)}]"


def figure(entry: Mapping[str, Any], name: str) -> str:
    """value [low, high], or a dash."""
    found = entry.get(name)
    return f"{number(found['value'], name)} {span(found, name)}" if found else DASH


def chance(p: float | None) -> str:
    """A p-value for the eye."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def listing(names: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def finding(summary: Mapping[str, Any], roles: Roles) -> str:
    """The result in a sentence or two, from the figures."""
    variants = summary["variants"]
    tried = [name for name, role in roles.variants.items() if not role.control_for]
    good = [name for name in tried if variants[name]["verdict"] == "better"]
    if not tried:
        return "No variant was built, so there is nothing to judge."
    if not good:
        verdicts = listing([f"{name} is {variants[name]['verdict']}" for name in tried])
        return f"No variant is shown to be better than the target: {verdicts}."
    best = max(good, key=lambda name: (variants[name]["recovery"] or variants[name]["gain"])["value"])
    entry, target = variants[best], summary["target"]
    moved = f"{best} answers {_percent(entry['capability'])} of the capability's items, the target {_percent(target['capability'])}"
    if entry["recovery"]:
        moved += f": {_percent(entry['recovery'])} of what {entry['donor']} is ahead"
    cost = f"at {number(entry['perplexity_ratio']['value'])} times the target's perplexity on unrelated text"
    controls = roles.controls(best)
    ends = [f"{control} {'gains less' if variants[control]['gain']['low'] > 0 else 'gains nothing'}" for control in controls]
    others = [name for name in good if name != best]
    also = f" {listing(others)} {'is' if len(others) == 1 else 'are'} better than the target too." if others else ""
    return f"{moved}, {cost}. Its control {listing(ends)}.{also}"


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.1f} %".replace("-", "−")


def markdown(summary: Mapping[str, Any], roles: Roles) -> str:
    """The verdicts as a Markdown page."""
    columns = {
        "capability": "capability",
        "recovery": "recovery",
        "retention": "retention",
        "perplexity_ratio": "perplexity ratio",
        "kl_to_target": "KL to target",
    }
    counts = {name: {e[name]["n"] for _, _, e in models(summary, roles) if e.get(name)} for name in columns}
    heads = [f"{words} (n = {min(counts[name])})" if counts[name] else words for name, words in columns.items()]
    lines = [f"| model | {' | '.join(heads)} | verdict |", "|---" * (len(heads) + 2) + "|"]
    for name, role, entry in models(summary, roles):
        words = entry.get("verdict", role)
        cells = [figure(entry, key) for key in columns]
        lines.append(f"| {inert(name)} | {' | '.join(cells)} | {inert(words)} |")
    return f"{inert(finding(summary, roles))}\n\n" + "\n".join(lines) + "\n\nIn brackets: bootstrap intervals, paired by item.\n"


def inert(text: str) -> str:
    """`text` on one line, with everything that Markdown or HTML could act on escaped."""
    kept = "".join(f"\\{c}" if c in "\\`*_[]()#|!~" else c for c in " ".join(str(text).split()))
    return kept.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

