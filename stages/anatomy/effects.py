"""Outcomes of interventions as rows of the trace table: effects with their intervals, and q-values over the sites."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stages.anatomy.names import kind_of
from stages.anatomy.outcomes import Outcome
from stages.maths.discovery import q_values, sign_flip
from stages.maths.statistics import Bootstrap, Draws, Estimate, Undefined, draw, estimate, rank_correlation

_EFFECTS = ("capability", "match", "retention", "retention_change")
_TESTED = {"capability": "capability", "retention": "retention_change"}
SCHEMA = pa.schema(
    [
        ("site", pa.string()),
        ("layer", pa.int32()),
        ("intervention", pa.string()),
        ("position", pa.string()),
        ("host", pa.string()),
        ("prompts", pa.int32()),
        ("texts", pa.int32()),
        *((f"{effect}{end}", pa.float64()) for effect in _EFFECTS for end in ("", "_low", "_high")),
        *((f"{effect}_q", pa.float64()) for effect in _TESTED),
    ]
)
"""The columns of a trace. `position` is where alone an intervention stood, null where it stood at all of them.
`layer` is the block that is exchanged whole and exactly, null for what is smaller or only
estimated. `capability` is the change of an answer's log-likelihood (nats) and `match` of its exact match, both against
the unpatched host; `retention` is the mean KL divergence a token (nats) from the target's next-token distribution,
`retention_change` that less the unpatched host's; null where an intervention does not measure it. Ends of 95 %
intervals beside each. `capability_q` and `retention_q` are Benjamini–Hochberg q-values over all sites of an
intervention that the effect (for retention, its change) is zero, from sign flips over prompts and texts."""


class Effects:
    """Rows in the making: differences from the unpatched host, all figures from the same draws of items."""

    def __init__(self, tokens: torch.Tensor, resamples: int, seed: int) -> None:
        """`tokens` [texts] are the positions read of each text."""
        self._tokens = tokens.double()
        self._bootstrap = Bootstrap(resamples, seed=seed)
        self._draws: dict[int, Draws] = {}
        self._rows: list[dict[str, Any]] = []
        self._values: list[dict[str, np.ndarray]] = []

    def add(
        self,
        intervention: str,
        host: str,
        site: str | None,
        outcome: Outcome,
        unpatched: Outcome,
        layer: int | None = None,
        position: str | None = None,
    ) -> None:
        """The row of an exact intervention; texts count where the outcome has any."""
        changes = {
            "capability": outcome.loglikelihood - unpatched.loglikelihood,
            "match": outcome.match - unpatched.match,
        }
        if len(outcome.divergence):
            changes |= {
                "retention": outcome.divergence,
                "retention_change": outcome.divergence - unpatched.divergence,
            }
        self._add(
            {"site": site, "layer": layer, "intervention": intervention, "position": position, "host": host}, changes
        )

    def add_estimate(self, intervention: str, site: str, capability: torch.Tensor, retention: torch.Tensor) -> None:
        """The row of an estimate [prompts], [texts] of what an intervention does to the target."""
        changes = {"capability": capability, "retention": retention, "retention_change": retention}
        self._add({"site": site, "intervention": intervention, "host": "target"}, changes)

    def _add(self, about: dict[str, Any], changes: dict[str, torch.Tensor]) -> None:
        row = about | {"prompts": len(changes["capability"]), "texts": len(changes.get("retention", ()))}
        for name, values in changes.items():
            span = (-1.0, 1.0) if name == "match" else None
            counts = self._tokens if name.startswith("retention") else torch.ones_like(values)
            row |= {f"{name}{end}": value for end, value in self._mean(values.numpy(), counts.numpy(), span).items()}
        self._rows.append(row)
        self._values.append({name: changes[of].numpy() for name, of in _TESTED.items() if of in changes})

    def _mean(
        self, values: np.ndarray, weights: np.ndarray, span: tuple[float, float] | None
    ) -> dict[str, float | None]:
        """Σ values / Σ weights over items with its interval, whose ends are null where it has none."""
        found = estimate(self._over(len(values)), lambda drawn: (drawn @ values) / (drawn @ weights), span)
        low, high = (found.low, found.high) if isinstance(found, Estimate) else (None, None)
        return {"": float(values.sum() / weights.sum()), "_low": low, "_high": high}

    def _over(self, items: int) -> Draws:
        if items not in self._draws:
            self._draws[items] = draw(range(items), self._bootstrap)
        return self._draws[items]

    def table(self, compared: Sequence[tuple[str, str]] = ()) -> pa.Table:
        """All rows in the columns of SCHEMA, whose metadata hold `agreement`, a JSON list: Spearman's correlation over
        the sites that both of two interventions have, an estimate and an exact one, for each pair in `compared`; where
        these are of several kinds, `kinds` holds it for each that has three or more.
        """
        families: dict[tuple[str, str | None], list[int]] = {}
        for number, row in enumerate(self._rows):
            families.setdefault((row["intervention"], row.get("position")), []).append(number)
        for members in families.values():
            for name in _TESTED:
                if some := [i for i in members if name in self._values[i]]:
                    p = sign_flip(np.stack([self._values[i][name] for i in some], axis=1), seed=self._bootstrap.seed)
                    for i, q in zip(some, q_values(p).tolist(), strict=True):
                        self._rows[i][f"{name}_q"] = q
        found = [each for estimated, exact in compared if (each := self._agreement(estimated, exact))]
        schema = SCHEMA.with_metadata({"agreement": json.dumps(found, sort_keys=True)})
        return pa.Table.from_pylist(self._rows, schema=schema)

    def _agreement(self, estimated: str, exact: str) -> dict[str, Any] | None:
        ours, truth = (
            {row["site"]: row for row in self._rows if (row["intervention"], row.get("position")) == (name, None)}
            for name in (estimated, exact)
        )
        sites = [site for site in ours if site in truth]
        if len(sites) < 3:
            return None
        found = {"estimate": estimated, "exact": exact} | self._correlated(sites, ours, truth)
        by_kind = {kind: [s for s in sites if kind_of(s) == kind] for kind in dict.fromkeys(map(kind_of, sites))}
        if len(by_kind) > 1:
            enough = {kind: some for kind, some in by_kind.items() if len(some) >= 3}
            found["kinds"] = {kind: self._correlated(some, ours, truth) for kind, some in enough.items()}
        return found

    def _correlated(self, sites: list[str], ours: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
        figures: dict[str, Any] = {"sites": len(sites)}
        for name in _TESTED:
            both = [[rows[site][name] for site in sites] for rows in (ours, truth)]
            found = rank_correlation(self._over(len(sites)), *both)
            figures[name] = None if isinstance(found, Undefined) else found.rounded()
        return figures
