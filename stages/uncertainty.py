"""How far a model's confidence can be trusted: calibration, and what answering only the surest items would cost."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic

from stages.command import run
from stages.errors import BadInput
from stages.maths import calibration
from stages.maths.statistics import Bootstrap, Estimate, draw, estimate
from stages.settings import Settings, read
from stages.storage import write_json
from stages.tables import read_test

TASKS = ("capability", "retention")
"""Tasks whose items are right or wrong."""


class Uncertainty(Settings):
    """How calibration is measured."""

    bins: int = pydantic.Field(default=15, gt=1)
    """Bins of equal mass for the reliability curve and the calibration error."""
    resamples: int = pydantic.Field(default=2000, ge=100)
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0


def uncertainty(items: pd.DataFrame, settings: Uncertainty) -> dict[str, Any]:
    """Per task: accuracy, ECE, Brier score, AURC, E-AURC and AUROC with intervals over clusters, and the curves.

    `items` has the columns task, cluster, right and confidence (evaluate's rows). A figure that the items cannot give
    is null, and `undefined` says why. Raises BadInput when a column is missing or a confidence is not in [0, 1].
    """
    missing = {"task", "cluster", "right", "confidence"} - set(items.columns)
    if missing:
        raise BadInput(f"Expected items with the columns task, cluster, right and confidence, got none called "
                       f"{', '.join(sorted(missing))}; rerun evaluate.")  # fmt: skip
    measured = {task: _measure(items.loc[items.task == task], settings) for task in TASKS if (items.task == task).any()}
    if not measured:
        raise BadInput(f"Expected items of {' or '.join(TASKS)}, got none; rerun evaluate.")
    return measured


def _measure(items: pd.DataFrame, settings: Uncertainty) -> dict[str, Any]:
    confidence = items.confidence.to_numpy(dtype=np.float64, na_value=np.nan)
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise BadInput(f"Expected confidences between 0 and 1 for every {items.task.iloc[0]} item, got "
                       f"{confidence[~((confidence >= 0) & (confidence <= 1))][0]}; rerun evaluate.")  # fmt: skip
    right = items.right.to_numpy(dtype=bool)
    draws = draw(items.cluster.to_numpy(), Bootstrap(settings.resamples, settings.confidence, settings.seed))
    chance = calibration.ece_by_chance(confidence, settings.bins, settings.resamples, settings.seed)
    measured = {
        "accuracy": estimate(draws, lambda w: (w @ right) / w.sum(-1), (0.0, 1.0)),
        "ece": estimate(draws, calibration.ece(confidence, right, settings.bins), (0.0, 1.0)),
        "brier": estimate(draws, calibration.brier(confidence, right), (0.0, 1.0)),
        "aurc": estimate(draws, calibration.aurc(confidence, right), (0.0, 1.0)),
        "excess_aurc": estimate(draws, calibration.excess_aurc(confidence, right), (0.0, 1.0)),
        "auroc": estimate(draws, calibration.auroc(confidence, right), (0.0, 1.0)),
    }
    return {
        **{name: e.rounded() if isinstance(e, Estimate) else None for name, e in measured.items()},
        "undefined": {name: e.reason for name, e in measured.items() if not isinstance(e, Estimate)},
        "n": len(items),
        "ece_if_calibrated": round(float(np.quantile(chance, settings.confidence)), 6),
        "bins": [_rounded(asdict(b)) for b in calibration.reliability(confidence, right, settings.bins)],
        "curve": [_rounded(asdict(p)) for p in calibration.risk_coverage(confidence, right)],
    }


def _rounded(row: dict[str, float | int]) -> dict[str, float | int]:
    return {key: round(value, 6) for key, value in row.items()}


def main(items: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Measure the calibration of one evaluated model, as params.yaml says under `uncertainty`."""
    write_json(out, uncertainty(read_test(items), read(params, "uncertainty", Uncertainty)))


if __name__ == "__main__":
    run(main)
