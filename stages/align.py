"""Bridges from a donor's hidden spaces to the target's: fitted on some prompts, judged on others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from safetensors.torch import save_file

from stages.activations import Activations
from stages.anatomy.names import layer_index, layer_of
from stages.command import run
from stages.errors import BadInput
from stages.maths.affine import Affine
from stages.maths.agreement import agreement
from stages.maths.mixture import Mixture, mixture
from stages.maths.moments import Rows, moments
from stages.maths.procrustes import orthogonal
from stages.maths.regression import least_squares, low_rank, ridge
from stages.pairs import PairedRows, block_sites, paired
from stages.settings import Settings, read
from stages.storage import new_directory, write_json


class MixtureOf(Settings):
    """Several ridge maps under one gate, trained offline on the squared error."""

    bridges: int = pydantic.Field(ge=2)
    epochs: int = pydantic.Field(default=4, ge=1)
    """Passes of Adam over the rows, after the maps have been fitted in turn from moments."""
    learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    """Its first step's, for standardised columns."""


class Align(Settings):
    """Which layers are bridged, and how."""

    target_layers: list[int | float | str] = ["n-4"]
    """The target's layers that each block of a donor with another number of blocks is bridged to."""
    kinds: list[Literal["orthogonal", "similarity", "affine", "ridge", "low_rank"]] = ["orthogonal", "ridge"]
    """A rotation alone, or with scale and shift; least squares without penalty, with one, or of limited rank too."""
    strength: float = pydantic.Field(default=0.05, ge=0)
    """Ridge penalty, as a multiple of the mean variance of a donor channel."""
    rank: int = pydantic.Field(default=64, ge=1)
    """Of `low_rank`."""
    mixture: MixtureOf | None = None
    """None for no mixture."""
    held_out: float = pydantic.Field(default=0.25, gt=0, lt=1)
    """Share of the prompts and of the texts that bridges are judged on."""
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _something_to_fit(self):
        if not self.kinds and self.mixture is None:
            raise ValueError("no bridge is named; name a kind, or a mixture")
        return self


def layer_pairs(donor_blocks: int, target_blocks: int, target_layers: list[int | float | str]) -> list[tuple[int, int]]:
    """(donor layer, target layer): each with its like where the counts agree, else each with all of `target_layers`."""
    if donor_blocks == target_blocks:
        return [(layer, layer) for layer in range(target_blocks)]
    wanted = sorted({layer_index(spec, target_blocks) for spec in target_layers})
    return [(layer, onto) for layer in range(donor_blocks) for onto in wanted]


def sites_by_layer(activations: Activations) -> tuple[int, dict[int, str]]:
    """The number of the model's blocks, and the residual streams that a file holds, by layer."""
    sites = {int(layer_of(site) or 0): site for site in block_sites(activations)}
    return activations.blocks or max(sites) + 1, sites


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


def fitted(settings: Align, rows: Rows) -> dict[str, Affine | Mixture]:
    """The bridge of each kind that `settings` name, by name, in float32."""
    known = moments(rows)
    fits: dict[str, Callable[[], Affine]] = {
        "orthogonal": lambda: orthogonal(known),
        "similarity": lambda: orthogonal(known, centred=True, scaled=True),
        "affine": lambda: least_squares(known),
        "ridge": lambda: ridge(known, settings.strength),
        "low_rank": lambda: low_rank(known, settings.rank, settings.strength),
    }
    bridges: dict[str, Affine | Mixture] = {kind: fits[kind]().to(torch.float32) for kind in settings.kinds}
    if several := settings.mixture:
        made = mixture(
            rows, known, several.bridges, settings.strength, several.epochs, several.learning_rate, settings.seed
        )
        bridges["mixture"] = made.to(torch.float32)
    return dict(sorted(bridges.items()))


def align(
    settings: Align, target: Activations, donor: Activations
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Bridges as tensors `DONOR-TARGET.KIND.{weight,bias}`, and a row for each with its agreement on held-out rows.

    A bridge maps donor rows x to x W + b, with W [donor width, target width]; b of `orthogonal` is zero, its W at
    unequal widths semi-orthogonal. A `mixture` has a W and b for each of its bridges, [bridges, ...], and
    `gate_weight` G and `gate_bias` c: x goes to the mean of the bridges' results weighted by softmax(x G + c).
    `cosine`, `mse` and `r2` are of the bridged rows, those with `_before` of the donor's rows as they are, null where
    the widths differ; `best` marks the one row of highest R². Each prompt's first token and attention sinks are left
    out, both of fitting and of judging. Blocks that a file does not hold are left out, unless `target_layers` names
    them. States are read a few thousand rows at a time.
    Raises BadInput when the files are of different texts, lack blocks, or leave fewer than two rows to fit or judge.
    """
    pairing = paired(target, donor)
    judged = held_out(target.kinds, settings.held_out, settings.seed)[pairing.prompt]
    counts = {"rows_fit": int((~judged).sum()), "rows_held_out": int(judged.sum())}
    if min(counts.values()) < 2:
        raise BadInput(f"Expected two or more rows to fit and to judge bridges, got {counts}; capture more prompts.")
    (count, sites), (donor_count, donor_sites) = sites_by_layer(target), sites_by_layer(donor)
    wanted = layer_pairs(donor_count, count, settings.target_layers)
    if donor_count != count and (absent := sorted({onto for _, onto in wanted} - set(sites))):
        named = ", ".join(f"layers.{onto}" for onto in absent)
        raise BadInput(
            f"Expected the states of {named} in {target.path}, got none; add them to capture.sites or correct "
            "align.target_layers."
        )
    pairs = [(layer, onto) for layer, onto in wanted if layer in donor_sites and onto in sites]
    if not pairs:
        raise BadInput(
            f"Expected a block that both {target.path} and {donor.path} hold, got none; capture the same sites of both."
        )
    tensors: dict[str, torch.Tensor] = {}
    rows: list[dict[str, Any]] = []
    for layer, onto in pairs:
        states = donor.mapped(donor_sites[layer]), target.mapped(sites[onto])
        fit, held = (PairedRows(*states, pairing.donor[mask], pairing.target[mask]) for mask in (~judged, judged))
        bridges = fitted(settings, fit)
        plain = {"before": lambda x: x} if states[0].shape[1] == states[1].shape[1] else {}
        found = agreement(bridges | plain, held)
        for kind, bridge in bridges.items():
            for name, tensor in vars(bridge).items():
                tensors[f"{layer}-{onto}.{kind}.{name}"] = tensor.contiguous()
            row: dict[str, Any] = {"donor_layer": layer, "target_layer": onto, "kind": kind} | counts
            for figure in ("cosine", "mse", "r2"):
                row[f"{figure}_before"] = getattr(found.get("before"), figure, None)
                row[figure] = getattr(found[kind], figure)
            rows.append(row)
    best = max(rows, key=lambda row: row["r2"])
    return tensors, [row | {"best": row is best} for row in rows]


def main(
    target: Path, donor: Path, out: Path, params: Path = Path("params.yaml"),
    target_model: Path | None = None, donor_model: Path | None = None,
) -> None:  # fmt: skip
    """Fit and judge bridges between captured states, as params.yaml says under `align`.

    The models' directories are given to check that the states are theirs.
    """
    settings, files = read(params, "align", Align), (Activations(target), Activations(donor))
    for file, model in zip(files, (target_model, donor_model), strict=True):
        if model is not None:
            file.check_model(model)
    tensors, rows = align(settings, *files)
    with new_directory(out) as scratch:
        save_file(tensors, scratch / "bridges.safetensors")
        write_json(scratch / "alignment.json", rows)
    best = next(row for row in rows if row["best"])
    where = f"{best['kind']} {best['donor_layer']} → {best['target_layer']}"
    print(f"{len(rows)} bridges; best {where}, R² {best['r2']:.3f} on held-out rows")


if __name__ == "__main__":
    run(main)
