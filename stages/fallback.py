"""The graft where it is sure, the target elsewhere: what a threshold gives, and one that is safe to use."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pydantic

from stages.doubts import SCORES, doubt
from stages.errors import BadInput, nearest
from stages.maths import routing
from stages.maths.risk import proportion
from stages.maths.routing import Bound, Pool, mixed
from stages.maths.statistics import Bootstrap, Estimate, Statistic, Undefined, draw, estimate
from stages.reasons import rounded, told
from stages.settings import Settings

KINDS = ("capability", "retention")


class Routing(Settings):
    """When a graft is used, and what is promised of it."""

    score: str = "max_probability"
    """What u is made of: 1 − the probability of the own answer, or another of the scores that evaluate gives."""
    retention: float = pydantic.Field(default=0.5, gt=0, lt=1)
    """Share of retention's questions among the items that are routed; the capability's make up the rest."""
    epsilon: float = pydantic.Field(default=0.02, gt=0, lt=1)
    """Most of all items that may be lost, the target right and the graft used and wrong."""
    wrong: float = pydantic.Field(default=0.1, gt=0, lt=1)
    """Most of all items that the three-way route may answer wrongly."""
    delta: float = pydantic.Field(default=0.1, gt=0, lt=0.25)
    """The chance that such a bound is broken is at most this."""
    splits: int = pydantic.Field(default=200, gt=0)
    """Random halves on which the bound is tried."""
    graft_cost: float = pydantic.Field(default=1.0, gt=0)
    """One run of the graft, in runs of the target."""

    @pydantic.field_validator("score")
    @classmethod
    def _known(cls, score: str) -> str:
        if score not in SCORES:
            raise ValueError(f"no score {score!r}, {nearest(score, SCORES)}")
        return score


def fallback(
    items: pd.DataFrame, target: pd.DataFrame | None, settings: Routing, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Routing by the graft's uncertainty u over a mixture of capability and retention items.

    `curve` is of the test items. `chosen` is the laxest τ that keeps the bound, from the calibration items (a random
    half of the test's clusters for a kind that has none), judged on the other test items; `three_way` gives an item to
    whichever of graft and target is surer, and to nobody where both are less sure than λ; `splits` tells how often the
    bound broke over random halves of the test. Both kinds have their stated shares in every mean, and one item is
    drawn of each cluster wherever a threshold is chosen or tried. The promise needs calibration items like the later
    ones: the capability's test holds phrasings that its calibration items do not.
    """
    empty: dict[str, Any] = {"curve": [], "chosen": None, "three_way": None, "splits": None}
    made = Undefined("the target's items were not given") if target is None else _pools(items, target, settings.score)
    if isinstance(made, Undefined):
        return empty | {"undefined": dict.fromkeys(empty, made.reason)}
    kinds, test, fitting = made
    shares = np.array([1.0]) if len(kinds) < 2 else np.array([1 - settings.retention, settings.retention])
    fitted, judged, mixture = _apart(kinds, test, fitting, shares, np.random.default_rng(bootstrap.seed))
    found = {
        "chosen": _two(
            judged, shares, routing.chosen(fitted, Bound(settings.epsilon, settings.delta)), settings, bootstrap
        ),
        "three_way": _three(
            judged, shares, routing.abstaining(fitted, Bound(settings.wrong, settings.delta)), settings, bootstrap
        ),
    }
    undefined = {f"{part}.{name}": why for part, of in found.items() for name, why in of.pop("undefined").items()}
    found["chosen"]["mixture"] = mixture
    return {
        "score": settings.score,
        "curve": [rounded(point) for point in routing.curve(test, shares, settings.graft_cost)],
        **found,
        "splits": _tried(test, shares, Bound(settings.epsilon, settings.delta), settings, bootstrap),
        "undefined": undefined,
    }


def _apart(
    kinds: list[str], test: Pool, fitting: Pool, shares: np.ndarray, rng: np.random.Generator
) -> tuple[Pool, Pool, dict[str, Any]]:
    """The items that thresholds are chosen on, those that they are judged on, and how the mixture is made."""
    ours, others = routing.one_a_cluster(test, rng, len(kinds)), routing.one_a_cluster(fitting, rng, len(kinds))
    both, parts = test.beside(fitting), []
    for half, calibration in zip(ours, others, strict=True):
        parts.append(calibration + len(test) if len(calibration) else half[: len(half) // 2])
    chosen = routing.in_shares(parts, shares)
    halved = [part for part, calibration in zip(parts, others, strict=True) if not len(calibration)]
    held = np.isin(test.cluster, test.cluster[np.concatenate(halved)]) if halved else np.zeros(len(test), dtype=bool)
    judged = test.of(~held)
    mixture = {
        kind: {
            "share": float(shares[number]),
            "n": int((judged.kind == number).sum()),
            "fitted": int((both.kind[chosen] == number).sum()),
            "fitted_on": "calibration" if len(others[number]) else "half of the test",
        }
        for number, kind in enumerate(kinds)
    }
    return both.of(chosen), judged, mixture


def _pools(items: pd.DataFrame, target: pd.DataFrame, score: str) -> tuple[list[str], Pool, Pool] | Undefined:
    """The kinds of items, and the pools of the test and of the calibration items of each."""
    columns = {"graft": items, "target": target}
    for name, frame in columns.items():
        column = SCORES[score][0]
        if column not in frame:
            return Undefined(f"{column} was not measured of the {name}")
    both = items.merge(target, on=["task", "id"], suffixes=("", "_target"), validate="one_to_one")
    for kind in KINDS:
        if (items.task == kind).sum() != (both.task == kind).sum():
            raise BadInput(f"Expected the target judged on the graft's {(items.task == kind).sum()} items of {kind}, "
                           f"got {(both.task == kind).sum()} of these; rerun evaluate.")  # fmt: skip
    both = both.loc[both.task.isin(KINDS)]
    doubts = doubt(both, score), doubt(both.assign(**{SCORES[score][0]: both[f"{SCORES[score][0]}_target"]}), score)
    for found in doubts:
        if isinstance(found, Undefined) or np.isnan(found).any():
            return Undefined(f"{score} was not measured on every item")
    kinds = [kind for kind in KINDS if (both.task == kind).any()]
    pool = Pool(
        np.array([kinds.index(task) for task in both.task]),
        (both.task + " " + both.cluster.astype(str)).to_numpy(dtype=str),
        both.right.to_numpy(dtype=bool), both.right_target.to_numpy(dtype=bool),
        np.asarray(doubts[0]), np.asarray(doubts[1]),
    )  # fmt: skip
    test = both.split.to_numpy() == "test"
    if {kinds[k] for k in np.unique(pool.kind[test])} != set(kinds):
        return Undefined("not every kind of item has test items")
    return kinds, pool.of(test), pool.of(~test)


def _two(pool: Pool, shares: np.ndarray, tau: float, settings: Routing, bootstrap: Bootstrap) -> dict[str, Any]:
    used = pool.doubt <= tau
    values = {
        "coverage": used, "accuracy": np.where(used, pool.graft, pool.target), "regressed": used & pool.regressed,
        "graft_accuracy": pool.graft, "target_accuracy": pool.target, "graft_regressed": pool.regressed,
    }  # fmt: skip
    found = _figures(pool, {name: mixed(pool.kind, shares, each) for name, each in values.items()}, bootstrap)
    cost = settings.graft_cost + 1 - found["coverage"]["value"] if used.any() else 1.0
    fixed = {"threshold": _finite(tau), "epsilon": settings.epsilon, "delta": settings.delta}
    return fixed | {"cost": round(float(cost), 6)} | found


def _three(pool: Pool, shares: np.ndarray, tau: float, settings: Routing, bootstrap: Bootstrap) -> dict[str, Any]:
    first, least, right = routing.surer(pool)
    answered = least <= tau
    values = {
        "graft": answered & first, "target": answered & ~first, "abstain": ~answered, "wrong": answered & ~right,
        "regressed": answered & first & pool.regressed, "wrong_without": ~right,
    }  # fmt: skip
    statistics = {name: mixed(pool.kind, shares, each) for name, each in values.items()}
    statistics["accuracy_of_answered"] = mixed(pool.kind, shares, right, answered)
    fixed = {"threshold": _finite(tau), "epsilon": settings.wrong, "delta": settings.delta}
    return fixed | _figures(pool, statistics, bootstrap)


def _figures(pool: Pool, statistics: Mapping[str, Statistic], bootstrap: Bootstrap) -> dict[str, Any]:
    draws = draw(pool.cluster, bootstrap)
    made: dict[str, Estimate | Undefined] = {
        name: estimate(draws, statistic, (0.0, 1.0)) for name, statistic in statistics.items()
    }
    return told(made)


def _tried(pool: Pool, shares: np.ndarray, bound: Bound, settings: Routing, bootstrap: Bootstrap) -> dict[str, Any]:
    """How often the bound broke; the intervals are those of so many draws from these items, not of other items."""
    made = routing.splits(pool, shares, bound, settings.splits, bootstrap.seed)
    confidence = bootstrap.confidence
    broken, in_pool = (int((risk > bound.risk + 1e-9).sum()) for risk in (made.risk, made.risk_in_pool))
    return {
        "n": settings.splits,
        "fitted": made.items,
        "losses_allowed": made.losses,
        "epsilon": bound.risk,
        "delta": bound.doubt,
        "broken": proportion(broken, settings.splits, confidence).rounded(),
        "broken_in_pool": proportion(in_pool, settings.splits, confidence).rounded(),
        "never_used": round(float(made.never.mean()), 6),
        **{name: round(float(getattr(made, name).mean()), 6) for name in ("risk", "coverage", "accuracy")},
    }


def _finite(threshold: float) -> float | None:
    """None where no threshold is safe, so that the graft is never used."""
    return round(threshold, 6) if np.isfinite(threshold) else None
