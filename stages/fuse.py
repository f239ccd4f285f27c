"""Donors' modules and states fused at one block under shares that are trained on the union of tasks, in one graft."""

from pathlib import Path

from stages.assembly import write_graft
from stages.command import run
from stages.graft.implant import Implanted
from stages.kept import Site, trained
from stages.making import write_making
from stages.recipes.fusion import FusionRecipe, fused
from stages.recipes.implant import host
from stages.settings import read
from stages.training import account


def main(variant: str, target: Path, models: Path, prompts: Path, out: Path, making: Path,
         params: Path = Path("params.yaml")) -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `fuse`, from donors under `models`."""
    recipe = read(params, f"fuse.{variant}", FusionRecipe)
    into = host(target, recipe.layer)
    made = fused(recipe, {name: models / name for name in recipe.donors}, into)
    site = Site(into.model, into.layer, made.readings, made.part)
    tasks = [prompts / task / "train.jsonl" for task in recipe.tasks]
    steps = trained(site, into.tokenizer, tasks, prompts / "retention" / "train.jsonl", recipe.training)
    carried = [each.donor for each in made.readings]
    organs = [member.organ for member in made.part.members if isinstance(member, Implanted)]
    moved = sum(p.numel() for m in [*carried, *(organ.module() for organ in organs)] for p in m.parameters())
    added = sum(p.numel() for m in [*carried, made.part] for p in m.parameters())
    figures, lines = account(steps)
    figures["Parameters that learn"] = sum(p.numel() for p in made.part.parameters() if p.requires_grad)
    write_graft(into.model, into.tokenizer, made.readings, [(made.part, made.spec)], out)
    write_making(making, "fuse", recipe.donors, recipe, moved, added, figures, lines)


if __name__ == "__main__":
    run(main)
