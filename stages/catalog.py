"""The catalog's columns, its rows as they are gathered, and its curves over the layers."""

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from stages.anatomy.names import kind_of, layer_of

ON = ("capability", "text")
"""What figures are taken on, each apart."""
COUNTS = ("rows", "run_rows", "lens_rows")
"""Tokens behind the figures of captured states, of models run anew, and of early predictions."""
FIGURES = (
    *("change", "consistency", "cka", "norm_ratio", "rank", "donor_rank", "change_rank"),
    *("local_change", "local_consistency", "locality", "own_share"),
    *("entropy", "donor_entropy", "head_similarity"),
    *("lens_agreement", "donor_lens_agreement", "lens_divergence", "donor_lens_divergence"),
    *("active", "donor_active", "gini", "donor_gini", "neuron_overlap"),
)
SCHEMA = pa.schema(
    [
        ("site", pa.string()),
        ("donor_site", pa.string()),
        ("kind", pa.string()),
        ("layer", pa.int32()),
        ("donor_layer", pa.int32()),
        *((f"{on}_{count}", pa.int32()) for on in ON for count in COUNTS),
        *((f"{on}_{figure}", pa.float64()) for on in ON for figure in FIGURES),
    ]
)
"""The catalog's columns: figures on capability prompts and on texts stand apart, and are null where there is none."""
_CURVES = {
    "block": ("change", "cka", "own_share", "lens_agreement", "donor_lens_agreement", "rank", "donor_rank"),
    "attention": ("change", "local_change", "entropy", "donor_entropy", "head_similarity"),
    "mlp": ("change", "local_change", "active", "donor_active", "neuron_overlap"),
}


class Rows:
    """The catalog as it is gathered: a row a pair of sites, None for a site that only one model's figures are of."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str | None, str | None], dict[str, Any]] = {}

    def add(self, site: str | None, donor_site: str | None, on: str, figures: Mapping[str, float]) -> None:
        """Puts figures into the row of these sites; those that are not finite are null."""
        row = self._rows.setdefault((site, donor_site), {})
        row |= {f"{on}_{name}": value if math.isfinite(value) else None for name, value in figures.items()}

    def table(self) -> pa.Table:
        """All rows in the columns of SCHEMA, in the order in which they came up."""
        rows = []
        for (site, donor_site), figures in self._rows.items():
            layers = [layer_of(each) if each else None for each in (site, donor_site)]
            about = {"site": site, "donor_site": donor_site, "kind": part_of(site or donor_site or "")}
            rows.append(about | {"layer": layers[0], "donor_layer": layers[1]} | figures)
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def part_of(site: str) -> str:
    """What a row is of: as `kind_of` says, or `linear` for a linear module of a block."""
    return "linear" if kind_of(site) == "block" and site.count(".") > 1 else kind_of(site)


def curves(table: pa.Table) -> list[dict[str, Any]]:
    """Figures over the layers, a row a layer, a key for each of a kind of site: what `dvc plots` draws.

    A donor's own figures stand at the donor's layer. For a donor of other widths `cka` is the best over the target's
    layers, at the donor's layer. None where there is none, so that a line ends there.
    """
    names = [f"{kind}_{on}_{figure}" for kind, figures in _CURVES.items() for on in ON for figure in figures]
    layers: dict[int, dict[str, Any]] = {}
    for row in table.to_pylist():
        layer = row["layer"] if row["donor_site"] is None else row["donor_layer"]
        if layer is None or row["kind"] not in _CURVES:
            continue
        into = layers.setdefault(layer, {"layer": layer} | dict.fromkeys(names))
        for name in names:
            value = row.get(name.removeprefix(f"{row['kind']}_"))
            if value is not None:
                into[name] = value if into[name] is None else max(value, into[name])
    return [layers[layer] for layer in sorted(layers)]
