"""Sets of choices that hold the right one at a stated rate, whatever the model: split conformal prediction.

A score says how badly a choice fits. The set holds the choices whose score is at most a quantile of the right choices'
scores on calibration items: where these and the new item are exchangeable, it holds the right one with a chance of at
least 1 − α (arXiv 2107.07511), over the draw of both. It says nothing of single items or kinds of items.
"""

from collections.abc import Callable

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From probabilities [items, choices] and a number in [0, 1] an item [items] to scores [items, choices]; an absent
choice has probability NaN, and score NaN."""


def lac(probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """1 − p of each choice: the smallest sets on average where p is right (arXiv 1609.00451).

    Items that the model finds hard can get empty sets.
    """
    return 1 - probabilities


def aps(probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The probability of all likelier choices, and the share `drawn` of this one's own (arXiv 2006.02544).

    Sets adapt to how hard an item is. Numbers drawn evenly from [0, 1] make the coverage exact; with 1 everywhere sets
    are the same each time, hold the right choice more often than promised, and are larger than need be.
    """
    known = np.nan_to_num(probabilities, nan=-1.0)
    order = np.argsort(-known, axis=1, kind="stable")
    ranked = np.take_along_axis(known, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    scores = np.empty_like(known)
    np.put_along_axis(scores, order, before + drawn[:, None] * ranked, axis=1)
    return np.where(np.isnan(probabilities), np.nan, scores)


SCORES: dict[str, Score] = {"lac": lac, "aps": aps}


def threshold(scores: np.ndarray, alpha: float) -> float:
    """The ⌈(n + 1)(1 − α)⌉-th smallest of the right choices' scores [n]; infinite, so that sets hold all, where n is
    too small for this α."""
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else np.inf


def sets(scores: np.ndarray, at_most: float) -> np.ndarray:
    """Which choices [items, choices] are in an item's set."""
    with np.errstate(invalid="ignore"):
        return scores <= at_most + 1e-12
