"""A graft made of the target and low-rank changes of its linear modules, fused in, with the adapter beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from transformers import PreTrainedModel

from stages.anatomy.adapters import fuse, read_adapter, weight_of, write_adapter
from stages.anatomy.blocks import linear_modules
from stages.anatomy.loading import load, load_tokenizer
from stages.bridging import carried, summary
from stages.command import run
from stages.errors import BadInput
from stages.items import TEXT, read_items
from stages.making import curve, write_making
from stages.maths.lowrank import LowRank, drawn_like, factored, total
from stages.moves import Moves
from stages.recipes.adapter import AdapterRecipe
from stages.saving import save
from stages.settings import read
from stages.storage import new_directory


@dataclass(frozen=True)
class Found:
    """The changes of a variant by module, and what finding them told."""

    changes: Mapping[str, LowRank]
    figures: Mapping[str, float | None]
    spectrum: list[float]
    """Share of the squared entries that the leading ranks hold, 1 rank, 2 ranks and so on, all modules together."""


def difference(target: PreTrainedModel, donor: PreTrainedModel, rank: int) -> tuple[dict[str, LowRank], float, float]:
    """The nearest changes of `rank` from target to donor, and the squared entries of what they hold and of all in which
    the two differ, embeddings, norms and fused experts included, which no adapter of linear modules holds.

    Raises BadInput when the two are not of one shape or do not differ in any linear module.
    """
    ours, theirs = dict(target.named_parameters()), dict(donor.named_parameters())
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise BadInput(
            "Expected a donor with the target's weights, name by name and shape by shape, got others; take its adapter "
            "and source: bridge, or a blade with a bridge."
        )
    whole = sum(float((theirs[name].double() - p.double()).square().sum()) for name, p in ours.items())
    found = {}
    for name, module in linear_modules(target).items():
        change = weight_of(donor.get_submodule(name)) - weight_of(module)
        if change.any():
            found[name] = factored(change, rank)
    if not found:
        raise BadInput(
            "Expected a donor that differs from the target in some linear module, got the same; name another."
        )
    return found, sum(change.energy for change in found.values()), whole


@dataclass(frozen=True)
class Places:
    """Where a variant's inputs lie."""

    target: Path
    models: Path
    """The models' directories, by name."""
    donors: Path
    """The adapters' directories, by name."""
    text: Path
    """What bridges are fitted on."""


def of_donor(
    recipe: AdapterRecipe, name: str, target: PreTrainedModel, places: Places
) -> tuple[Mapping[str, LowRank], dict[str, float | None]]:
    """One donor's changes of `target` at strength 1, and what finding them told."""
    if recipe.rank is not None and recipe.source == "difference":
        changes, kept, whole = difference(target, load(places.models / name, device="cpu"), recipe.rank)
        return changes, {f"explained_energy_{name}": kept / whole}
    if recipe.base is None:
        return read_adapter(places.donors / name, target), {}
    base = load(places.models / recipe.base, device="cpu")
    tokenizers = load_tokenizer(places.target), load_tokenizer(places.models / recipe.base)
    texts = [row["text"] for row in read_items(places.text, TEXT, recipe.texts)]
    moved = carried(read_adapter(places.donors / name, base), target, base, tokenizers, texts, recipe.strength)
    sides = (("into", moved.into), ("out", moved.out))
    return moved.changes, {f"{side}_r2_{kind}_{name}": v for side, told in sides for kind, v in summary(told)}


def find(recipe: AdapterRecipe, target: PreTrainedModel, places: Places) -> Found:
    """The variant's changes: each donor's, strengthened, added up, cut to the rank; or drawn anew as long as those."""
    every: list[Mapping[str, LowRank]] = []
    figures: dict[str, float | None] = {}
    for name, strength in recipe.donors.items():
        changes, told = of_donor(recipe, name, target, places)
        figures |= told
        every.append({path: change.scaled(strength) for path, change in changes.items()})
    paths = [path for path, _ in target.named_modules() if any(path in changes for changes in every)]
    added = {path: total([changes[path] for changes in every if path in changes]) for path in paths}
    before = sum(change.energy for change in added.values())
    if recipe.rank is not None:
        added = {path: change.truncated(recipe.rank) for path, change in added.items()}
    if recipe.random:
        generator = torch.Generator().manual_seed(recipe.seed)
        added = {path: drawn_like(change, generator) for path, change in added.items()}
    after = sum(change.energy for change in added.values())
    figures |= {"modules": len(added), "rank": fmean(change.rank for change in added.values()), "length": after**0.5,
                "kept_energy": after / before if before else None}  # fmt: skip
    return Found(added, figures, spectrum(added))


def spectrum(changes: Mapping[str, LowRank]) -> list[float]:
    """`Found.spectrum`; empty where nothing is changed."""
    squares = [change.singular()[1].square() for change in changes.values()]
    width = max(map(len, squares))
    by_rank = torch.stack([torch.nn.functional.pad(each, (0, width - len(each))) for each in squares]).sum(0)
    whole = float(by_rank.sum())
    return (by_rank.cumsum(0) / whole).tolist() if whole else []


def adapt(found: Found, target: PreTrainedModel, directory: Path, out: Path) -> Moves:
    """Writes the graft `out`: the target with the changes fused in float32 and rounded once, and the same changes as a
    PEFT adapter of the target in `out/adapter`."""
    moves = Moves()
    starts = {name: target.get_parameter(f"{name}.weight").clone() for name in found.changes}
    fuse(target, found.changes)
    for name, parameter in target.named_parameters():
        start = starts.pop(name.removesuffix(".weight"), parameter)
        moves.note(name, start.to(torch.bfloat16), parameter.to(torch.bfloat16))
    with new_directory(out) as scratch:
        write_adapter(scratch / "adapter", found.changes, target)
        save(target, load_tokenizer(directory), scratch)
    return moves


def main(
    variant: str, target: Path, models: Path, donors: Path, text: Path, out: Path, making: Path,
    params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `adapt`."""
    recipe = read(params, f"adapt.{variant}", AdapterRecipe)
    receiving = load(target, device="cpu")
    found = find(recipe, receiving, Places(target, models, donors, text))
    moves = adapt(found, receiving, target, out)
    points = [(float(rank), share) for rank, share in enumerate(found.spectrum, start=1)]
    lines = {**moves.curves, "Squared change held by the leading ranks": curve("ranks", "share", points)}
    figures = {**moves.figures, **found.figures}
    write_making(making, "adapt", list(recipe.donors), recipe, moves.moved, 0, figures, lines)
    print(f"{len(found.changes)} modules changed, {moves.moved:,} parameters moved")


if __name__ == "__main__":
    run(main)
