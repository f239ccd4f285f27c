"""What it is worth to use a graft only where it is sure, and the target, or nobody, elsewhere."""

from dataclasses import dataclass

import numpy as np

from stages.maths.risk import allowed, threshold
from stages.maths.statistics import Statistic


@dataclass(frozen=True)
class Pool:
    """Items of several kinds that two models have answered."""

    kind: np.ndarray
    """[items], counted from 0"""
    cluster: np.ndarray
    """[items], labels; items of different kinds never share one"""
    graft: np.ndarray
    """[items], whether the graft is right"""
    target: np.ndarray
    """[items], whether the target is right"""
    doubt: np.ndarray
    """[items], the graft's uncertainty u"""
    target_doubt: np.ndarray
    """[items], the target's"""

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, chosen: np.ndarray) -> "Pool":
        """The items at these places."""
        return Pool(*(values[chosen] for values in vars(self).values()))

    def beside(self, other: "Pool") -> "Pool":
        """These items and then the others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Pool(*(np.concatenate(pair) for pair in pairs))

    @property
    def regressed(self) -> np.ndarray:
        """[items], where the target alone is right: what using the graft would lose."""
        return self.target & ~self.graft


@dataclass(frozen=True)
class Bound:
    """What is promised: a share of losses of at most `risk`, with a probability of at least 1 − `doubt`."""

    risk: float
    doubt: float


def mixed(kind: np.ndarray, shares: np.ndarray, values: np.ndarray, of: np.ndarray | None = None) -> Statistic:
    """The mean of `values` [items] over a mixture in which each kind has its share; with `of`, over those items alone.

    Every kind's mean is taken by itself, so that its share is the same in every resample.
    """
    own = np.arange(len(shares))[:, None] == kind
    asked = own if of is None else own * of.astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            per = shares / (weights @ own.T)
            return (per * (weights @ (asked * values).T)).sum(-1) / (per * (weights @ asked.T)).sum(-1)

    return statistic


def one_a_cluster(pool: Pool, rng: np.random.Generator, kinds: int) -> list[np.ndarray]:
    """Places of one item of each cluster, by kind, all drawn and ordered at random."""
    order = rng.permutation(len(pool))
    first = order[np.sort(np.unique(pool.cluster[order], return_index=True)[1])]
    return [first[pool.kind[first] == kind] for kind in range(kinds)]


def in_shares(places: list[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """As many of each kind's places, the first ones, as give every kind its share, and as many in all as there are."""
    whole = min(len(own) / share for own, share in zip(places, shares, strict=True) if share > 0)
    return np.concatenate([own[: int(whole * share + 1e-9)] for own, share in zip(places, shares, strict=True)])


def curve(pool: Pool, shares: np.ndarray, graft_cost: float, points: int = 101) -> list[dict[str, float]]:
    """What thresholds τ on u give: `coverage`, the share for which the graft is used, `accuracy` and `regressed` of all
    items, and `cost` in runs of the target an item: the graft runs first, the target where u > τ.

    From the strictest observed threshold to the laxest, up to `points` of them at even distances in rank.
    """
    values = np.unique(pool.doubt)
    shown = values[np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))]
    used = pool.doubt[None] <= shown[:, None]
    weight = (shares / np.bincount(pool.kind, minlength=len(shares)))[pool.kind]
    coverage, lost = used @ weight, used @ (weight * pool.regressed)
    right = np.where(used, pool.graft, pool.target) @ weight
    return [
        {"threshold": float(t), "coverage": float(c), "accuracy": float(a), "regressed": float(r), "cost": float(cost)}
        for t, c, a, r, cost in zip(shown, coverage, right, lost, graft_cost + 1 - coverage, strict=True)
    ]


def chosen(pool: Pool, bound: Bound) -> float:
    """The laxest τ that is known from these items to keep the bound on items that the graft loses."""
    return threshold(pool.doubt, pool.regressed, bound.risk, bound.doubt)


def surer(pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether the graft is at least as sure as the target, the surer one's uncertainty, and whether it is right."""
    first = pool.doubt <= pool.target_doubt
    return first, np.minimum(pool.doubt, pool.target_doubt), np.where(first, pool.graft, pool.target)


def abstaining(pool: Pool, bound: Bound) -> float:
    """The laxest λ that keeps the bound on wrong answers, where the surer model answers if its u ≤ λ, else nobody."""
    _, doubt, right = surer(pool)
    return threshold(doubt, ~right, bound.risk, bound.doubt)


@dataclass(frozen=True)
class Splits:
    """How thresholds fared that were chosen on one part and judged on another, over many random parts."""

    risk: np.ndarray
    """[splits], regressed items on the other half"""
    coverage: np.ndarray
    """[splits]"""
    accuracy: np.ndarray
    """[splits]"""
    risk_in_pool: np.ndarray
    """[splits], regressed items of the whole pool, for thresholds chosen on as many drawn from it with replacement"""
    never: np.ndarray
    """[splits], whether no threshold was safe"""
    items: int
    """Calibration items of a split"""
    losses: int
    """The most of these on which a threshold may lose"""


def splits(pool: Pool, shares: np.ndarray, bound: Bound, count: int, seed: int) -> Splits:
    """Thresholds chosen on random halves of the clusters, judged on the other halves, `count` times.

    The risk on a half of the items is itself uncertain, so it can exceed the bound more often than the promise allows.
    Draws with replacement make the pool itself the population, whose risk is known: there the promise holds exactly.
    """
    rng = np.random.default_rng(seed)
    weight = (shares / np.bincount(pool.kind, minlength=len(shares)))[pool.kind]
    every = [np.flatnonzero(pool.kind == kind) for kind in range(len(shares))]
    found, size = [], 0
    for _ in range(count):
        places = one_a_cluster(pool, rng, len(shares))
        fitted = in_shares([own[: len(own) // 2] for own in places], shares)
        rest = np.concatenate([own[len(own) // 2 :] for own in places])
        size = len(fitted)
        tau = chosen(pool.of(fitted), bound)
        used = pool.doubt[rest] <= tau
        per = (shares / np.bincount(pool.kind[rest], minlength=len(shares)))[pool.kind[rest]]
        right = np.where(used, pool.graft[rest], pool.target[rest])
        drawn = np.concatenate([
            rng.choice(own, int((pool.kind[fitted] == kind).sum())) for kind, own in enumerate(every)
        ])  # fmt: skip
        known = (pool.doubt <= chosen(pool.of(drawn), bound)) @ (weight * pool.regressed)
        found.append(((used & pool.regressed[rest]) @ per, used @ per, right @ per, known, tau == -np.inf))
    risk, coverage, accuracy, in_pool, never = np.array(found, dtype=np.float64).T
    return Splits(risk, coverage, accuracy, in_pool, never, size, allowed(size, bound.risk, bound.doubt))
