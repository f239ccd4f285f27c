"""Gates and bridges of an injected variant, trained on kept states, and the condition on which its donor runs."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.blades import asked, keep, learning, told
from stages.command import run
from stages.conditions import evidence, fit
from stages.errors import BadInput
from stages.graft.condition import Condition
from stages.recipes.blade import BladeRecipe, parts
from stages.settings import read
from stages.storage import new_directory, write_json
from stages.training import train


def main(variant: str, target: Path, donor: Path, capability: Path, text: Path, out: Path,
         params: Path = Path("params.yaml"), section: str = "inject", calibration: Path | None = None,
         ) -> None:  # fmt: skip
    """Train the gates and bridges of the variant that params.yaml describes under `section`.

    A condition is fitted on the same prompts and texts, and its threshold on the prompts of `calibration`.
    """
    recipe = read(params, f"{section}.{variant}", BladeRecipe)
    if recipe.condition is not None and calibration is None:
        raise BadInput(f"Expected calibration prompts for the condition of {section}.{variant}, got none; "
                       "set --calibration, or move the variant to the section `blades`.")  # fmt: skip
    curve, learned, found = [], {}, {}
    if recipe.training is not None:
        made = parts(recipe, target, donor)
        prompts = asked(made.tokenizer, capability, recipe.training.prompts)
        items, texts = keep(made, prompts, predictions=False), keep(made, told(made.tokenizer, text), predictions=True)
        curve = train(learning(made), recipe.training, items, texts)
        if recipe.condition is not None and calibration is not None:
            condition = next(part for part in made.parts if isinstance(part, Condition))
            seen = evidence(made, [*items, *texts], recipe.condition.opens)
            held = evidence(
                made, keep(made, asked(made.tokenizer, calibration), predictions=False), recipe.condition.opens
            )
            found = {"condition": fit(condition, seen, held, recipe.condition.recall)}
            print("condition:", ", ".join(f"{name} {value}" for name, value in found["condition"].items()), flush=True)
        learned = {n: v.to(torch.bfloat16).contiguous().cpu() for n, v in made.parts.state_dict().items()}
    with new_directory(out) as directory:
        save_file(learned, directory / "gate.safetensors")
        write_json(directory / "training.json", {"curve": curve, "recipe": recipe.model_dump(), **found})


if __name__ == "__main__":
    run(main)
