"""A blade and its trained gate in one model directory that anyone can load."""

from collections.abc import Sequence
from pathlib import Path

import torch

from stages.assembly import write_graft
from stages.command import run
from stages.errors import BadInput
from stages.recipes.blade import BladeRecipe, Parts, parts
from stages.settings import read
from stages.trained import read_trained


def inject(made: Parts, gate: Path, out: Path, models: Sequence[Path] = ()) -> None:
    """Writes the graft `out`; `models` are the directories of target and donor, where the gate is to be of these.

    Raises BadInput when the gate is damaged, or was trained for another recipe or between other models.
    """
    learned = read_trained(gate, models)
    try:
        made.parts.load_state_dict(learned)
    except RuntimeError as error:
        raise BadInput(f"{gate} does not hold this recipe's gate and bridge; run `dvc repro` to train them.") from error
    write_graft(made.target, made.tokenizer, made.readings, list(zip(made.parts, made.specs, strict=True)), out)


def main(variant: str, target: Path, donor: Path, gate: Path, out: Path, params: Path = Path("params.yaml"),
         section: str = "inject") -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `section`."""
    recipe = read(params, f"{section}.{variant}", BladeRecipe)
    inject(parts(recipe, target, donor, torch.bfloat16), gate, out, (target, donor))


if __name__ == "__main__":
    run(main)
