"""What several seeds of one recipe come to: the mean of each figure, and how far the seeds lie apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stages.maths.seeds import Pooled, over_seeds
from stages.maths.statistics import Column, Draws, Estimate, Totals, Undefined
from stages.pages.measures import Ground

_FIGURES = ("capability", "gain", "retention_change", "perplexity_ratio")


def repeats(ground: Ground, seeds: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """By recipe `{"members": [names], FIGURE: figure or null, "undefined": {FIGURE: reason}}`.

    `seeds` has for a variant those that are the same with other seeds. A figure is `{"value", "low", "high", "n",
    "spread", "seeds"}`: the mean over all of them (of perplexity ratios the geometric one), with an interval that holds
    items and seeds, and the standard deviation over the seeds. Null where one was not judged on these items.
    """
    told = {}
    for name, others in seeds.items():
        members = [name, *others]
        absent = [each for each in members if each not in ground.models]
        found: dict[str, Pooled | Undefined] = dict.fromkeys(
            _FIGURES, Undefined(f"{' and '.join(absent)} not judged on these items")
        )
        if not absent:
            found = {figure: _pooled(ground, members, figure) for figure in _FIGURES}
        told[name] = {"members": members} | {figure: _json(each, len(members)) for figure, each in found.items()}
        told[name]["undefined"] = {f: each.reason for f, each in found.items() if isinstance(each, Undefined)}
    return told


def _pooled(ground: Ground, members: Sequence[str], figure: str) -> Pooled | Undefined:
    if figure == "perplexity_ratio":
        return _on_text(ground, members)
    part = ground.tasks.get("retention" if figure == "retention_change" else "capability")
    if part is None:
        return Undefined("no such items")
    columns: list[Column] = [part.sums[each] for each in members]
    span = (0.0, 1.0)
    if figure != "capability":
        target, span = part.sums["target"].sums, (-1.0, 1.0)
        columns = [Totals(part.sums[each].sums - target) for each in members]
    return over_seeds(part.draws, columns, part.draws.size, span)


def _on_text(ground: Ground, members: Sequence[str]) -> Pooled | Undefined:
    """The geometric mean of the ratios: the pooled log of it, taken back."""
    draws: Draws | None = ground.texts.get("text")
    rows = [ground.models[each]["text"] for each in ("target", *members)] if draws else []
    if draws is None or any((each.tokens != rows[0].tokens).any() for each in rows):
        return Undefined("no texts" if draws is None else "another tokenizer than the target's")
    target, *others = (each.loglikelihood.to_numpy(dtype=np.float64) for each in rows)
    tokens = rows[0].tokens.to_numpy(dtype=np.float64)
    found = over_seeds(draws, [target - each for each in others], tokens)
    if isinstance(found, Undefined):
        return found
    ends = {key: float(np.exp(getattr(found.estimate, key))) for key in ("value", "low", "high")}
    return Pooled(replace(found.estimate, **ends), found.spread * ends["value"])


def _json(found: Pooled | Undefined, seeds: int) -> dict[str, float | int] | None:
    if isinstance(found, Undefined):
        return None
    estimate: Estimate = found.estimate
    return estimate.rounded() | {"spread": round(found.spread, 6), "seeds": seeds}
