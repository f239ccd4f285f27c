"""The catalog of a donor: how far, how steadily and into what its states depart from the target's at each site."""

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch

from stages.activations import Activations
from stages.anatomy.names import kind_of, layer_of
from stages.command import run
from stages.maths.change import consistency, norm_ratio, relative_change
from stages.maths.cka import debiased_cka
from stages.pairs import block_sites, paired
from stages.storage import new_file

_KINDS = ("capability", "text")
_FIGURES = ("change", "consistency", "cka", "norm_ratio")
SCHEMA = pa.schema(
    [
        ("site", pa.string()),
        ("donor_site", pa.string()),
        ("kind", pa.string()),
        ("layer", pa.int32()),
        ("donor_layer", pa.int32()),
        *((f"{kind}_rows", pa.int32()) for kind in _KINDS),
        *((f"{kind}_{figure}", pa.float64()) for kind in _KINDS for figure in _FIGURES),
    ]
)
"""The catalog's columns: figures on capability prompts and on texts stand apart, and are null where there is none."""


def analyze(target: Activations, donor: Activations) -> pa.Table:
    """The catalog, in the columns of SCHEMA.

    A donor with the target's tokens, sites and widths has a row for each site: `change` is the mean of ‖d - t‖ / ‖t‖
    over tokens, `consistency` the mean cosine of a prompt's mean change with that of the other prompts, `norm_ratio`
    the donor's mean norm over the target's, `cka` the debiased linear CKA. Any other donor has a row for each pair of
    a donor's and a target's block with the CKA alone, since its channels mean other things. Each prompt's first
    token and attention sinks are left out; `rows` counts the tokens that stay. Raises BadInput when the files are
    of different texts.
    """
    pairing = paired(target, donor)
    widths = [{site: each.width(site) for site in each.sites} for each in (target, donor)]
    alike = pairing.same_tokens and widths[0] == widths[1]
    chosen = {kind: target.of_kind(kind)[pairing.target] for kind in _KINDS}
    rows = []
    for site in target.sites if alike else block_sites(target):
        states = target.site(site)[pairing.target]
        for donor_site in [site] if alike else block_sites(donor):
            others = donor.site(donor_site)[pairing.donor]
            row: dict[str, object] = {"site": site, "donor_site": donor_site, "kind": kind_of(site)}
            row |= {"layer": layer_of(site), "donor_layer": layer_of(donor_site)}
            for kind, of_kind in chosen.items():
                figures = _figures(states[of_kind], others[of_kind], pairing.prompt[of_kind], alike)
                row |= {f"{kind}_{name}": value if math.isfinite(value) else None for name, value in figures.items()}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _figures(target: torch.Tensor, donor: torch.Tensor, prompt: torch.Tensor, alike: bool) -> dict[str, float]:
    """One site's figures on rows of one kind."""
    if len(target) < 4:
        return {"rows": len(target)}
    figures = {"rows": len(target), "cka": debiased_cka(target, donor)}
    if alike:
        figures |= {
            "change": relative_change(target, donor),
            "consistency": consistency(target, donor, prompt),
            "norm_ratio": norm_ratio(target, donor),
        }
    return figures


def main(target: Path, donor: Path, out: Path) -> None:
    """Compare a donor's captured states with the target's."""
    table = analyze(Activations(target), Activations(donor))
    with new_file(out) as scratch:
        pyarrow.parquet.write_table(table, scratch)
    print(f"{table.num_rows} rows")


if __name__ == "__main__":
    run(main)
