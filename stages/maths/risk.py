"""Thresholds that keep a risk below a bound with a stated probability."""

import numpy as np
from scipy.special import bdtr, betaincinv

from stages.maths.statistics import Estimate


def allowed(items: int, risk: float, doubt: float) -> int:
    """The most losses among `items` independent ones at which a risk above `risk` is refuted at level `doubt`; −1 for
    none.

    The largest k with P(Binomial(items, risk) ≤ k) ≤ doubt, the exact p-value of Learn then Test (arXiv 2110.01052) for
    losses of 0 or 1. Holds too where the items are so many of each of several kinds, fixed beforehand: for k at most
    items · risk − 1 the binomial's lower tail is then the larger one (Hoeffding 1956, DOI 10.1214/aoms/1177728178), and
    no larger k is given.
    """
    counts = np.arange(int(np.floor(items * risk - 1 + 1e-9)) + 1)
    return int((bdtr(counts, items, risk) <= doubt).sum()) - 1


def threshold(uncertainty: np.ndarray, lost: np.ndarray, risk: float, doubt: float) -> float:
    """The largest τ among the items' uncertainties such that acting where u ≤ τ loses on at most the share `risk` of
    items, with a probability of at least 1 − `doubt` over the draw of the items; −∞, never to act, where none is safe.

    `lost` [items] says where acting would lose. The share of u ≤ τ that lose only rises with τ, so thresholds are
    tested from the strictest on until one fails, each at the whole level (fixed sequence testing, arXiv 2110.01052;
    for rising risks also 2101.02703). Conformal risk control (2208.02814) bounds the mean over draws alone, which is
    less than a probability. Needs ln doubt / ln (1 − risk) items or more, and items that are exchangeable with later
    ones: one for each cluster.
    """
    most = allowed(len(uncertainty), risk, doubt)
    if most < 0:
        return -np.inf
    values, place = np.unique(uncertainty, return_inverse=True)
    losses = np.cumsum(np.bincount(place, weights=lost.astype(np.float64)))
    safe = int((losses <= most).sum())
    return float(values[safe - 1]) if safe else -np.inf


def proportion(count: int, of: int, confidence: float) -> Estimate:
    """A share of independent trials with its exact (Clopper–Pearson) interval; `of` is above 0."""
    tail = (1 - confidence) / 2
    low = float(betaincinv(count, of - count + 1, tail)) if count else 0.0
    high = float(betaincinv(count + 1, of - count, 1 - tail)) if count < of else 1.0
    return Estimate(count / of, low, high, of)
