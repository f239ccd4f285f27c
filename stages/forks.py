"""The forks of the strategy flow: each a question on one donor, answered from the evidence that there is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from stages.anatomy.coverage import Coverage
from stages.anatomy.names import kind_of, layer_of

Answer = Literal["yes", "no", "not measured"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Fork:
    """One question, its figures and its answer."""

    name: str
    question: str
    answer: Answer
    needed: str
    """What "yes" takes, in words."""
    threshold: float
    figure: str
    """The figures in words; where nothing was measured, why not."""
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    remedy: str = ""
    """What to run, where nothing was measured."""


def aligned(rows: Sequence[Row], threshold: float) -> Fork:
    """Whether donor and target share one hidden space: held-out states of some layer agree as they are.

    The best layer decides and not the injected one. Blocks add to one residual stream, so models that agree in the
    early layers have the same axes in all, and what departs later is what the donor has learnt.
    """
    needed = f"cosine ≥ {threshold:g} without a bridge"
    question = "Do the donor's states lie in the target's space as they are?"
    if not rows:
        return Fork("aligned", question, "not measured", needed, threshold, "no bridge was fitted",
                    remedy="name the donor under evidence.aligned")  # fmt: skip
    as_they_are = [row for row in rows if _finite(row.get("cosine_before")) is not None]
    if not as_they_are:
        return Fork("aligned", question, "no", needed, threshold, "the hidden spaces have other widths")
    best = max(as_they_are, key=lambda row: row["cosine_before"])
    figures = {key: _finite(best.get(f"{key}_before")) for key in ("cosine", "r2")} | _pair(best)
    told = f"cosine {best['cosine_before']:.3f} at {_arrow(best)}"
    answer = "yes" if best["cosine_before"] >= threshold else "no"
    return Fork("aligned", question, answer, needed, threshold, told, figures)


def bridged(rows: Sequence[Row], threshold: float) -> Fork:
    """Whether a bridge fitted without the capability explains the target's states, on held-out rows.

    `rows` are of the pair of layers that would be grafted: early states map onto one another whatever comes of them.
    By R², since states share a large mean, which alone gives a cosine near 0.9.
    """
    question, needed = "Does a fitted bridge carry the donor's states over?", f"R² ≥ {threshold:g}"
    known = [row for row in rows if row["kind"] != "mixture" and _finite(row.get("r2")) is not None]
    if not known:
        return Fork("bridge", question, "not measured", needed, threshold, "no bridge was fitted there",
                    remedy="name the donor under evidence.aligned")  # fmt: skip
    best = max(known, key=lambda row: row["r2"])
    figures = {key: _finite(best.get(key)) for key in ("r2", "cosine")} | _pair(best)
    told = f"R² {best['r2']:.3f}, cosine {best['cosine']:.3f} ({best['kind']}, {_arrow(best)})"
    answer = "yes" if best["r2"] >= threshold else "no"
    return Fork("bridge", question, answer, needed, threshold, told, figures)


def high_impact(trace: pd.DataFrame | None, share: float, false_discovery: float) -> Fork:
    """Whether the donor's states at some layer bring so much of its gain in answer log-likelihood by themselves.

    Of the layers that do, the least harmful; of the others, where none does, the one that brings most.
    """
    needed = f"≥ {share:.0%} of the gain at one layer, q ≤ {false_discovery:g}"
    question = "Is there a layer of high impact?"
    gain, missing = _gain(trace, "states")
    if trace is None or gain is None:
        return Fork("sites", question, "not measured", needed, share, *missing)
    if gain <= 0:
        return Fork("sites", question, "no", needed, share, _no_gain(gain), {"gain": gain})
    states = trace[trace.intervention == "states"].assign(share=lambda t: t.capability / gain)
    enough = states[(states.share >= share) & _significant(states, false_discovery)]
    some = enough if len(enough) else states.sort_values("share", ascending=False, kind="stable").head(1)
    best = some.sort_values("retention", kind="stable").iloc[0]
    figures = {"gain": gain, "layer": int(best.layer), "share": float(best.share), "kl": float(best.retention)}
    figures |= {"q": _finite(best.capability_q), "layers": len(enough), "prompts": int(best.prompts)}
    told = f"layer {int(best.layer)}: {best.share:.1%} of the gain (n = {int(best.prompts)}), {_q(best)}"
    told += f", KL {best.retention:.3f} ungated; {len(enough)} of {len(states)} layers bring enough"
    return Fork("sites", question, "yes" if len(enough) else "no", needed, share, told, figures)


def vocabulary(found: Coverage | None, threshold: float) -> Fork:
    """Whether much of what the donor reads in the capability's prompts has no token of the target's."""
    question, needed = "Does the target need the donor's vocabulary?", f"> {threshold:.0%} of these tokens"
    if found is None or found.lacking is None:
        why = "the tokenizers are not there" if found is None else "the donor reads no token"
        return Fork("vocabulary", question, "not measured", needed, threshold, why, remedy="run fetch, adopt, prompts")
    figures = {"lacking": found.lacking, "tokens": found.tokens, **found.ways}
    told = f"{found.lacking:.1%} of the {found.tokens:,} tokens that it reads in the prompts are none of the target's"
    if found.same:
        told = "both have one tokenizer"
    answer = "yes" if found.lacking > threshold else "no"
    return Fork("vocabulary", question, answer, needed, threshold, told, figures)


def heterogeneous(rows: Sequence[Row], threshold: float) -> Fork:
    """Whether a gated mixture of bridges explains held-out states better than the best single bridge.

    Tasks are heterogeneous, for a bridge, when no one map serves all rows, whatever divides them; the gain in R² is
    what a mixture would bring, with no need to name the tasks. `rows` are of the pair of layers that would be grafted.
    """
    question, needed = "Are the tasks heterogeneous?", f"≥ {threshold:g} more R² from a mixture"
    known = [row for row in rows if _finite(row.get("r2")) is not None]
    mixed = [row["r2"] for row in known if row["kind"] == "mixture"]
    single = [row["r2"] for row in known if row["kind"] != "mixture"]
    if not mixed or not single:
        return Fork("tasks", question, "not measured", needed, threshold, "no mixture of bridges was fitted",
                    remedy="set align.mixture: {bridges: 2} beside a single kind")  # fmt: skip
    gain = max(mixed) - max(single)
    figures = {"gain": gain, "r2": max(single), "r2_mixture": max(mixed)} | _pair(known[0])
    told = f"R² {max(single):.3f} with one bridge, {max(mixed):.3f} with a mixture ({_arrow(known[0])})"
    return Fork("tasks", question, "yes" if gain >= threshold else "no", needed, threshold, told, figures)


def candidates(trace: pd.DataFrame | None, share: float, false_discovery: float) -> Fork:
    """Whether some layer has several parts, attention, MLP or single heads, that each bring a share of the gain.

    From exact exchanges of their states where there are any, else from the gradient's estimates.
    """
    needed = f"two or more parts of a layer, each ≥ {share:.0%} of the gain, q ≤ {false_discovery:g}"
    question = "Does a layer have several candidates?"
    measured = set() if trace is None else set(trace.intervention)
    intervention = "donor_states" if "donor_states" in measured else "attribution_states"
    gain, missing = _gain(trace, intervention)
    if trace is None or gain is None:
        return Fork("candidates", question, "not measured", needed, share, *missing)
    if gain <= 0:
        return Fork("candidates", question, "no", needed, share, _no_gain(gain), {"gain": gain})
    parts = trace.loc[trace.intervention == intervention]
    parts = parts.loc[[kind_of(site) in ("attention", "mlp", "head") for site in parts.site]]
    if parts.empty:
        return Fork("candidates", question, "not measured", needed, share, "no part of a layer was traced",
                    remedy="add layers.*.self_attn and layers.*.mlp to trace.sites")  # fmt: skip
    good = parts.loc[_significant(parts, false_discovery) & (parts.capability / gain >= share)]
    layers = [layer_of(site) for site in good.site]
    several = sorted({layer for layer in layers if layer is not None and layers.count(layer) > 1})
    figures = {"parts": len(parts), "candidates": len(good), "layers": len(several)}
    told = f"{len(good)} of {len(parts)} parts bring enough, {len(several)} layers have several of them"
    told += f" ({'exact' if intervention == 'donor_states' else 'estimated'})"
    if several:
        told += f": {', '.join(map(str, several))}"
    return Fork("candidates", question, "yes" if several else "no", needed, share, told, figures)


def _gain(trace: pd.DataFrame | None, intervention: str) -> tuple[float | None, tuple[str, dict[str, Any], str]]:
    """The whole donor's gain in nats where `trace` can answer for `intervention`; else why not and what to run."""
    if trace is None:
        return None, ("the donor was not traced", {}, "name it under evidence.traced, which takes a donor of the "
                      "target's architecture; else build blades at several layers and compare")  # fmt: skip
    whole = trace[trace.intervention == "donor"].capability.dropna()
    rows = trace[trace.intervention == intervention]
    tested = "capability_q" in trace and rows.capability_q.notna().any()
    if whole.empty or rows.capability.dropna().empty or not tested:
        return None, (f"the trace has no tested {intervention.replace('_', ' ')}", {}, "run trace again")
    return float(whole.iloc[0]), ("", {}, "")


def _significant(rows: pd.DataFrame, false_discovery: float) -> pd.Series:
    """Effects above nothing, at this rate of false discoveries over the sites of the intervention."""
    return (rows.capability > 0) & (rows.capability_q <= false_discovery)


def _no_gain(gain: float) -> str:
    return f"the donor answers no better than the target ({gain:.3f} nats)"


def _q(row: Any) -> str:
    q = _finite(row.capability_q)
    return "q –" if q is None else "q < 0.001" if q < 0.001 else f"q = {q:.3f}"


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _pair(row: Row) -> dict[str, int]:
    return {"donor_layer": int(row["donor_layer"]), "target_layer": int(row["target_layer"])}


def _arrow(row: Row) -> str:
    return f"{row['donor_layer']} → {row['target_layer']}"
