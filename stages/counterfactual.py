"""What a change of the prompt does to target, donor and graft: where it should change the answer and where not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic

from stages.command import run
from stages.errors import BadInput
from stages.maths.contrasts import consistent, departures, effects, specificity, specificity_change
from stages.maths.statistics import Bootstrap, Draws, Estimate, Undefined, accuracy, difference, draw, mean
from stages.settings import Settings, read
from stages.storage import write_json
from stages.tables import read_table

_SIDES = ["first", "second"]
_COLUMNS = ("id", "category", "moves", "cluster", *_SIDES)
Figure = Estimate | Undefined
Measure = Callable[..., Figure]
"""Of draws, which pairs should move [pairs] and the log-odds [pairs, 2] of one or two models."""


def _effect(draws: Draws, moves: np.ndarray, odds: np.ndarray) -> Figure:
    return mean(draws, effects(moves, odds))


def _change(draws: Draws, moves: np.ndarray, odds: np.ndarray, reference: np.ndarray) -> Figure:
    return mean(draws, effects(moves, odds) - effects(moves, reference))


def _departure(draws: Draws, moves: np.ndarray, odds: np.ndarray, reference: np.ndarray) -> Figure:
    return mean(draws, departures(odds, reference))


def _share(draws: Draws, moves: np.ndarray, odds: np.ndarray) -> Figure:
    return accuracy(draws, consistent(moves, odds))


def _share_change(draws: Draws, moves: np.ndarray, odds: np.ndarray, reference: np.ndarray) -> Figure:
    return difference(draws, consistent(moves, odds), consistent(moves, reference))


MEASURES: dict[str, tuple[tuple[str, ...], Measure]] = {
    "target": (("target",), _effect),
    "donor": (("donor",), _effect),
    "graft": (("graft",), _effect),
    "difference": (("graft", "target"), _change),
    "difference_from_donor": (("graft", "donor"), _change),
    "departure": (("graft", "target"), _departure),
    "departure_of_donor": (("donor", "target"), _departure),
    "consistency": (("graft",), _share),
    "consistency_of_target": (("target",), _share),
    "consistency_of_donor": (("donor",), _share),
    "consistency_difference": (("graft", "target"), _share_change),
}
"""Figure → the models that it is of, and how it is taken."""
SPECIFICITY: dict[str, tuple[tuple[str, ...], Measure]] = {
    **{name: ((name,), specificity) for name in ("target", "donor", "graft")},
    "difference": (("graft", "target"), specificity_change),
}


class Counterfactual(Settings):
    """How intervals are drawn."""

    resamples: int = pydantic.Field(default=2000, ge=100)
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0


def counterfactual(
    target: pd.DataFrame, donor: pd.DataFrame, graft: pd.DataFrame, settings: Counterfactual
) -> dict[str, Any]:
    """Per category, once for the pairs that move and once for those that should not, BCa intervals over clusters.

    Frames are weigh's rows. `target`, `donor` and `graft` are mean effects in nats, `difference` is graft − target and
    `difference_from_donor` graft − donor, paired. `consistency` is the graft's, beside the target's, the donor's and
    `consistency_difference`, graft − target. `departure` is how far the graft's log-odds are from the target's, in
    either direction. `overall` is the same over all pairs that move. `specificity` is over all pairs, and
    `specificity_by_category` over those of each.

    Log-odds are of the continuations' texts, so models with different tokenizers are compared in nats; a pair that a
    tokenizer cannot spell is in no figure of that model, and `readable` counts the others. A null figure has its reason
    in `undefined`. Raises BadInput when the frames are not of the same pairs.
    """
    models = _aligned({"target": target, "donor": donor, "graft": graft})
    rows = models["target"]
    category, cluster = rows["category"].to_numpy(), rows["cluster"].to_numpy()
    moves = rows["moves"].to_numpy(dtype=bool)
    undefined: dict[str, str] = {}

    def told(name: str, measures: Mapping[str, tuple[tuple[str, ...], Measure]], chosen: np.ndarray) -> dict[str, Any]:
        figures = {key: _figure(models, names, chosen, measure, settings) for key, (names, measure) in measures.items()}
        undefined.update({f"{name}.{key}": f.reason for key, f in figures.items() if isinstance(f, Undefined)})
        return {key: f.rounded() if isinstance(f, Estimate) else None for key, f in figures.items()}

    categories, selective = [], {}
    for name in dict.fromkeys(category):
        of_it = category == name
        for kind in (True, False):
            if (chosen := of_it & (moves == kind)).any():
                figures = told(f"{name}.{'moves' if kind else 'still'}", MEASURES, chosen)
                categories.append({"category": name, "moves": kind, **_size(cluster[chosen]), **figures})
        selective[name] = told(f"{name}.specificity", SPECIFICITY, of_it)
    every = np.ones(len(rows), dtype=bool)
    return {
        "categories": categories,
        "overall": {**_size(cluster[moves]), **told("overall", MEASURES, moves)},
        "specificity": told("specificity", SPECIFICITY, every),
        "specificity_by_category": selective,
        "readable": {"pairs": len(rows), **{name: int(_read(frame).sum()) for name, frame in models.items()}},
        "undefined": undefined,
    }


def _aligned(models: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Every model's rows in the order of the target's."""
    for name, frame in models.items():
        if missing := [column for column in _COLUMNS if column not in frame.columns]:
            raise BadInput(
                f"Expected pairs of the {name} with {', '.join(_COLUMNS)}, got none called {', '.join(missing)}; "
                "rerun weigh."
            )
    wanted, found = models["target"]["id"].to_numpy(), {}
    if not len(wanted):
        raise BadInput("Expected pairs to compare the models on, got none; rerun compose and weigh.")
    for name, frame in models.items():
        rows = frame.set_index("id", drop=False)
        if not rows.index.is_unique or len(rows) != len(wanted) or not rows.index.isin(wanted).all():
            raise BadInput(
                f"Expected the {name} put to the target's {len(wanted)} pairs, got {len(rows)} that are not all the "
                "same; rerun weigh."
            )
        found[name] = rows.loc[wanted].reset_index(drop=True)
    return found


def _size(cluster: np.ndarray) -> dict[str, int]:
    return {"n": len(cluster), "clusters": len(set(cluster))}


def _read(frame: pd.DataFrame) -> np.ndarray:
    return ~np.isnan(frame[_SIDES].to_numpy(dtype=np.float64).sum(1))


def _figure(
    models: Mapping[str, pd.DataFrame],
    names: tuple[str, ...],
    chosen: np.ndarray,
    measure: Measure,
    settings: Counterfactual,
) -> Figure:
    """A measure of these models over the chosen pairs that all of them can read."""
    kept = chosen & np.logical_and.reduce([_read(models[name]) for name in names])
    cluster, moves = (models[names[0]][column].to_numpy()[kept] for column in ("cluster", "moves"))
    if len(set(cluster)) < 2:
        return Undefined(
            "all pairs are put in the same words" if kept.any() else "no pair that the tokenizer can spell"
        )
    draws = draw(cluster, Bootstrap(settings.resamples, settings.confidence, settings.seed))
    odds = [models[name][_SIDES].to_numpy(dtype=np.float64)[kept] for name in names]
    return measure(draws, moves.astype(bool), *odds)


def main(target: Path, donor: Path, graft: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Compare a graft with its target and donor, as params.yaml says under `counterfactual.effects`."""
    settings = read(params, "counterfactual.effects", Counterfactual)
    write_json(out, counterfactual(read_table(target), read_table(donor), read_table(graft), settings))


if __name__ == "__main__":
    run(main)
