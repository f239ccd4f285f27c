"""A model's confidences before and after they are scaled to mean what they say."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from stages.errors import BadInput
from stages.maths import calibration, scaling
from stages.maths.statistics import Draws, Estimate, Statistic, Undefined, estimate
from stages.reasons import rounded, told


def options(items: pd.DataFrame) -> tuple[np.ndarray, np.ndarray] | None:
    """Log-likelihoods [items, choices] of every choice, −∞ where an item has fewer, and the right one's index [items].

    None where the items are no multiple choice. The right choice is the one with the item's `loglikelihood`. Raises
    BadInput where none has it.
    """
    if "choices" not in items or items.choices.isna().any() or not len(items):
        return None
    told = [np.asarray(each, dtype=np.float64) for each in items.choices]
    table = np.full((len(told), max(map(len, told))), -np.inf)
    for row, each in zip(table, told, strict=True):
        row[: len(each)] = each
    gaps = np.abs(table - items.loglikelihood.to_numpy(dtype=np.float64)[:, None])
    gold = gaps.argmin(1)
    far = ~(gaps[np.arange(len(gold)), gold] <= 1e-5)
    if far.any():
        raise BadInput(f"Expected among the choices of {items.id[far].iloc[0]} the right one's log-likelihood "
                       f"{items.loglikelihood[far].iloc[0]}, got none; rerun evaluate.")  # fmt: skip
    return table, gold


@dataclass(frozen=True)
class _Sure:
    """What scaling works on."""

    logits: np.ndarray
    """[items, choices]; for a free answer those of that answer and of any other"""
    gold: np.ndarray
    """[items]"""
    confidence: np.ndarray
    right: np.ndarray
    free: bool

    def tempered(self, temperature: float) -> np.ndarray:
        """Confidence [items] in the model's own answer, which no temperature changes."""
        scaled = scaling.tempered(self.logits, temperature)
        return scaled[:, 0] if self.free else scaled.max(1)

    def of(self, chosen: np.ndarray) -> "_Sure":
        return _Sure(self.logits[chosen], self.gold[chosen], self.confidence[chosen], self.right[chosen], self.free)


def _sure(items: pd.DataFrame) -> _Sure:
    confidence, right = items.confidence.to_numpy(dtype=np.float64), items.right.to_numpy(dtype=bool)
    found = options(items)
    if found is None:
        return _Sure(scaling.two(confidence), (~right).astype(int), confidence, right, True)
    return _Sure(*found, confidence, right, False)


def calibrated(
    test: pd.DataFrame, fitting: pd.DataFrame, draws: Draws, bins: int, folds: int, seed: int
) -> dict[str, Any]:
    """ECE, adaptive ECE, Brier score, NLL and reliability of `raw`, `temperature`-scaled and `isotonic` confidences.

    Fitted on the rows of `fitting`; where there are none, every test item's map is fitted on the other `folds` − 1
    parts of the clusters. Temperature works on the choices' log-likelihoods, or on the logit of a free answer's
    confidence. The intervals are over test items, the maps as fitted. Fitted on other phrasings than those of the
    test, as the capability's calibration items are, a map can also do harm.
    """
    own = _sure(test)
    crossed = fitting.empty
    undefined = Undefined(f"fewer than {folds} clusters to fit on")
    if crossed and test.cluster.nunique() < folds:
        maps: list[tuple[np.ndarray, _Sure]] = []
    elif crossed:
        maps = [(~held, own.of(held)) for held in _folds(test, folds, seed)]
    else:
        maps = [(np.ones(len(test), dtype=bool), _sure(fitting))]
    found: dict[str, Any] = {"raw": _figures(own.confidence, own.right, draws, bins)}
    if not maps:
        names = ("ece", "adaptive_ece", "brier", "nll")
        return found | {
            name: told(dict.fromkeys(names, undefined)) | {"bins": []} for name in ("temperature", "isotonic")
        }
    scaled, risen, temperatures = own.confidence.copy(), own.confidence.copy(), []
    for judged, other in maps:
        temperatures.append(scaling.temperature(other.logits, other.gold))
        scaled[judged] = own.of(judged).tempered(temperatures[-1])
        risen[judged] = scaling.isotonic(other.confidence, other.right)(own.confidence[judged])
    how = {"fitted_on": "folds" if crossed else "calibration", "fitted_items": len(test if crossed else fitting)}
    found["temperature"] = _figures(scaled, own.right, draws, bins) | how
    found["temperature"]["temperature"] = round(float(np.exp(np.mean(np.log(temperatures)))), 6)
    found["isotonic"] = _figures(risen, own.right, draws, bins) | how
    return found


def _folds(items: pd.DataFrame, folds: int, seed: int) -> Iterator[np.ndarray]:
    """[items], which items each fold is fitted on."""
    labels, member = np.unique(items.cluster.to_numpy(), return_inverse=True)
    part = np.random.default_rng(seed).permutation(len(labels))[member] % folds
    return (part != fold for fold in range(folds))


def _figures(confidence: np.ndarray, right: np.ndarray, draws: Draws, bins: int) -> dict[str, Any]:
    measures: dict[str, tuple[Statistic, tuple[float, float]]] = {
        "ece": (calibration.ece(confidence, right, bins), (0.0, 1.0)),
        "adaptive_ece": (calibration.adaptive_ece(confidence, right, bins), (0.0, 1.0)),
        "brier": (calibration.brier(confidence, right), (0.0, 1.0)),
        "nll": (calibration.nll(confidence, right), (0.0, calibration.MOST_NLL)),
    }
    made: dict[str, Estimate | Undefined] = {
        name: estimate(draws, statistic, span) for name, (statistic, span) in measures.items()
    }
    return told(made) | {"bins": [rounded(asdict(b)) for b in calibration.reliability(confidence, right, bins)]}
