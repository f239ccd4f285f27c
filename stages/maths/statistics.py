"""How sure one can be of a figure: bootstrap intervals over clusters of items, paired where models share the items."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from stages.errors import BadInput

Statistic = Callable[[np.ndarray], np.ndarray]
"""From weights [draws, items] (how often a draw has each item) to one figure a draw [draws]. NaN leaves a draw out;
an infinity makes the interval unbounded."""

ALIKE = 1e-9
"""Figures closer than this differ by rounding only."""
_CELLS = 4_000_000  # weights held at a time
_PICKS = 100_000  # clusters drawn at a time: what a processor's cache holds
_GROUPS = 1_000  # most clusters or groups of clusters that the jackknife leaves out in turn


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float
    n: int
    """Items behind it."""

    def rounded(self) -> dict[str, float | int]:
        """As a JSON object, to six decimals: the last bits of a sum differ between machines."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6), "n": self.n}


@dataclass(frozen=True)
class Undefined:
    """A figure that these items cannot give."""

    reason: str
    """One clause for the reader, without a full stop."""


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Totals:
    """The sum of one figure over the items, which `Draws.totals` takes of many figures at once."""

    sums: np.ndarray
    """[1 + resamples + groups]: over all items, over each resample, and over all but each group of clusters"""


Column = ArrayLike | Totals
"""One figure an item [items], or its sums."""


@dataclass(frozen=True)
class Draws:
    """Clusters drawn with replacement; figures from the same draws are paired."""

    members: np.ndarray
    """[items], the index of each item's cluster"""
    counts: np.ndarray
    """[resamples, clusters], how often a resample has a cluster"""
    confidence: float

    @property
    def clusters(self) -> int:
        """How many there are to draw from."""
        return self.counts.shape[1]

    @cached_property
    def size(self) -> Totals:
        """How many items a draw has."""
        return self.totals(np.ones((len(self.members), 1)))[0]

    def totals(self, columns: np.ndarray) -> list[Totals]:
        """The sums of each of `columns` [items, columns], by one product of matrices over clusters.

        A figure made of sums costs so much less than one that needs every item's weight: many models share a product.
        """
        inside = np.stack([np.bincount(self.members, each, self.clusters) for each in columns.T], axis=-1)
        group = np.arange(self.clusters) % _GROUPS
        groups = np.stack([np.bincount(group, each) for each in inside.T], axis=-1)
        step = max(1, _CELLS // self.clusters)
        blocks = (self.counts[start : start + step] for start in range(0, len(self.counts), step))
        whole = inside.sum(0, keepdims=True)
        found = np.concatenate([whole, *(each.astype(np.float64) @ inside for each in blocks), whole - groups])
        return [Totals(each) for each in np.ascontiguousarray(found.T)]

    def resampled(self) -> Iterable[np.ndarray]:
        """Weights [draws, items] of every resample, some draws at a time."""
        return self._kept[0] if self._small else self._resample()

    def left_out(self) -> Iterable[np.ndarray]:
        """Weights [draws, items] that leave out one cluster (or one of a thousand groups of clusters) at a time."""
        return self._kept[1] if self._small else self._leave_out()

    @property
    def _small(self) -> bool:
        return len(self.counts) * len(self.members) <= _CELLS

    @cached_property
    def _kept(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return list(self._resample()), list(self._leave_out())

    def _resample(self) -> Iterator[np.ndarray]:
        step = max(1, _CELLS // len(self.members))
        for start in range(0, len(self.counts), step):
            yield self.counts[start : start + step, self.members].astype(np.float64)

    def _leave_out(self) -> Iterator[np.ndarray]:
        group = self.members % _GROUPS
        groups = min(_GROUPS, self.clusters)
        step = max(1, _CELLS // len(group))
        for start in range(0, groups, step):
            yield (group != np.arange(start, min(start + step, groups))[:, None]).astype(np.float64)


def draw(clusters: Sequence[object] | np.ndarray, bootstrap: Bootstrap) -> Draws:
    """Draws over items with these cluster labels [items]; the same labels and seed give the same draws.

    Raises BadInput when there is no item.
    """
    labels, members = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(labels)
    if not count:
        raise BadInput("Expected at least one item to resample, got none; evaluate on more items.")
    generator = np.random.default_rng(bootstrap.seed)
    counts = np.empty((bootstrap.resamples, count), dtype=np.uint8)  # more than 255 of one cluster never come up
    step = max(1, _PICKS // count)
    for start in range(0, bootstrap.resamples, step):
        rows = min(step, bootstrap.resamples - start)
        picks = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count)
    return Draws(members, counts, bootstrap.confidence)


def estimate(draws: Draws, statistic: Statistic, span: tuple[float, float] | None = None) -> Estimate | Undefined:
    """`statistic` on all items, with its BCa interval (Efron 1987, DOI 10.1080/01621459.1987.10478410).

    `span` is the range that the figure cannot leave. Where all resamples agree, a bootstrap would claim certainty;
    then the interval allows for the share of other items that n clusters alike can have missed,
    1 − ((1 − confidence) / 2)^(1/n), the exact (Clopper–Pearson) bound for a proportion of 0 or 1. Where more than
    one draw in twenty has no figure, the interval is the whole span. Undefined where the figure itself is, or where
    no finite interval was found.
    """
    value = statistic(np.ones((1, len(draws.members))))
    if not np.isfinite(value[0]):
        return Undefined("not defined on these items")
    drawn = np.concatenate([statistic(weights) for weights in draws.resampled()])
    left = () if span and np.ptp(drawn) < ALIKE else map(statistic, draws.left_out())
    return bounded(draws, np.concatenate([value, drawn, *left]), span)


def bounded(draws: Draws, figures: np.ndarray, span: tuple[float, float] | None = None) -> Estimate | Undefined:
    """The estimate from a figure [1 + resamples + groups] on all items, on each resample and without each group.

    As `estimate` has it; for figures that are made of `Totals`.
    """
    items, count = len(draws.members), len(draws.counts)
    value, resampled, jackknife = float(figures[0]), figures[1 : 1 + count], figures[1 + count :]
    if not np.isfinite(value):
        return Undefined("not defined on these items")
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < 0.95 * len(resampled):
        return Estimate(value, *span, items) if span else Undefined("too few items to bound it")
    if span and np.ptp(defined) < ALIKE:
        missed = unseen_share(draws.clusters, 1 - draws.confidence)
        low, high = (value + missed * (end - value) for end in span)
        return Estimate(value, low, high, items)
    low, high = bca(value, defined, jackknife, draws.confidence)
    if not np.isfinite([low, high]).all():
        return Undefined("too few items to bound it")
    return Estimate(value, low, high, items)


def bca(value: float, resampled: np.ndarray, jackknife: np.ndarray, confidence: float) -> tuple[float, float]:
    """Bias-corrected and accelerated bounds from resampled [draws] and leave-one-out [clusters] figures.

    The bounds are the quantiles Φ(z₀ + (z₀ ± z) / (1 − a (z₀ ± z))), with z₀ from the share of draws below `value`
    and a from the skewness of the jackknife.
    """
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    edge = 0.5 / len(resampled)
    bias = ndtri(np.clip(below, edge, 1 - edge))
    with np.errstate(invalid="ignore"):
        pull = jackknife.mean() - jackknife
        spread = (pull**2).sum()
        skew = (pull**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    levels = ndtr(bias + shifted / (1 - (skew if np.isfinite(skew) else 0.0) * shifted))
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(resampled, levels)
    return float(low), float(high)


def unseen_share(clusters: int, doubt: float) -> float:
    """The largest share of other outcomes that `clusters` outcomes alike leave possible, at `doubt` / 2 a side."""
    return 1 - (doubt / 2) ** (1 / clusters)


def mean(draws: Draws, values: Column, span: tuple[float, float] | None = None) -> Estimate | Undefined:
    """The mean of `values` over the items."""
    (total,) = sums(draws, values)
    return bounded(draws, over(total, draws.size.sums), span)


def accuracy(draws: Draws, right: Column) -> Estimate | Undefined:
    """The share of right answers, or the mean of a score between 0 and 1."""
    return mean(draws, right, span=(0.0, 1.0))


def difference(draws: Draws, first: Column, second: Column) -> Estimate | Undefined:
    """The share of right answers of the first model less that of the second, paired by item."""
    a, b = sums(draws, first, second)
    return mean(draws, Totals(a - b), span=(-1.0, 1.0))


def ratio(draws: Draws, first: Column, second: Column) -> Estimate | Undefined:
    """Sum of the first over sum of the second, paired by item; undefined where the second can vanish."""
    a, b = sums(draws, first, second)
    return bounded(draws, over(a, b))


def recovery(draws: Draws, graft: Column, donor: Column, target: Column) -> Estimate | Undefined:
    """(graft − target) / (donor − target) of the shares of right answers, a paired bootstrap of the ratio.

    Undefined where the interval of donor − target reaches 0 or below: there is nothing to recover.
    """
    g, d, t = sums(draws, graft, donor, target)
    whole = difference(draws, Totals(d), Totals(t))
    if isinstance(whole, Undefined) or whole.low <= 0:
        return Undefined("the donor is not surely better than the target, so there is no gain to recover")
    reach = 1 / whole.value
    return bounded(draws, over(g - t, d - t), span=(-reach, reach))


def perplexity_ratio(draws: Draws, graft: Column, target: Column, tokens: Column) -> Estimate | Undefined:
    """The graft's perplexity over the target's: exp(−(Σ graft − Σ target) / Σ tokens) of log-likelihoods in nats."""
    g, t, count = sums(draws, graft, target, tokens)
    return bounded(draws, np.exp(over(t - g, count)))


def rank_correlation(draws: Draws, first: ArrayLike, second: ArrayLike) -> Estimate | Undefined:
    """Spearman's correlation of two figures over the items, with its interval over items drawn anew.

    Pearson's correlation of the mid-ranks; an item drawn w times counts as w ties. Undefined where one is constant.
    """

    def ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        below, equal = (op(values[None, :], values[:, None]).astype(np.float64) for op in (np.less, np.equal))
        middle = weights @ below.T + (weights @ equal.T + 1) / 2
        return middle - (weights * middle).sum(-1, keepdims=True) / weights.sum(-1, keepdims=True)

    a, b = _float(first), _float(second)

    def correlation(weights: np.ndarray) -> np.ndarray:
        one, other = ranks(a, weights), ranks(b, weights)
        spread = (weights * one**2).sum(-1) * (weights * other**2).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights * one * other).sum(-1) / np.sqrt(np.where(spread > 1e-9, spread, np.nan))

    return estimate(draws, correlation, span=(-1.0, 1.0))


def sums(draws: Draws, *columns: Column) -> list[np.ndarray]:
    """The sums of each column; those that are not summed yet go through one product."""
    new = [_float(each) for each in columns if not isinstance(each, Totals)]
    made = iter(draws.totals(np.stack(new, axis=-1)) if new else ())
    return [(each if isinstance(each, Totals) else next(made)).sums for each in columns]


def _float(values: ArrayLike) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below; where the divisor is not positive, an infinity of the dividend's sign (NaN where both are 0)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.where(above == 0, np.nan, np.sign(above) * np.inf))
