"""Several seeds of one recipe as an ensemble: what they answer together, and whether disagreement tells errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic
from scipy.special import softmax

from stages.calibrating import options
from stages.command import run
from stages.doubts import scores
from stages.errors import BadInput
from stages.maths.statistics import Bootstrap, Undefined, accuracy, draw
from stages.meaning import normalised
from stages.reasons import told
from stages.settings import Settings, read
from stages.storage import write_json
from stages.tables import read_table

TASKS = ("capability", "retention")
SCORES = ("ensemble_mean", "ensemble_disagreement", "max_probability")


class Ensemble(Settings):
    """Which variants are one recipe under several seeds."""

    members: tuple[str, ...] = pydantic.Field(min_length=2)
    resamples: int = pydantic.Field(default=2000, ge=100)
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0


def ensemble(members: Mapping[str, pd.DataFrame], settings: Ensemble) -> dict[str, Any]:
    """Per task: accuracy of the ensemble and of each member, and AUROC, AURC and E-AURC of what it knows of its errors.

    The answer is the one with the highest mean probability over the members, which is `ensemble_mean`; a member's
    probability counts for its own answer alone where answers are free, and for every choice where there are some.
    `ensemble_disagreement` is the share of members with other answers, or, over choices, the entropy of the mean less
    the mean of the entropies, nats (arXiv 1612.01474, 1802.10501). `max_probability` is the first member's, on the
    same errors. `members` are evaluate's rows; only the test is read. A figure that they cannot give is null, with the
    reason. Raises BadInput when members were judged on different items.
    """
    frames = {name: _test(name, frame) for name, frame in members.items()}
    first = next(iter(frames.values()))
    for name, frame in frames.items():
        if frame[["task", "id"]].values.tolist() != first[["task", "id"]].values.tolist():
            raise BadInput(f"Expected {name} judged on the items of {next(iter(frames))}, got others; rerun evaluate.")
    bootstrap, found = Bootstrap(settings.resamples, settings.confidence, settings.seed), {}
    for task in (task for task in TASKS if (first.task == task).any()):
        rows = {name: frame.loc[frame.task == task].reset_index(drop=True) for name, frame in frames.items()}
        own = first.loc[first.task == task].reset_index(drop=True)
        draws = draw(own.cluster.to_numpy(), bootstrap)
        accuracies = {name: accuracy(draws, each.right.to_numpy(dtype=bool)) for name, each in rows.items()}
        together = _chosen(rows) if options(own) is not None else _free(rows)
        found[task] = {"n": len(own), "members": told(accuracies)}
        if isinstance(together, Undefined):
            found[task] |= told({"accuracy": together}) | {"scores": {}}
        else:
            judged = own.assign(**together)
            found[task] |= told({"accuracy": accuracy(draws, judged.right.to_numpy(dtype=bool))})
            found[task]["scores"] = scores(judged, draws, SCORES, bootstrap)
    return found


def _test(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    missing = sorted({"task", "id", "cluster", "right", "confidence"} - set(frame.columns))
    if missing:
        raise BadInput(f"Expected items of {name} with a column {missing[0]}, got none; rerun evaluate.")
    frame = frame if "split" not in frame else frame.loc[frame.split == "test"]
    return frame.loc[frame.task.isin(TASKS)].sort_values(["task", "id"], ignore_index=True)


def _free(rows: Mapping[str, pd.DataFrame]) -> dict[str, np.ndarray] | Undefined:
    """What the ensemble says where answers are free."""
    if not all("answered" in frame and frame.answered.notna().all() for frame in rows.values()):
        return Undefined("the members' own answers are not known")
    answers = [[normalised(str(answer)) for answer in frame.answered] for frame in rows.values()]
    sure = np.array([frame.confidence.to_numpy(dtype=np.float64) for frame in rows.values()])
    right = np.array([frame.right.to_numpy(dtype=bool) for frame in rows.values()])
    mean, apart, hit = (np.zeros(sure.shape[1]) for _ in range(3))
    for item, given in enumerate(zip(*answers, strict=True)):
        votes = {answer: sum(sure[m, item] for m, each in enumerate(given) if each == answer) for answer in given}
        said = max(votes, key=lambda answer: votes[answer])
        own = [m for m, each in enumerate(given) if each == said]
        mean[item], apart[item], hit[item] = votes[said] / len(given), 1 - len(own) / len(given), right[own[0], item]
    return {"ensemble_mean": mean, "ensemble_disagreement": apart, "right": hit.astype(bool)}


def _chosen(rows: Mapping[str, pd.DataFrame]) -> dict[str, np.ndarray]:
    """What it chooses where there are choices."""
    read_choices = [options(frame) for frame in rows.values()]
    if any(each is None for each in read_choices):
        raise BadInput("Expected choices of every member of the ensemble, got some without; rerun evaluate.")
    known = [each for each in read_choices if each is not None]
    shares = np.array([softmax(logits, axis=1) for logits, _ in known])
    mean, gold = shares.mean(0), known[0][1]
    entropy = [-(p * np.log(np.maximum(p, 1e-300))).sum(-1) for p in (mean, shares)]
    apart = np.maximum(entropy[0] - entropy[1].mean(0), 0.0)
    return {"ensemble_mean": mean.max(1), "ensemble_disagreement": apart.round(12), "right": mean.argmax(1) == gold}


def main(name: str, evaluation: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Judge the variants that params.yaml names under `ensembles` as one."""
    settings = read(params, f"ensembles.{name}", Ensemble)
    frames = {each: read_table(evaluation / each / "items.parquet") for each in settings.members}
    write_json(out, ensemble(frames, settings))


if __name__ == "__main__":
    run(main)
