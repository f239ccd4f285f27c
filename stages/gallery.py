"""Every way to graft side by side: each variant judged beside its control, with what its making showed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from stages.capabilities.names import task_of
from stages.command import run
from stages.errors import BadInput
from stages.maths import statistics
from stages.maths.statistics import Bootstrap, Estimate
from stages.pages.gallery import WAYS, render
from stages.pages.markdown import markdown
from stages.pages.measures import CORE
from stages.pages.roles import Roles, read_roles
from stages.pages.summary import summarize
from stages.pages.verdict import Rules
from stages.report import Report
from stages.settings import read
from stages.storage import new_directory, read_json, write_json
from stages.tables import read_test

DOMAINS = ("arithmetic", "units", "dates", "letters")


def alike(rows: pd.DataFrame, sample: pd.DataFrame) -> pd.DataFrame:
    """Those of a model's rows whose task and id are in `sample`, in its order.

    Raises BadInput when one is missing.
    """
    keyed = rows.set_index(["task", "id"], drop=False)
    wanted = pd.MultiIndex.from_frame(sample[["task", "id"]])
    if not wanted.isin(keyed.index).all():
        raise BadInput("Expected a survey on items that the target was evaluated on, got others; run `dvc repro`.")
    return keyed.loc[wanted].reset_index(drop=True)


def _of(rows: pd.DataFrame, tasks: Sequence[str]) -> pd.DataFrame:
    """The rows of some tasks, in the order that all models share."""
    return rows.loc[rows.task.isin(tasks)].sort_values(["task", "id"])


def by_domain(items: Mapping[str, pd.DataFrame], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Right answers by domain of each model that was asked about several; None for a domain that it was not."""
    rows = []
    for name, frame in items.items():
        cells: dict[str, Any] = dict.fromkeys(DOMAINS)
        for domain in DOMAINS:
            part = frame.loc[frame.task == task_of(domain)]
            if len(part):
                draws = statistics.draw(part.cluster.to_numpy(), bootstrap)
                found = statistics.accuracy(draws, part.right.to_numpy(dtype=float))
                cells[domain] = found.rounded() if isinstance(found, Estimate) else None
        if sum(cell is not None for cell in cells.values()) > 1:
            rows.append({"name": name, "cells": cells})
    return rows


def gallery(
    settings: Report,
    rules: Rules,
    roles: Roles,
    evaluated: Mapping[str, pd.DataFrame],
    surveyed: Mapping[str, pd.DataFrame],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary of all surveyed variants, on the items that they have in common, and the rows by domain.

    `evaluated` are the rows of the target and the donors, `surveyed` those of the variants and of models asked about
    several domains; there the target and the donors give what is known of them on the domains. Raises BadInput when
    nothing was surveyed.
    """
    variants = {name: rows for name, rows in surveyed.items() if name in roles.variants}
    whole = {name: rows for name, rows in variants.items() if (rows.task == "retention").any()}
    if not whole:
        raise BadInput("Expected surveyed variants, got none; run `dvc repro` to make them.")
    sample = next(iter(whole.values()))
    sample = sample.loc[sample.task.isin(CORE)]
    domains = [task_of(each) for each in DOMAINS if task_of(each) not in CORE]
    # the seeds of a variant that stands in another section are repeats of it, and no variants of their own
    repeated = {each for name, others in settings.seeds.items() for each in (name, *others)}
    known = {}
    for name in ("target", *roles.donors, *whole, *sorted(repeated)):
        judged = [rows[name] for rows in (evaluated, surveyed) if name in rows]
        if judged:
            known[name] = pd.concat([alike(judged[0], sample), _of(judged[-1], domains)], ignore_index=True)
    bootstrap = Bootstrap(settings.resamples, settings.confidence, settings.seed)
    summary = summarize(known, roles, bootstrap, rules, settings.seeds)
    others = {name: rows for name, rows in surveyed.items() if name not in roles.variants}
    return summary, by_domain(others | variants, bootstrap)


def main(
    evaluation: Path, survey: Path, making: Path, synergy: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    """Lay out every way to graft, judged by the rules that params.yaml gives under `verdict`."""
    settings, rules = read(params, "report", Report), read(params, "verdict", Rules)
    evaluated = {path.parent.name: read_test(path) for path in sorted(evaluation.glob("*/items.parquet"))}
    roles = read_roles(params, tuple(WAYS), ("adopt", "specialists"))
    surveyed = {path.parent.name: read_test(path) for path in sorted(survey.glob("*/items.parquet"))}
    roles = replace(roles, donors={n: how for n, how in roles.donors.items() if n in evaluated or n in surveyed})
    ways = {way: [name for name, role in roles.variants.items() if role.section == way] for way in WAYS}
    makings = {path.stem: read_json(path) for path in sorted(making.glob("*.json"))}
    synergies = {path.stem: read_json(path) for path in sorted(synergy.glob("*.json"))}
    summary, domains = gallery(settings, rules, roles, evaluated, surveyed)
    page = render(summary, roles, ways, makings, domains, synergies, settings.model_dump() | rules.model_dump())
    with new_directory(out) as directory:
        told = {"summary": summary, "making": makings, "domains": domains, "synergy": synergies}
        write_json(directory / "gallery.json", told)
        (directory / "gallery.md").write_text(markdown(summary, roles), encoding="utf-8")
        (directory / "index.html").write_text(page, encoding="utf-8")
    print(f"{len(surveyed)} models in {sum(map(bool, ways.values()))} ways")


if __name__ == "__main__":
    run(main)
