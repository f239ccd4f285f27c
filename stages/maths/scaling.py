"""Confidences that mean what they say: maps fitted on items whose answers are known, used on others."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, root_scalar
from scipy.special import logit, softmax

_SHARPEST = 100.0  # bounds of 1 / temperature, for items that no temperature fits
_NEAREST = 1e-6  # of a confidence to 0 and 1, where logits end


def two(confidence: np.ndarray) -> np.ndarray:
    """Logits [items, 2] of the answer that was given, and of all others: (ln p / (1 − p), 0)."""
    told = logit(np.clip(confidence, _NEAREST, 1 - _NEAREST))
    return np.stack([told, np.zeros_like(told)], axis=1)


def temperature(logits: np.ndarray, gold: np.ndarray) -> float:
    """T that makes softmax(logits / T) [items, choices] likeliest to give the right choices `gold` [items].

    Temperature scaling (arXiv 1706.04599): the mean of −log softmax(z / T)[gold] is convex in 1 / T, and has its least
    value where the expected logit is that of the right choices, which is found by bisection; between 0.01 and 100.
    Absent choices are −∞. One number for all items: it cannot mend a model that is too sure of some and not of others.
    """
    known = np.where(np.isfinite(logits), logits, 0.0)
    chosen = known[np.arange(len(gold)), gold].mean()

    def excess(sharpness: float) -> float:
        return float((softmax(sharpness * logits, axis=1) * known).sum(1).mean() - chosen)

    if excess(1 / _SHARPEST) >= 0:
        return _SHARPEST
    if excess(_SHARPEST) <= 0:
        return 1 / _SHARPEST
    return 1 / float(root_scalar(excess, bracket=(1 / _SHARPEST, _SHARPEST), xtol=1e-9).root)


def tempered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / T) [items, choices]."""
    return softmax(logits / temperature, axis=1)


@dataclass(frozen=True)
class Isotonic:
    """A rising map of confidences, straight between `at` and flat beyond."""

    at: np.ndarray
    """[points], rising"""
    value: np.ndarray
    """[points]"""

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        return np.interp(confidence, self.at, self.value)


def isotonic(confidence: np.ndarray, right: np.ndarray) -> Isotonic:
    """The rising map nearest to the right answers [items] in squares (Zadrozny and Elkan, DOI 10.1145/775047.775151).

    Ends at 1 / (n + 2) and (n + 1) / (n + 2), the rule of succession: n items alike do not make certain. Needs some
    hundreds of items; on few it learns them by heart.
    """
    at, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=right.astype(np.float64)) / counts
    fitted = isotonic_regression(means, weights=counts).x
    n = len(confidence)
    return Isotonic(at, fitted.clip(1 / (n + 2), (n + 1) / (n + 2)))
