"""A graft made of weights alone: the target's directory, with the donor's weights mixed into the chosen modules."""

from pathlib import Path

import pandas as pd
import torch

from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.strengths import Mixture
from stages.command import run
from stages.recipes.weights import WeightsRecipe, chosen
from stages.settings import read
from stages.storage import new_directory, read_json, write_json
from stages.tables import read_table


def main(
    variant: str, target: Path, donor: Path, selection: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    """Build the graft of the variant that params.yaml describes under `transplant`.

    Linear modules, norms and experts inside the blocks can be taken over; embeddings, the last norm and the head stay
    the target's.
    """
    recipe = read(params, f"transplant.{variant}", WeightsRecipe)
    receiving = load(target, device="cpu")
    named = recipe.select == "modules"
    channels = None if named else read_json(selection / "descent.json")["channels"]
    mixture = Mixture(receiving, load(donor, device="cpu"), channels)
    sizes = dict(zip(mixture.names, mixture.sizes.tolist(), strict=True))
    frontier = pd.DataFrame() if named else read_table(selection / "frontier.parquet")
    strengths = [] if named else read_json(selection / "strengths.json")
    taken, row = chosen(recipe, sizes, frontier, strengths)
    mixture.set(torch.tensor([taken.get(name, 0.0) for name in mixture.names]))
    with new_directory(out) as directory:
        receiving.to(torch.bfloat16).save_pretrained(directory)
        load_tokenizer(target).save_pretrained(directory)
        write_json(directory / "transplant.json", {"donor": recipe.donor, "strengths": taken, "point": row})
    print(f"{len(taken)} of {len(sizes)} parts at a mean strength of {sum(taken.values()) / max(1, len(taken)):.2f}")


if __name__ == "__main__":
    run(main)
