"""Whether a model's confidence tells right answers from wrong ones, and whether it means what it says.

Every measure takes weights [draws, items], so that `statistics.estimate` can resample it; `once(n)` weighs each item 1.
"""

from dataclasses import dataclass

import numpy as np

from stages.maths.statistics import Statistic

_LEAST = 1e-6  # chance that counts
MOST_NLL = float(-np.log(_LEAST))
"""What one wrong answer can add, in nats."""


@dataclass(frozen=True)
class Bin:
    """Items of like confidence."""

    low: float
    high: float
    confidence: float
    """Mean of the items' confidence."""
    accuracy: float
    n: int


@dataclass(frozen=True)
class Point:
    """What answering only the surest items costs."""

    coverage: float
    """Share of items that are answered."""
    risk: float
    """Share of wrong answers among these."""


def once(items: int) -> np.ndarray:
    """Weights [1, items] that take every item as it is."""
    return np.ones((1, items))


def assign(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each item [items], counted from 0: at most `bins` bins of like size, equal confidences in one bin.

    Bins of equal mass (arXiv 1508.05154) instead of equal width, since most confidences of a language model lie near 1.
    """
    _, values, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2  # of each value's places in the ranking
    return np.unique((middle * bins / len(confidence)).astype(int)[values], return_inverse=True)[1]


def assign_by_width(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each item [items], counted from 0: `bins` bins of equal width over [0, 1], each with its upper end."""
    return np.unique(np.ceil(confidence * bins).clip(1).astype(int), return_inverse=True)[1]


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int) -> list[Bin]:
    """The bins of `assign`, from the least to the most confident."""
    member = assign(confidence, bins)
    told = [(confidence[member == b], right[member == b]) for b in range(int(member.max()) + 1)]
    return [Bin(float(c.min()), float(c.max()), float(c.mean()), float(r.mean()), len(c)) for c, r in told]


def ece(confidence: np.ndarray, right: np.ndarray, bins: int) -> Statistic:
    """Expected calibration error Σ n_b / n · |accuracy_b − confidence_b| over bins of equal width (arXiv 1706.04599).

    Where a model is sure of nearly all its answers, most of them share the last bin, in which too high and too low a
    confidence cancel out; `adaptive_ece` sees these. Biased upwards on few items, even for a model that is calibrated:
    compare with `ece_by_chance`.
    """
    return _ece(confidence, right, assign_by_width(confidence, bins))


def adaptive_ece(confidence: np.ndarray, right: np.ndarray, bins: int) -> Statistic:
    """The same over bins of equal mass (arXiv 1508.05154, 1904.01685), those of `assign`.

    The bins are those of all items, also for a resample. Biased upwards on few items likewise.
    """
    return _ece(confidence, right, assign(confidence, bins))


def ece_by_chance(confidence: np.ndarray, bins: int, draws: int, seed: int) -> np.ndarray:
    """ECE [draws] that a model with these confidences would show, were each the true chance of a right answer."""
    member, rng = assign_by_width(confidence, bins), np.random.default_rng(seed)
    flat = once(len(confidence))
    return np.array([_ece(confidence, rng.random(len(confidence)) < confidence, member)(flat)[0] for _ in range(draws)])


def _ece(confidence: np.ndarray, right: np.ndarray, member: np.ndarray) -> Statistic:
    gaps = np.zeros((len(member), int(member.max()) + 1))
    gaps[np.arange(len(member)), member] = right.astype(np.float64) - confidence
    return lambda w: np.abs(w @ gaps).sum(-1) / w.sum(-1)


def nll(confidence: np.ndarray, right: np.ndarray) -> Statistic:
    """Mean of −log of the chance that was given to what happened, in nats an item; ln 2 is what 1/2 everywhere gives.

    A chance below 1e-6 counts as that: evaluate's confidences are rounded so, and one item must not decide all.
    """
    told = -np.log(np.where(right, confidence, 1 - confidence).clip(_LEAST))
    return lambda w: (w @ told) / w.sum(-1)


def brier(confidence: np.ndarray, right: np.ndarray) -> Statistic:
    """Mean of (confidence − right)²; 0 is best, 0.25 what confidence 1/2 everywhere gives."""
    squares = (confidence - right) ** 2
    return lambda w: (w @ squares) / w.sum(-1)


def auroc(confidence: np.ndarray, right: np.ndarray) -> Statistic:
    """The chance that a right answer has more confidence than a wrong one, ties counted half.

    NaN where all answers are right or all are wrong.
    """
    order, starts = _blocks(confidence)
    hits = right[order].astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        w = weights[:, order]
        good, bad = np.add.reduceat(w * hits, starts, axis=1), np.add.reduceat(w * (1 - hits), starts, axis=1)
        less_sure = bad.sum(1, keepdims=True) - np.cumsum(bad, axis=1)  # blocks run from sure to unsure
        pairs = good.sum(1) * bad.sum(1)
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, (good * (less_sure + bad / 2)).sum(1) / pairs, np.nan)

    return statistic


def aurc(confidence: np.ndarray, right: np.ndarray) -> Statistic:
    """Area under the risk–coverage curve (arXiv 1705.08500): the risk of the k surest answers, averaged over k = 1 … n.

    Items of equal confidence share their block's error rate, the mean over every order of them.
    """
    order, starts = _blocks(confidence)
    wrong = 1 - right[order].astype(np.float64)
    sizes = np.diff([*starts, len(order)])

    def statistic(weights: np.ndarray) -> np.ndarray:
        w = weights[:, order]
        mass, errors = np.add.reduceat(w, starts, axis=1), np.add.reduceat(w * wrong, starts, axis=1)
        rate = np.divide(errors, mass, out=np.zeros_like(errors), where=mass > 0)
        failed = w * np.repeat(rate, sizes, axis=1)
        # an item drawn w times fills w places of the ranking; the middle one stands for them
        answered = np.cumsum(w, axis=1) - (w - 1) / 2
        risk = (np.cumsum(failed, axis=1) - failed * (w - 1) / (2 * np.maximum(w, 1))) / np.maximum(answered, 0.5)
        return (w * risk).sum(1) / w.sum(1)

    return statistic


def excess_aurc(confidence: np.ndarray, right: np.ndarray) -> Statistic:
    """AURC less that of a confidence which puts every right answer first (arXiv 1805.08206); 0 is best."""
    whole, best = aurc(confidence, right), aurc(right.astype(np.float64), right)
    return lambda w: whole(w) - best(w)


def risk_coverage(confidence: np.ndarray, right: np.ndarray, points: int = 101) -> list[Point]:
    """The risk–coverage curve at up to `points` coverages, evenly spread and ending with all items."""
    order, starts = _blocks(confidence)
    wrong = 1 - right[order].astype(np.float64)
    sizes = np.diff([*starts, len(order)])
    risk = np.cumsum(np.repeat(np.add.reduceat(wrong, starts) / sizes, sizes)) / np.arange(1, len(order) + 1)
    shown = np.unique(np.linspace(0, len(order) - 1, min(points, len(order))).round().astype(int))
    return [Point(float((k + 1) / len(order)), float(risk[k])) for k in shown]


def _blocks(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order from sure to unsure [items], and where in it each run of equal confidences starts [blocks]."""
    order = np.argsort(-confidence, kind="stable")
    return order, np.flatnonzero(np.diff(confidence[order], prepend=np.nan) != 0)
