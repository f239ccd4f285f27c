"""How far a model's confidence can be trusted, and what it is worth: to calibrate it, to give sets, to route by it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic

from stages.calibrating import calibrated, options
from stages.choosing import sets
from stages.command import run
from stages.doubts import SCORES, figures, scores
from stages.errors import BadInput, nearest
from stages.fallback import Routing, fallback
from stages.maths import calibration
from stages.maths.statistics import Bootstrap, Draws, Undefined, accuracy, draw, estimate
from stages.reasons import rounded, told
from stages.settings import Settings, read
from stages.storage import write_json
from stages.tables import read_table

OWN = tuple(name for name in SCORES if not name.startswith("ensemble"))
"""Scores that one variant has by itself."""
FIGURES = ("ece", "adaptive_ece", "brier", "auroc", "aurc", "excess_aurc")
"""What a confidence is judged by."""
TASKS = ("capability", "retention")
"""Tasks whose items are right or wrong, where the items do not say what each task stands for."""


class Uncertainty(Settings):
    """How calibration is measured."""

    bins: int = pydantic.Field(default=15, gt=1)
    """Bins of the calibration errors and the reliability curve: of equal width for `ece`, of equal mass elsewhere."""
    resamples: int = pydantic.Field(default=2000, ge=100)
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0
    scores: tuple[str, ...] = pydantic.Field(default=OWN, min_length=1)
    """What is judged against correctness."""
    folds: int = pydantic.Field(default=5, gt=1)
    """Parts of the clusters that calibration is crossed over, for a task without calibration items."""
    alpha: float = pydantic.Field(default=0.1, gt=0, lt=1)
    """Share of items whose set of choices may lack the right one."""
    splits: int = pydantic.Field(default=200, gt=0)
    """Random halves of the questions, one to set the threshold of the sets by and one to judge."""
    routing: Routing = Routing()

    @pydantic.field_validator("scores")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in SCORES:
                raise ValueError(f"no score {name!r}, {nearest(name, SCORES)}")
        return names

    @property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.resamples, self.confidence, self.seed)


def uncertainty(
    items: pd.DataFrame,
    settings: Uncertainty,
    target: pd.DataFrame | None = None,
    signals: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Per task: accuracy, ECE, adaptive ECE, Brier score, AURC, E-AURC and AUROC with intervals over clusters, and the
    curves; what each score is worth, calibration before and after scaling, conformal sets; and, over all tasks,
    `routing`.

    `items` has the columns task, id, cluster, right and confidence (evaluate's rows), `target` is the same of the
    target and `signals` what the stage of that name gives; columns beyond these give further figures. A figure that
    the items cannot give is null, and `undefined` says why. Raises BadInput when a column is missing or a confidence
    is not in [0, 1].
    """
    items, target = _checked(items), None if target is None else _checked(target)
    if signals is not None:
        items = items.merge(signals.drop(columns="split"), on=["task", "id"], how="left", validate="one_to_one")
    wanted = (items.role if "role" in items else items.task).isin(TASKS) & items.right.notna()
    items = items.loc[wanted]
    measured = {task: _measure(items.loc[items.task == task], settings) for task in sorted(set(items.task))}
    if not measured:
        raise BadInput(f"Expected items of {' or '.join(TASKS)}, got none; rerun evaluate.")
    return measured | {"routing": fallback(items, target, settings.routing, settings.bootstrap)}


def _checked(items: pd.DataFrame) -> pd.DataFrame:
    missing = {"task", "cluster", "right", "confidence"} - set(items.columns)
    if missing:
        raise BadInput(f"Expected items with the columns task, cluster, right and confidence, got none called "
                       f"{', '.join(sorted(missing))}; rerun evaluate.")  # fmt: skip
    return items if "split" in items else items.assign(split="test")


def _measure(rows: pd.DataFrame, settings: Uncertainty) -> dict[str, Any]:
    task = rows.task.iloc[0]
    confidence = rows.confidence.to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = ~((confidence >= 0) & (confidence <= 1))
    if wrong.any() and not (task not in TASKS and np.isnan(confidence).all()):
        raise BadInput(
            f"Expected confidences between 0 and 1 for every {task} item, got {confidence[wrong][0]}; rerun evaluate."
        )
    test, fitting = (rows.loc[rows.split == split] for split in ("test", "calibration"))
    if test.empty:
        raise BadInput(f"Expected test items of {task}, got calibration items alone; rerun evaluate.")
    draws, found = draw(test.cluster.to_numpy(), settings.bootstrap), options(test)
    scored = {"scores": scores(test, draws, settings.scores, settings.bootstrap)}
    if np.isnan(confidence).any():
        unknown = dict.fromkeys(FIGURES, Undefined("the items have no confidence"))
        return (
            told({"accuracy": accuracy(draws, test.right.to_numpy(dtype=bool))} | unknown) | {"n": len(test)} | scored
        )
    return {
        **_overall(test, draws, settings),
        **scored,
        "calibration": calibrated(test, fitting, draws, settings.bins, settings.folds, settings.seed),
        "conformal": sets(test, found, settings.alpha, settings.splits, settings.bootstrap),
    }


def _overall(items: pd.DataFrame, draws: Draws, settings: Uncertainty) -> dict[str, Any]:
    confidence, right = items.confidence.to_numpy(dtype=np.float64), items.right.to_numpy(dtype=bool)
    chance = calibration.ece_by_chance(confidence, settings.bins, settings.resamples, settings.seed)
    measured = {
        "accuracy": accuracy(draws, right),
        "ece": estimate(draws, calibration.ece(confidence, right, settings.bins), (0.0, 1.0)),
        "adaptive_ece": estimate(draws, calibration.adaptive_ece(confidence, right, settings.bins), (0.0, 1.0)),
        "brier": estimate(draws, calibration.brier(confidence, right), (0.0, 1.0)),
        **figures(confidence, right, draws),
    }
    return told(measured) | {
        "n": len(items),
        "measured_with": {"bins": settings.bins, "resamples": settings.resamples, "confidence": settings.confidence},
        "ece_if_calibrated": round(float(np.quantile(chance, settings.confidence)), 6),
        "bins": [rounded(asdict(b)) for b in calibration.reliability(confidence, right, settings.bins)],
        "curve": [rounded(asdict(p)) for p in calibration.risk_coverage(confidence, right)],
    }


def main(items: Path, out: Path, params: Path = Path("params.yaml"), target: Path | None = None,
         signals: Path | None = None) -> None:  # fmt: skip
    """Measure what one graft's confidence is worth, as params.yaml says under `uncertainty`."""
    settings = read(params, "uncertainty", Uncertainty)
    beside, found = (None if path is None else read_table(path) for path in (target, signals))
    write_json(out, uncertainty(read_table(items), settings, beside, found))


if __name__ == "__main__":
    run(main)
