"""The strategy flow for each donor: forks with the figures that decided them, and the variant that they recommend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic

from stages import forks
from stages.anatomy.coverage import Coverage, coverage
from stages.anatomy.loading import load_tokenizer
from stages.command import run
from stages.forks import Fork
from stages.items import PROMPT, read_items
from stages.recipes.blade import BladeRecipe, Training
from stages.settings import Settings, read
from stages.storage import read_json, write_json
from stages.tables import read_table


class Plan(Settings):
    """The thresholds of the forks, and how what they recommend is trained."""

    aligned_cosine: float = pydantic.Field(default=0.9, ge=-1, le=1)
    """Held-out cosine of states as they are, at the best layer, from which two hidden spaces count as one."""
    bridged_r2: float = pydantic.Field(default=0.5, le=1)
    """Held-out R² from which a bridge fitted without the capability carries states over."""
    share_of_gain: float = pydantic.Field(default=0.95, gt=0, le=1)
    """Share of the donor's gain that a layer has to bring to be of high impact."""
    false_discovery: float = pydantic.Field(default=0.05, gt=0, lt=1)
    """Largest q-value of a traced effect that counts."""
    lacking_tokens: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Share of the donor's tokens in the capability's prompts without a token of the target's, above which the target
    needs its vocabulary."""
    mixture_gain: float = pydantic.Field(default=0.05, ge=0)
    """What a mixture of bridges has to add to the R² of the best single one for tasks to count as heterogeneous."""
    share_of_candidate: float = pydantic.Field(default=0.1, gt=0)
    """Share of the donor's gain that a part of a layer has to bring to be a candidate."""
    bridges: int = pydantic.Field(default=4, gt=1)
    """Of a recommended mixture."""
    training: Training
    """Of a recommended gate alone."""
    bridging: Training
    """Of a recommended gate and bridge."""


METHODS = {
    "injection": "module injection with bridges",
    "embedding": "embedding initialisation",
    "mixture": "mixture of bridges",
    "fusion": "adapter fusion",
    "validation": "validation",
}
"""Where the flow ends, in words."""
EXITS: Mapping[str, Mapping[forks.Answer, str]] = {
    "aligned": {"yes": "sites", "no": "bridge", "not measured": "bridge"},
    "bridge": {"yes": "sites", "no": "sites", "not measured": "sites"},
    "sites": {"yes": "injection", "no": "vocabulary", "not measured": "vocabulary"},
    "vocabulary": {"yes": "embedding", "no": "tasks", "not measured": "tasks"},
    "tasks": {"yes": "mixture", "no": "candidates", "not measured": "candidates"},
    "candidates": {"yes": "fusion", "no": "validation", "not measured": "validation"},
}
"""Where each answer leads: to another fork, or to a method."""


def walk(answers: Mapping[str, forks.Answer]) -> list[str]:
    """The forks that these answers lead through, in order, and at the end the method."""
    way = ["aligned"]
    while way[-1] in EXITS:
        way.append(EXITS[way[-1]][answers[way[-1]]])
    return way


def layers(sites: Fork, rows: Sequence[forks.Row]) -> tuple[int, int] | None:
    """The donor's and the target's layer that would be grafted: the traced one, of the highest impact.

    Without a trace, the donor's deepest bridged block, where all that it computes has arrived, and the target's layer
    that it maps onto best; early states map best because they hold little but the token. None without either.
    """
    if "layer" in sites.figures:
        return int(sites.figures["layer"] or 0), int(sites.figures["layer"] or 0)
    if not rows:
        return None
    deepest = max(row["donor_layer"] for row in rows)
    of_it = [row for row in rows if row["donor_layer"] == deepest]
    best = max(of_it, key=lambda row: -math.inf if row["r2"] is None else row["r2"])
    return int(deepest), int(best["target_layer"])


def recipe(settings: Plan, donor: str, same: bool, pair: tuple[int, int], method: str) -> BladeRecipe:
    """The blade between a pair of layers, with a bridge, or the mixture of them that the `method` calls for, unless
    both have the `same` hidden space."""
    mixed = method == "mixture" and not same
    return BladeRecipe(
        donor=donor,
        layer=pair[1],
        donor_layer=pair[0],
        gate="token",
        bridge="identity" if same else "mixture" if mixed else "linear",
        bridges=settings.bridges if mixed else 1,
        mix="delta" if same else "add",
        training=settings.training if same else settings.bridging,
    )


def plan(
    settings: Plan, donor: str, rows: Sequence[forks.Row], trace: pd.DataFrame | None, found: Coverage | None
) -> dict[str, Any]:
    """`path`, every fork with its answer and whether the flow comes by it, and the `recommendation` for one donor.

    `rows` are of its alignment, empty where none was fitted; `trace` and `found` are None where they were not
    measured. A recommended method that is no blade comes with the nearest `recipe` that is one.
    """
    sites = forks.high_impact(trace, settings.share_of_gain, settings.false_discovery)
    pair = layers(sites, rows)
    there = [row for row in rows if (row["donor_layer"], row["target_layer"]) == pair]
    every = (
        forks.aligned(rows, settings.aligned_cosine),
        forks.bridged(there, settings.bridged_r2),
        sites,
        forks.vocabulary(found, settings.lacking_tokens),
        forks.heterogeneous(there, settings.mixture_gain),
        forks.candidates(trace, settings.share_of_candidate, settings.false_discovery),
    )
    answered = {fork.name: fork for fork in every}
    way = walk({name: fork.answer for name, fork in answered.items()})
    same = answered["aligned"].answer == "yes"
    built = None if pair is None else recipe(settings, donor, same, pair, way[-1])
    path = [
        asdict(fork) | {"exits": EXITS[fork.name], "next": EXITS[fork.name][fork.answer], "reached": fork.name in way}
        for fork in every
    ]
    recommendation = {
        "method": way[-1],
        "note": _note(way[-1], built),
        "recipe": None if built is None else built.model_dump(exclude_none=True),
    }
    return {"path": path, "recommendation": recommendation}


def _note(method: str, built: BladeRecipe | None) -> str:
    """What stands in for a method that is no blade, and where that is written; empty where the recipe is the method."""
    if built is None:
        return "nothing can be built before the donor is aligned or traced"
    kind = "a blade without a bridge" if built.bridge == "identity" else "a blade over a bridge that training fits"
    if method == "injection" or (method == "mixture" and built.bridge == "mixture"):
        return ""
    if method == "validation":
        return f"no fork calls for a method of its own; build {kind} and judge it beside its control"
    section = {"embedding": "embed", "fusion": "fuse"}.get(method, method)
    return f"{METHODS[method]} is written under `{section}` in params.yaml; the nearest blade is {kind}"


def main(
    bridges: Path, trace: Path, models: Path, capability: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    """Plan for every donor that was aligned."""
    settings = read(params, "plan", Plan)
    texts = [row["prompt"] + row["answer"] for row in read_items(capability, PROMPT)]
    made = {}
    for donor in sorted(path.name for path in bridges.iterdir() if path.is_dir()):
        traced, target, giving = trace / f"{donor}.parquet", models / "target", models / donor
        there = target.is_dir() and giving.is_dir()
        found = coverage(load_tokenizer(target), load_tokenizer(giving), texts) if there else None
        evidence = read_table(traced) if traced.is_file() else None
        made[donor] = plan(settings, donor, read_json(bridges / donor / "alignment.json"), evidence, found)
        print(f"{donor}: {METHODS[made[donor]['recommendation']['method']]}")
    write_json(out, {"donors": made, "methods": METHODS})


if __name__ == "__main__":
    run(main)
