"""Which of many effects are real: a p-value for each by flipping signs, and what is left of it among so many."""

import numpy as np
from numpy.typing import ArrayLike

_FLIPS = 9_999


def sign_flip(values: ArrayLike, flips: int = _FLIPS, seed: int = 0) -> np.ndarray:
    """Two-sided p-values [effects] that each column of `values` [items, effects] has mean zero.

    Under the null hypothesis an item's effect is as likely to have the other sign, so |Σ values| is compared with what
    it is under random signs: p = (1 + draws at least as extreme) / (1 + flips), or the exact share where all 2^items
    signs are at most `flips`; the same signs for every column. Source: Fisher's randomization test (1935, § 21). Takes
    items for independent. It fails to reach below 2^(1 − items): with few items nothing can be significant. For a
    measure that cannot be negative, such as a divergence, a small p only says that there is some.
    """
    v = np.asarray(values, dtype=np.float64)
    items = len(v)
    exact = 2**items <= flips
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**items)[:, None] >> np.arange(items)) & 1)
    else:
        signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(2, size=(flips, items))
    extreme = (np.abs(signs @ v) >= np.abs(v.sum(0)) * (1 - 1e-9)).sum(0)
    return extreme / len(signs) if exact else (1 + extreme) / (1 + flips)


def q_values(p: ArrayLike) -> np.ndarray:
    """Benjamini–Hochberg q-values [tests] of p-values [tests]: the least false-discovery rate that keeps each.

    q of the i-th smallest of m is min over j ≥ i of m · p(j) / j, at most 1 (Benjamini and Hochberg 1995,
    DOI 10.1111/j.2517-6161.1995.tb02031.x). Holds for independent tests and for positively dependent ones, as effects
    of neighbouring sites on the same prompts are; under other dependence the rate can be larger by up to Σ 1/i.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    found = np.empty_like(values)
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return found


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values [tests]: the least chance of any false claim at which each would still be made.

    The i-th smallest of m becomes max over j ≤ i of (m − j + 1) · p(j), at most 1 (Holm 1979, Scandinavian Journal of
    Statistics 6, 65–70). Holds under any dependence.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * (len(values) - np.arange(len(values)))
    found = np.empty_like(values)
    found[order] = np.maximum.accumulate(scaled).clip(max=1)
    return found
