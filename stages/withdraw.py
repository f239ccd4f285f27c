"""A graft with parts taken from a bank, without the model that they came from."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks
from stages.anatomy.components import components, sharing
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.names import layer_index, layer_of, matching
from stages.bank import check_fits, geometry, read_catalog, withdrawn
from stages.command import run
from stages.errors import BadInput
from stages.making import write_making
from stages.recipes.bank import WithdrawRecipe
from stages.saving import save
from stages.settings import read
from stages.storage import new_directory


def places(recipe: WithdrawRecipe, catalog: dict[str, Any], count: int) -> dict[str, str]:
    """The target's site, in a model of `count` blocks, for each component that is taken from the bank.

    Raises BadInput for a pattern that means none, for components inside others, for one layer as the place of several,
    and where there is nothing to shuffle.
    """
    rows = {row["site"]: row for row in catalog["components"]}
    sites = list(rows) if recipe.sites == ("*",) else matching(recipe.sites, rows)
    for site in sites:
        if outer := next((each for each in sites if site.startswith(f"{each}.")), None):
            raise BadInput(f"Expected components beside each other, got {site}, which is inside {outer}; name one.")
    onto = {site: site for site in sites}
    if recipe.layer is not None:
        layers = {layer_of(site) for site in sites}
        if len(layers) != 1 or None in layers:
            raise BadInput(
                f"Expected components of one block to put into layer {recipe.layer}, got {', '.join(sites)}."
            )
        old, new = f"layers.{layers.pop()}", f"layers.{layer_index(recipe.layer, count)}"
        onto = {site: new + site.removeprefix(old) for site in sites}
    if not recipe.shuffled:
        return onto
    like: dict[str, list[str]] = {}
    for site in sites:
        like.setdefault(f"{rows[site]['kind']} {rows[site]['shapes']}", []).append(site)
    alone = next((group[0] for group in like.values() if len(group) == 1), None)
    if alone is not None:
        raise BadInput(f"Expected two or more components of a kind to shuffle, got {alone} alone; take more of them.")
    return {site: onto[group[n - 1]] for group in like.values() for n, site in enumerate(group)}


@torch.no_grad()
def withdraw(
    recipe: WithdrawRecipe, bank: Path, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """Moves the target's components toward the bank's, in place; gives counts of what was moved.

    All are moved from where the target was, so that key and value rows which several heads share are moved once.
    Raises BadInput before anything is changed where a component does not fit.
    """
    catalog, known, ours = read_catalog(bank), components(target), geometry(target, tokenizer)
    rows = {row["site"]: row for row in catalog["components"]}
    onto = places(recipe, catalog, len(blocks(target)))
    for source, site in onto.items():
        check_fits(rows[source], site, known.get(site), catalog, ours)
    moved: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
    for source, site in onto.items():
        for name, given in withdrawn(bank, rows[source]).items():
            piece = known[site][name]
            new = piece.view.lerp(given.to(piece.view), recipe.strength)
            moved[id(piece.parameter), str(piece.index)] = piece.view, new
    for view, new in moved.values():
        view.copy_(new)
    counts = Counter(rows[source]["kind"] for source in onto)
    heads = {site for source, site in onto.items() if rows[source]["kind"] == "head"}
    return {
        "components": len(onto),
        "parameters": sum(view.numel() for view, _ in moved.values()),
        "heads_sharing": sharing(target, heads),
    } | {f"components_{kind}": count for kind, count in sorted(counts.items())}


def main(variant: str, target: Path, bank: Path, out: Path, making: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `withdraw`."""
    recipe = read(params, f"withdraw.{variant}", WithdrawRecipe)
    receiving, tokenizer = load(target, device="cpu"), load_tokenizer(target)
    figures = withdraw(recipe, bank, receiving, tokenizer)
    with new_directory(out) as directory:
        save(receiving, tokenizer, directory)
    moved = figures.pop("parameters")
    write_making(making, "withdraw", [read_catalog(bank)["donor"]], recipe, moved, 0, figures)
    print(f"{figures['components']} components, {moved} parameters from the bank {recipe.bank}")


if __name__ == "__main__":
    run(main)
