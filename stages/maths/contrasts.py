"""What a change of the prompt does to the odds of two continuations: how far, how surely, how selectively.

Everywhere `moves` [pairs] says which changes should matter, and `odds` [pairs, 2] are the log-odds in nats of the right
against the wrong continuation after either prompt. Where a change should matter, right and wrong change places.
"""

import numpy as np

from stages.maths.statistics import Draws, Estimate, Statistic, Undefined, estimate


def effects(moves: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """[pairs], how far the change moves the log-odds of the same two continuations, in nats.

    ℓ₁ + ℓ₂ where it should, since what was right then is wrong now; |ℓ₁ − ℓ₂| where it should not. What makes one
    continuation likelier after any prompt, as its length, its frequency or the way that a tokenizer cuts it, cancels.
    """
    return np.where(moves, odds.sum(1), np.abs(odds[:, 0] - odds[:, 1]))


def consistent(moves: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """[pairs], whether both sides are right where the change matters, and whether both say the same where it does not.

    Even odds are not right. Unlike an effect, this does not leave out what makes one continuation likelier anyway.
    """
    right = odds > 0
    return np.where(moves, right.all(1), right[:, 0] == right[:, 1])


def departures(odds: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[pairs], the mean absolute change of the log-odds from those of a reference; 0 only where both sides stayed."""
    return np.abs(odds - reference).mean(1)


def specificity(draws: Draws, moves: np.ndarray, odds: np.ndarray) -> Estimate | Undefined:
    """1 − (mean |effect| where it should not matter) / (mean |effect| where it should).

    1 where only what matters moves the model, 0 where what does not matter moves it as far, below 0 where farther. A
    model without any idea of the pairs is near 0, by noise alone. Undefined without pairs of both kinds.
    """
    return _estimate(draws, moves, _ratio(moves, odds), lambda still: 1 - still)


def specificity_change(
    draws: Draws, moves: np.ndarray, odds: np.ndarray, reference: np.ndarray
) -> Estimate | Undefined:
    """The specificity less that of a reference on the same pairs, paired."""
    one, other = _ratio(moves, odds), _ratio(moves, reference)
    return _estimate(draws, moves, lambda weights: other(weights) - one(weights), lambda change: change)


def _ratio(moves: np.ndarray, odds: np.ndarray) -> Statistic:
    """Mean |effect| of the pairs that should not move over that of those that should."""
    size = np.abs(effects(moves, odds))

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (weights @ (size * ~moves)) / (weights @ ~moves) / ((weights @ (size * moves)) / (weights @ moves))

    return statistic


def _estimate(draws: Draws, moves: np.ndarray, ratio: Statistic, told: Statistic) -> Estimate | Undefined:
    if moves.all() or not moves.any():
        return Undefined("there are pairs of one kind only")

    def statistic(weights: np.ndarray) -> np.ndarray:
        found = told(ratio(weights))
        return np.where(np.isfinite(found), found, np.nan)

    return estimate(draws, statistic)
