"""Bridges from a donor's hidden spaces to the target's: fitted on some prompts, judged on others."""

from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors.torch import save_file

from stages.activations import Activations
from stages.anatomy.names import layer_index
from stages.command import run
from stages.errors import BadInput
from stages.maths.procrustes import agreement, orthogonal, ridge
from stages.pairs import block_sites, paired
from stages.settings import Settings, read
from stages.storage import new_directory, write_json


class Align(Settings):
    """Which layers are bridged, and how."""

    target_layers: list[int | float | str] = ["n-4"]
    """The target's layers that each block of a donor with another number of blocks is bridged to."""
    strength: float = pydantic.Field(default=0.05, ge=0)
    """Ridge penalty, as a multiple of the mean variance of a donor channel."""
    held_out: float = pydantic.Field(default=0.25, gt=0, lt=1)
    """Share of the prompts and of the texts that bridges are judged on."""
    seed: int = 0


def layer_pairs(donor_blocks: int, target_blocks: int, target_layers: list[int | float | str]) -> list[tuple[int, int]]:
    """(donor layer, target layer): each with its like where the counts agree, else each with all of `target_layers`."""
    if donor_blocks == target_blocks:
        return [(layer, layer) for layer in range(target_blocks)]
    wanted = sorted({layer_index(spec, target_blocks) for spec in target_layers})
    return [(layer, onto) for layer in range(donor_blocks) for onto in wanted]


def held_out(kinds: list[str], share: float, seed: int) -> torch.Tensor:
    """[prompts], which to judge on: `share` of each kind that has two or more, at least one and not all of them."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(kinds), dtype=torch.bool)
    for kind in sorted(set(kinds)):
        members = torch.tensor([index for index, each in enumerate(kinds) if each == kind])
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not chosen.any():
        raise BadInput(f"Expected two or more prompts of a kind to fit and judge bridges, got {kinds}; capture more.")
    return chosen


def align(
    settings: Align, target: Activations, donor: Activations
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Bridges as tensors `DONOR-TARGET.KIND.{weight,bias}`, and a row for each with its agreement on held-out rows.

    A bridge maps donor rows x to x W + b, with W [donor width, target width]. KIND is `orthogonal` (equal widths only;
    its b is zero) or `ridge`. `cosine`, `mse` and `r2` are of the bridged rows, those with `_before` of the donor's
    rows as they are, null where the widths differ. Each prompt's first token and attention sinks are left out,
    both of fitting and of judging.
    Raises BadInput when the files are of different texts, lack blocks, or leave fewer than two rows to fit or judge.
    """
    pairing = paired(target, donor)
    judged = held_out(target.kinds, settings.held_out, settings.seed)[pairing.prompt]
    counts = {"rows_fit": int((~judged).sum()), "rows_held_out": int(judged.sum())}
    if min(counts.values()) < 2:
        raise BadInput(f"Expected two or more rows to fit and to judge bridges, got {counts}; capture more prompts.")
    sites, donor_sites = block_sites(target), block_sites(donor)
    tensors: dict[str, torch.Tensor] = {}
    rows: list[dict[str, Any]] = []
    for layer, onto in layer_pairs(len(donor_sites), len(sites), settings.target_layers):
        x, y = donor.site(donor_sites[layer])[pairing.donor], target.site(sites[onto])[pairing.target]
        equal = x.shape[1] == y.shape[1]
        before = agreement(x[judged], y[judged]) if equal else None
        bridges = {"ridge": ridge(x[~judged], y[~judged], settings.strength)}
        if equal:
            bridges["orthogonal"] = orthogonal(x[~judged], y[~judged])
        for kind, bridge in sorted(bridges.items()):
            after = agreement(bridge(x[judged]), y[judged])
            tensors[f"{layer}-{onto}.{kind}.weight"] = bridge.weight.contiguous()
            tensors[f"{layer}-{onto}.{kind}.bias"] = bridge.bias.contiguous()
            row: dict[str, Any] = {"donor_layer": layer, "target_layer": onto, "kind": kind} | counts
            for figure in ("cosine", "mse", "r2"):
                row[f"{figure}_before"] = getattr(before, figure, None)
                row[figure] = getattr(after, figure)
            rows.append(row)
    return tensors, rows


def main(target: Path, donor: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Fit and judge bridges between captured states, as params.yaml says under `align`."""
    tensors, rows = align(read(params, "align", Align), Activations(target), Activations(donor))
    with new_directory(out) as scratch:
        save_file(tensors, scratch / "bridges.safetensors")
        write_json(scratch / "alignment.json", rows)
    best = max(rows, key=lambda row: row["r2"])
    where = f"{best['kind']} {best['donor_layer']} → {best['target_layer']}"
    print(f"{len(rows)} bridges; best {where}, R² {best['r2']:.3f} on held-out rows")


if __name__ == "__main__":
    run(main)
