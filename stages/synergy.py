"""What specialists are worth together: whether a graft of several gives in each domain what they give one by one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydantic

from stages.capabilities.names import Name, task_of
from stages.command import run
from stages.errors import BadInput
from stages.maths.discovery import q_values, sign_flip
from stages.maths.statistics import Bootstrap, Draws, Estimate, Undefined, draw, mean, recovery
from stages.settings import Settings, read
from stages.storage import write_json
from stages.tables import read_test

_COLUMNS = ("task", "id", "cluster", "right", "loglikelihood")
_MEASURES = {"accuracy": "right", "loglikelihood": "loglikelihood"}


class Synergy(Settings):
    """Which grafts are compared."""

    together: str
    """The graft that has all the specialists."""
    singles: dict[Name, str] = pydantic.Field(min_length=2)
    """Domain → the graft that has its specialist alone."""
    resamples: int = pydantic.Field(default=2000, ge=100)
    confidence: float = pydantic.Field(default=0.95, gt=0, lt=1)
    """Of the intervals."""
    seed: int = 0


def synergy(
    settings: Synergy, target: pd.DataFrame, together: pd.DataFrame, singles: Mapping[Name, pd.DataFrame]
) -> dict[str, Any]:
    """Per domain Δ = graft − target of every graft, synergy = Δ_together − Σ Δ_single, and what was kept.

    Frames are evaluate's rows, `singles` by domain as in the settings. Δ and synergy are of accuracy and of the mean
    log-likelihood of the answers in nats, with paired bootstrap intervals over clusters; p is of no synergy, by
    flipping the signs of clusters, and q its false-discovery rate over the domains (Benjamini–Hochberg). kept =
    Δ_together / Δ_single of the domain's own specialist, which is the ratio of both recoveries, whatever the donor;
    null where that specialist is not surely better than the target. `undefined` says why a figure is null.

    Two grafts cannot both add to what one of them has at the ceiling, so a small negative synergy can be mere
    saturation; `kept` tells. Raises BadInput when a frame has no items of a domain, or others than the target.
    """
    frames = {"target": target, settings.together: together} | {settings.singles[d]: f for d, f in singles.items()}
    for name, frame in frames.items():
        missing = sorted(set(_COLUMNS) - set(frame.columns))
        if missing:
            raise BadInput(f"Expected items of {name} with {', '.join(_COLUMNS)}, got no {missing[0]}; rerun evaluate.")
    domains = {domain: _domain(settings, domain, frames) for domain in sorted(settings.singles)}
    for measure in _MEASURES:
        q = q_values([told[measure]["p"] for told in domains.values()])
        for told, value in zip(domains.values(), q.tolist(), strict=True):
            told[measure]["q"] = round(value, 6)
    return {"together": settings.together, "singles": dict(settings.singles), "domains": domains}


def _domain(settings: Synergy, domain: Name, frames: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The figures of one domain; q is not known yet."""
    rows = {name: _rows(name, frame, task_of(domain), frames["target"]) for name, frame in frames.items()}
    draws = draw(rows["target"].cluster, Bootstrap(settings.resamples, settings.confidence, settings.seed))
    undefined: dict[str, str] = {}

    def told(name: str, figure: Estimate | Undefined) -> dict[str, float | int] | None:
        if isinstance(figure, Estimate):
            return figure.rounded()
        undefined[name] = figure.reason
        return None

    found: dict[str, Any] = {"n": len(rows["target"]), "clusters": draws.clusters}
    for measure, column in _MEASURES.items():
        values = {name: each[column].to_numpy(dtype=np.float64) for name, each in rows.items()}
        change = {name: each - values["target"] for name, each in values.items()}
        alone = {each: change[graft] for each, graft in settings.singles.items()}
        beyond = change[settings.together] - np.sum(list(alone.values()), axis=0)
        bounded, count = column == "right", len(alone)

        def figure(name: str, each: np.ndarray, span: tuple[float, float], bounded: bool = bounded) -> Any:
            return told(name, mean(draws, each, span if bounded else None))

        found[measure] = {
            "target": figure(f"{measure}.target", values["target"], (0.0, 1.0)),
            "together": figure(f"{measure}.together", change[settings.together], (-1.0, 1.0)),
            "singles": {k: figure(f"{measure}.singles.{k}", each, (-1.0, 1.0)) for k, each in alone.items()},
            "synergy": figure(f"{measure}.synergy", beyond, (-float(count), float(count))),
            "p": round(_p(draws, beyond, settings.seed), 6),
        }
    own = settings.singles[domain]
    kept = recovery(draws, *(rows[name]["right"] for name in (settings.together, own, "target")))
    if isinstance(kept, Undefined):
        kept = Undefined("the domain's own specialist is not surely better than the target")
    return {**found, "kept": told("kept", kept), "undefined": undefined}


def _rows(name: str, frame: pd.DataFrame, task: str, target: pd.DataFrame) -> pd.DataFrame:
    """A model's rows of a task in the order of the target's."""
    wanted = target.loc[target.task == task, "id"].to_numpy()
    if not len(wanted):
        raise BadInput(f"Expected items of {task} to compare grafts on, got none; name it in the tasks to judge by.")
    found = frame.loc[frame.task == task].set_index("id")
    if len(found) != len(wanted) or not found.index.isin(wanted).all() or not found.index.is_unique:
        raise BadInput(f"Expected {name} judged on the target's {len(wanted)} items of {task}, got {len(found)} that "
                       "are not all the same; rerun evaluate.")  # fmt: skip
    return found.loc[wanted]


def _p(draws: Draws, values: np.ndarray, seed: int) -> float:
    """Of a mean of zero, with the items of a cluster changing their signs together."""
    return float(sign_flip(np.bincount(draws.members, values)[:, None], seed=seed)[0])


def main(name: str, survey: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Compare the grafts that params.yaml names under `synergy`, judged on several domains each."""
    settings = read(params, f"synergy.{name}", Synergy)
    frames = {each: read_test(survey / each / "items.parquet")
              for each in ("target", settings.together, *settings.singles.values())}  # fmt: skip
    singles: dict[Name, pd.DataFrame] = {domain: frames[graft] for domain, graft in settings.singles.items()}
    write_json(out, synergy(settings, frames["target"], frames[settings.together], singles))


if __name__ == "__main__":
    run(main)
