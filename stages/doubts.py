"""How unsure a model is of an item by each of several figures, and how well these tell right answers from wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.maths import calibration
from stages.maths.statistics import Bootstrap, Draws, Estimate, Undefined, draw, estimate
from stages.reasons import told

SCORES: dict[str, tuple[str, float]] = {
    "max_probability": ("confidence", 1.0),
    "margin": ("margin", 1.0),
    "mean_loglikelihood": ("mean_loglikelihood", 1.0),
    "entropy": ("entropy", -1.0),
    "gate": ("gate", 1.0),
    "divergence": ("divergence", -1.0),
    "shift": ("shift", -1.0),
    "agreement_of_samples": ("agreement_of_samples", 1.0),
    "ensemble_mean": ("ensemble_mean", 1.0),
    "ensemble_disagreement": ("ensemble_disagreement", -1.0),
}
"""Name → the column of the items (evaluate's, or the stage `signals`' or `ensemble`'s) and whether more of it means
surer, 1, or less sure, −1. Which way round is fixed before any answer is seen: an AUROC below 1/2 says it is wrong."""


def doubt(items: pd.DataFrame, score: str) -> np.ndarray | Undefined:
    """How unsure a score makes the model of each item [items]; 1 − s for those that lie between 0 and 1. NaN where an
    item has none."""
    column, sign = SCORES[score]
    if column not in items or bool(items[column].isna().all()):
        return Undefined(f"{column} was not measured on these items")
    values = items[column].to_numpy(dtype=np.float64, na_value=np.nan)
    if sign < 0:
        return values
    return (0.0 if column == "mean_loglikelihood" else 1.0) - values


def scores(items: pd.DataFrame, draws: Draws, names: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Per score AUROC, AURC and E-AURC against `right`, with intervals over clusters.

    `draws` are those of all items by `bootstrap`; a score that only some items have is judged on these.
    """
    return {name: _score(items, draws, name, bootstrap) for name in names}


def _score(items: pd.DataFrame, draws: Draws, name: str, bootstrap: Bootstrap) -> dict[str, Any]:
    found = doubt(items, name)
    if isinstance(found, Undefined):
        return told(dict.fromkeys(("auroc", "aurc", "excess_aurc"), found))
    known = ~np.isnan(found)
    if not known.all():
        items, found = items.loc[known], found[known]
        draws = draw(items.cluster.to_numpy(), bootstrap)
    if np.ptp(found) == 0:
        return told(dict.fromkeys(("auroc", "aurc", "excess_aurc"), Undefined("it is the same for every item")))
    return told(figures(-found, items.right.to_numpy(dtype=bool), draws))


def figures(surety: np.ndarray, right: np.ndarray, draws: Draws) -> Mapping[str, Estimate | Undefined]:
    """AUROC, AURC and E-AURC of a score [items] by which more is surer."""
    return {
        "auroc": estimate(draws, calibration.auroc(surety, right), (0.0, 1.0)),
        "aurc": estimate(draws, calibration.aurc(surety, right), (0.0, 1.0)),
        "excess_aurc": estimate(draws, calibration.excess_aurc(surety, right), (0.0, 1.0)),
    }
