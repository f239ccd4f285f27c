"""What the other stages found, read for the models that params.yaml names; what is not there stays empty."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stages.pages.roles import Roles
from stages.storage import read_json, read_jsonl
from stages.sums import hashed
from stages.tables import read_note, read_table, read_test


@dataclass(frozen=True)
class Places:
    """Directories of the stages' outputs, and the plan's file; each may be missing."""

    evaluation: Path
    uncertainty: Path
    catalog: Path
    trace: Path
    bridges: Path
    gates: Path
    plan: Path
    models: Path
    donors: Path
    selection: Path
    regressions: Path
    counterfactual: Path
    showcase: Path
    cost: Path


@dataclass(frozen=True)
class Evidence:
    """Everything that the report shows beside the figures of the summary."""

    items: Mapping[str, pd.DataFrame]
    """Model → its evaluated rows."""
    uncertainty: Mapping[str, Mapping[str, Any]]
    """Variant → task → calibration."""
    catalog: Mapping[str, pd.DataFrame]
    """Donor → sites."""
    trace: Mapping[str, pd.DataFrame]
    """Donor → causal effects by site."""
    agreement: Mapping[str, list[dict[str, Any]] | None]
    """Donor → rank correlations of estimated effects with exact ones."""
    bridges: Mapping[str, list[dict[str, Any]]]
    """Donor → quality of its bridges."""
    selection: Mapping[str, pd.DataFrame]
    """Donor → the frontier of selections among its modules."""
    curves: Mapping[str, list[dict[str, float]]]
    """Variant → training curve of its gate."""
    built: Mapping[str, Mapping[str, Any]]
    """Variant → the section that its gate was trained for."""
    plan: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, Any]]
    """Model → source.json."""
    trained: Mapping[str, Mapping[str, Any]]
    """Donor → how it was trained."""
    regressions: Mapping[str, list[dict[str, Any]]]
    """Variant → the items that the target has right and it has wrong; empty where there are none."""
    counterfactual: Mapping[str, Mapping[str, Any]]
    """Variant → effects on minimal pairs by category."""
    showcase: Mapping[str, Mapping[str, Any]]
    """Variant → texts with the gate at each token."""
    cost: Mapping[str, Mapping[str, Any]]
    """Variant → parameters, time and memory."""
    digests: Mapping[str, str]
    """Model → SHA-256 of its evaluated rows."""


def gather(places: Places, roles: Roles) -> Evidence:
    """The evidence on the target and on the donors and variants of `roles`; BadInput when a file cannot be read."""
    donors, variants = list(roles.donors), list(roles.variants)
    everyone = ["target", *donors, *variants]
    curves = _found(places.gates, variants, "{}/training.json", read_json)
    as_trained = {donor: str(how.get("trained", donor)) for donor, how in roles.donors.items()}
    trained = _found(places.donors, sorted(set(as_trained.values())), "{}/training.json", read_json)
    return Evidence(
        items=_found(places.evaluation, everyone, "{}/items.parquet", read_test),
        uncertainty=_found(places.uncertainty, variants, "{}.json", read_json),
        catalog=_found(places.catalog, donors, "{}.parquet", read_table),
        trace=_found(places.trace, donors, "{}.parquet", read_table),
        agreement=_found(places.trace, donors, "{}.parquet", lambda path: read_note(path, "agreement")),
        bridges=_found(places.bridges, donors, "{}/alignment.json", read_json),
        selection=_found(places.selection, donors, "{}/frontier.parquet", read_table),
        curves={name: found["curve"] for name, found in curves.items() if found.get("curve")},
        built={name: found["recipe"] for name, found in curves.items() if found.get("recipe")},
        plan=read_json(places.plan) if places.plan.is_file() else {},
        sources=_found(places.models, everyone, "{}/source.json", read_json),
        trained={donor: trained[name] for donor, name in as_trained.items() if name in trained},
        regressions=_found(places.regressions, variants, "{}.jsonl", _rows),
        counterfactual=_found(places.counterfactual, variants, "{}.json", read_json),
        showcase=_found(places.showcase, variants, "{}.json", read_json),
        cost=_found(places.cost, variants, "{}.json", read_json),
        digests=_found(places.evaluation, everyone, "{}/items.parquet", hashed),
    )


def _found(root: Path, names: Iterable[str], pattern: str, read: Any) -> dict[str, Any]:
    paths = {name: root / pattern.format(name) for name in names}
    return {name: read(path) for name, path in paths.items() if path.is_file()}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, of which an empty one has none."""
    return read_jsonl(path) if path.stat().st_size else []
