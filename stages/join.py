"""Several trained blades in one model directory that anyone can load, under gates of their own or one that they share.

Each donor is carried whole up to its last block in use, also where donors are adapters on the target and repeat most
of its weights: `repeated_parameters` says how many.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from stages.assembly import write_graft
from stages.blades import keep, learning
from stages.command import run
from stages.kept import asked, told
from stages.making import curve, write_making
from stages.openings import openings
from stages.recipes.blade import Parts
from stages.recipes.together import TogetherRecipe, together
from stages.settings import read
from stages.training import Kept, train

READ = 64
"""Prompts of each domain on which the openings of gates that do not learn are read."""


def repeated(parts: Parts) -> int:
    """Parameters of the donors that stand in the target too, under the same name and with the same values."""
    own = dict(parts.target.base_model.named_parameters())
    return sum(
        value.numel()
        for each in parts.readings
        for name, value in each.donor.donor.named_parameters()
        if name in own and own[name].shape == value.shape and bool((own[name] == value).all())
    )


def opened(
    parts: Parts, owners: Sequence[int], recipe: TogetherRecipe, prompts: Sequence[Sequence[Kept]]
) -> dict[str, float]:
    """For each blade and folder of prompts, the mean over prompts of the farthest that the blade opens in one."""
    figures = {}
    for folder, kept in zip(recipe.prompts, prompts, strict=True):
        farthest = torch.stack([each.amax(dim=0) for each in openings(parts, kept)])  # [prompts, gates]
        for i, name in enumerate(Path(blade).name for blade in recipe.blades):
            mine = farthest[:, [gate for gate, owner in enumerate(owners) if owner == i]]
            figures[f"{name}_open_on_{folder}"] = mine.amax(dim=1).mean().item()
    return figures


def main(variant: str, target: Path, blade: list[Path], donor: list[Path], capability: list[Path], text: Path,
         out: Path, making: Path, params: Path = Path("params.yaml"), section: str = "together") -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `section`.

    `blade`, `donor` and `capability` are given once for each blade, in the recipe's order.
    """
    recipe = read(params, f"{section}.{variant}", TogetherRecipe)
    made, owners = together(recipe, target, donor, blade)
    count = recipe.training.prompts if recipe.training else READ
    prompts = [keep(made, asked(made.tokenizer, path, count), predictions=False) for path in capability]
    curves = {}
    if recipe.training is not None:
        items = [each for domain in prompts for each in domain]
        steps = train(learning(made), recipe.training, items, keep(made, told(made.tokenizer, text), predictions=True))
        curves = {
            title: curve("step", "nats a token", [(row["step"], row[key]) for row in steps])
            for title, key in (("Cross-entropy on answers", "cross_entropy"), ("Divergence on texts", "kl"))
        }
    figures: dict[str, float | None] = dict(opened(made, owners, recipe, prompts))
    figures["repeated_parameters"] = repeated(made)
    moved = sum(p.numel() for each in made.readings for p in each.donor.parameters())
    added = sum(p.numel() for p in made.parts.parameters())
    write_graft(made.target, made.tokenizer, made.readings, list(zip(made.parts, made.specs, strict=True)), out)
    write_making(making, "together", list(dict.fromkeys(recipe.donors)), recipe, moved, added, figures, curves)


if __name__ == "__main__":
    run(main)
