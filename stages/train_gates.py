"""Gates and bridges of an injected variant, trained on kept states, and the condition on which its donor runs."""

from pathlib import Path

import torch

from stages.blades import keep, learning
from stages.command import run
from stages.conditions import evidence, fit
from stages.errors import BadInput
from stages.graft.blade import Injection
from stages.graft.condition import Condition
from stages.kept import asked, told
from stages.making import write_making
from stages.offline import start
from stages.recipes.blade import BladeRecipe, Parts, parts
from stages.settings import read
from stages.storage import new_directory, write_json
from stages.trained import write_trained
from stages.training import Kept, account, train


def begun(parts: Parts, kept: list[Kept], seed: int) -> dict[str, float | None]:
    """Starts the one bridge from a fit to the kept states; gives how good the fit is on some that were held out.

    The first token of a text is left out, since its state is a sink of attention. The gate begins nearly shut: a fitted
    bridge moves the states far from the first step on, and the divergence would close the gate for good. Raises
    BadInput for several layers.
    """
    injections = [part for part in parts.parts if isinstance(part, Injection)]
    if len(injections) != 1:
        raise BadInput(f"Expected one layer for a fitted start, got {len(injections)}; set start: drawn.")
    injections[0].gate.shut()
    pairs = [(k.read[0][0][1:][k.known[0][1:]], k.h[1:][k.known[0][1:]]) for k in kept]
    return start(injections[0].bridge, pairs, seed)


def main(variant: str, target: Path, donor: Path, capability: Path, text: Path, out: Path,
         params: Path = Path("params.yaml"), section: str = "inject", calibration: Path | None = None,
         making: Path | None = None) -> None:  # fmt: skip
    """Train the gates and bridges of the variant that params.yaml describes under `section`.

    A condition is fitted on the same prompts and texts, and its threshold on the prompts of `calibration`. `making`
    receives what training showed.
    """
    recipe = read(params, f"{section}.{variant}", BladeRecipe)
    if recipe.condition is not None and calibration is None:
        raise BadInput(f"Expected calibration prompts for the condition of {section}.{variant}, got none; "
                       "set --calibration, or move the variant to the section `blades`.")  # fmt: skip
    curve, learned, found, figures = [], {}, {}, {}
    made = parts(recipe, target, donor) if recipe.training is not None or making is not None else None
    if made is not None and recipe.training is not None:
        prompts = asked(made.tokenizer, capability, recipe.training.prompts)
        items, texts = keep(made, prompts, predictions=False), keep(made, told(made.tokenizer, text), predictions=True)
        if recipe.start == "fitted":
            figures = begun(made, [*items, *texts], recipe.training.seed)
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
        write_trained(directory / "gate.safetensors", learned, target, donor)
        write_json(directory / "training.json", {"curve": curve, "recipe": recipe.model_dump(), **found})
    if made is not None and making is not None:
        moved = sum(p.numel() for each in made.readings for p in each.donor.parameters())
        added = sum(p.numel() for p in made.parts.parameters())
        ended, lines = account(curve)
        figures |= ended | found.get("condition", {})
        write_making(making, section, [recipe.donor], recipe, moved, moved + added, figures, lines)


if __name__ == "__main__":
    run(main)
