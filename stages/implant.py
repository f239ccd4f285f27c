"""A donor's module built into the target between bridges that are trained on kept states, in one model directory."""

from pathlib import Path

from stages.assembly import write_graft
from stages.command import run
from stages.kept import Site, account, trained
from stages.making import write_making
from stages.recipes.implant import ImplantRecipe, host, implant
from stages.settings import read


def main(variant: str, target: Path, donor: Path, capability: Path, text: Path, out: Path, making: Path,
         params: Path = Path("params.yaml")) -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `implant`."""
    recipe = read(params, f"implant.{variant}", ImplantRecipe)
    into = host(target, recipe.layer)
    part, spec = implant(recipe, donor, into)
    steps = []
    if recipe.training is not None:
        site = Site(into.model, into.layer, (), part)
        steps = trained(site, into.tokenizer, [capability], text, recipe.training)
    moved = sum(p.numel() for p in part.implanted.organ.module().parameters())
    added = sum(p.numel() for p in part.parameters())
    figures, lines = account(steps)
    figures["Parameters that learn"] = sum(p.numel() for p in part.parameters() if p.requires_grad)
    write_graft(into.model, into.tokenizer, [], [(part, spec)], out)
    write_making(making, "implant", [recipe.donor], recipe, moved, added, figures, lines)


if __name__ == "__main__":
    run(main)
