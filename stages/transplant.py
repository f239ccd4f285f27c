"""A graft made of weights alone: the target's directory, with the donor's weights in the chosen blocks."""

from pathlib import Path

import pandas as pd
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.recipes.weights import WeightsRecipe, chosen, transplant
from stages.settings import read
from stages.storage import new_directory, write_json


def main(variant: str, target: Path, donor: Path, trace: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `transplant`."""
    recipe = read(params, f"transplant.{variant}", WeightsRecipe)
    receiving, giving = load(target, device="cpu"), load(donor, device="cpu")
    layers = chosen(recipe, len(blocks(receiving)), pd.read_parquet(trace))
    transplant(receiving, giving, layers, recipe.strength)
    with new_directory(out) as directory:
        receiving.to(torch.bfloat16).save_pretrained(directory)
        load_tokenizer(target).save_pretrained(directory)
        write_json(
            directory / "transplant.json", {"blocks": layers, "strength": recipe.strength, "donor": recipe.donor}
        )
    print(f"blocks {', '.join(map(str, layers))} at strength {recipe.strength}")


if __name__ == "__main__":
    run(main)
