"""A bank of a model's components: heads, attention, MLPs, experts, blocks, norms, embeddings."""

from pathlib import Path

import torch

from stages.anatomy.components import components
from stages.anatomy.loading import load, load_config, load_tokenizer
from stages.anatomy.names import matching
from stages.bank import deposit, geometry
from stages.command import run
from stages.recipes.bank import BankRecipe
from stages.settings import read
from stages.storage import new_directory


def main(bank: str, donor: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Make the bank that params.yaml describes under `bank`, in the precision that the donor is kept in."""
    recipe = read(params, f"bank.{bank}", BankRecipe)
    kept = load_config(donor).dtype
    model = load(donor, kept if isinstance(kept, torch.dtype) else torch.float32, device="cpu")
    sites = matching(recipe.sites, components(model))
    about = {"donor": recipe.donor, "geometry": geometry(model, load_tokenizer(donor))}
    with new_directory(out) as directory:
        catalog = deposit(model, sites, about, directory)
    print(f"{len(sites)} components, {sum(row['parameters'] for row in catalog['components'])} parameters")


if __name__ == "__main__":
    run(main)
