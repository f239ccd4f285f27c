"""One recipe trained with several seeds: the mean over them, as sure as items and seeds allow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from stages.maths.statistics import ALIKE, Column, Draws, Estimate, Undefined, bounded, over, sums


@dataclass(frozen=True)
class Pooled:
    """A figure over several seeds of one recipe."""

    estimate: Estimate
    spread: float
    """Standard deviation over the seeds."""


def over_seeds(
    draws: Draws, values: Sequence[Column], per: Column, span: tuple[float, float] | None = None
) -> Pooled | Undefined:
    """The mean over seeds of Σ values / Σ per, with an interval that holds the choice of items and that of seeds.

    `values` has a column for each seed, judged on the same items. Items are drawn anew as ever. Seeds are too few to
    draw anew (three have ten samples with replacement, which understate their spread), so each resample adds
    s / √seeds · t instead, with s their standard deviation and t of Student's distribution on seeds − 1 degrees:
    where items matter little this is the t interval of the seeds, where seeds matter little the bootstrap. What seeds
    and items do to each other is counted in both, which widens it a little. Undefined for a single seed.
    """
    seeds = len(values)
    if seeds < 2:
        return Undefined("one seed only, which says nothing of others")
    *totals, count = sums(draws, *values, per)
    spread = float(np.std([over(each[:1], count[:1])[0] for each in totals], ddof=1))
    middle = over(np.sum(totals, axis=0), seeds * count)
    resamples = len(draws.counts)
    if np.isfinite(spread) and spread > ALIKE:
        order = np.random.default_rng(seeds).permutation(resamples)
        middle[1 : 1 + resamples] += spread / seeds**0.5 * stdtrit(seeds - 1, (order + 0.5) / resamples)
    found = bounded(draws, middle, span)
    if isinstance(found, Undefined):
        return found
    low, high = np.clip([found.low, found.high], *span) if span else (found.low, found.high)
    return Pooled(Estimate(found.value, float(low), float(high), found.n), spread)
