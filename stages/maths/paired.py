"""Whether two models differ on the same items: an exact test, and the least difference that so many items can show."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import bdtr, gammaln, ndtr, ndtri

from stages.maths.discovery import sign_flip

_LONG = 20_000_000  # products of a convolution above which it goes by Fourier's transform
_ROUNDING = 1e-12  # what such a convolution cannot tell from 0
_NOTHING = 1e-9  # a difference too small for anyone
_MANY = 1_000  # clusters from which the sum of random signs is as good as normal


def mcnemar(first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None) -> float:
    """Two-sided p that a cluster is as likely to favour either of two models, judged on the same items.

    Σ (first − second) is compared with what it is when each cluster's share of it takes a random sign. Right and wrong
    answers are whole numbers, for which the distribution is exact: binomials convolved, one for each size of a
    cluster's share. With one item a cluster (or `clusters` None) it is McNemar's exact test,
    2 · P(Binomial(b + c, 1/2) ≤ min(b, c)), at most 1. Scores that are not whole are judged by drawn signs (Fisher
    1935), or from a thousand clusters by the normal limit. Fails to see a difference that differs in sign by cluster.
    """
    gap = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    shares = gap if clusters is None else np.bincount(np.unique(clusters, return_inverse=True)[1], gap)
    whole = np.rint(shares)
    shares = shares[np.abs(shares) > 1e-9]
    if not len(shares):
        return 1.0
    if np.allclose(gap, np.rint(gap), rtol=0, atol=1e-9):
        return _exact(whole[whole != 0].astype(np.int64))
    if len(shares) < _MANY:
        return float(sign_flip(shares[:, None])[0])
    return float(2 * ndtr(-abs(shares.sum()) / np.sqrt((shares**2).sum())))


def _exact(shares: np.ndarray) -> float:
    """P(|Σ ± share| ≥ |Σ share|) for whole shares [clusters] other than 0."""
    sizes, counts = np.unique(np.abs(shares), return_counts=True)
    reach, seen = int((sizes * counts).sum()), abs(int(shares.sum()))
    if seen == 0:
        return 1.0
    if len(sizes) == 1:  # the binomial itself, whose tail is exact however small
        lost = (len(shares) - seen // int(sizes[0])) // 2
        return min(1.0, 2 * float(bdtr(lost, len(shares), 0.5)))
    ups, exact = np.ones(1), True  # ups[k]: the chance that the shares with a plus sign add up to k
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        k = np.arange(count + 1)
        chance = np.zeros(size * count + 1)
        chance[::size] = np.exp(gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1) - count * np.log(2))
        direct = len(ups) * len(chance) <= _LONG
        exact &= direct
        ups = np.convolve(ups, chance) if direct else _transformed(ups, chance)
    tail = 2 * float(ups[: (reach - seen) // 2 + 1].sum())
    return min(1.0, tail if exact else max(tail, _ROUNDING))


def _transformed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Their convolution, right to 1e-15 or so."""
    length = len(first) + len(second) - 1
    return np.fft.irfft(np.fft.rfft(first, length) * np.fft.rfft(second, length), length).clip(min=0)


def minimum_detectable(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, level: float = 0.05, power: float = 0.8
) -> float | None:
    """The least true difference of the shares of right answers that a test on items such as these finds.

    Solves δ √m = z_level √ψ + z_power √(ψ − δ²) for a two-sided test at `level` that is to succeed with chance `power`
    (Connor 1987, DOI 10.2307/2531961), where ψ is the share of items on which the models disagree, at least δ. m is
    the number of items over the design effect: how many times the variance over clusters is that over items, at
    least 1. For scores between right and wrong ψ is their mean squared difference. None where no difference up to 1
    would be found, and where there are no items. `level` is that of a single test: correction for many raises it.
    """
    gap = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if not len(gap):
        return None
    effective = len(gap) / design_effect(gap, clusters)
    discordant = float((gap**2).mean())
    sure, lucky = -ndtri(level / 2), ndtri(power)

    def excess(delta: float) -> float:
        share = max(discordant, delta)
        return delta * effective**0.5 - sure * share**0.5 - lucky * max(0.0, share - delta**2) ** 0.5

    return float(brentq(excess, _NOTHING, 1.0)) if excess(_NOTHING) < 0 < excess(1.0) else None


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """How many times as much the mean of `values` varies because items come in clusters: at least 1.

    The variance between clusters, Σ_c (Σ_i (v − mean))² · C / (C − 1), over that of as many single items
    (Kish 1965). Where all values agree nothing can be told of it, so it is the mean size of a cluster.
    """
    v, members = np.asarray(values, dtype=np.float64), np.unique(clusters, return_inverse=True)[1]
    count, off = members.max() + 1, v - v.mean()
    single = (off**2).sum() * len(v) / max(1, len(v) - 1)
    if count < 2 or single < 1e-12:
        return len(v) / count
    return max(1.0, float((np.bincount(members, off) ** 2).sum() * count / (count - 1) / single))
