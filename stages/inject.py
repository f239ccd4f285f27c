"""A blade and its trained gate in one model directory that anyone can load."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from stages.assembly import write_graft
from stages.command import run
from stages.errors import BadInput
from stages.recipes.blade import BladeRecipe, Parts, parts
from stages.settings import read


def inject(made: Parts, gate: Path, out: Path) -> None:
    """Writes the graft `out`.

    Raises BadInput when the gate was trained for another recipe.
    """
    try:
        made.parts.load_state_dict(load_file(gate))
    except RuntimeError as error:
        raise BadInput(f"{gate} does not hold this recipe's gate and bridge; run `dvc repro` to train them.") from error
    write_graft(made.target, made.tokenizer, made.readings, list(zip(made.parts, made.specs, strict=True)), out)


def main(variant: str, target: Path, donor: Path, gate: Path, out: Path, params: Path = Path("params.yaml"),
         section: str = "inject") -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `section`."""
    recipe = read(params, f"{section}.{variant}", BladeRecipe)
    inject(parts(recipe, target, donor, torch.bfloat16), gate, out)


if __name__ == "__main__":
    run(main)
