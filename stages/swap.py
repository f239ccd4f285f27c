"""A mixture with experts of a donor's in place of some of its own: a plain model directory."""

from pathlib import Path

from transformers import PreTrainedModel

from stages.anatomy.experts import check, implanted
from stages.anatomy.likelihood import Read, Reference, read, score
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.routing import routers_of
from stages.command import run
from stages.making import write_making
from stages.recipes.experts import ExpertsRecipe, given, places
from stages.recipes.router import Questions, questions
from stages.saving import save
from stages.settings import read as read_params
from stages.storage import new_directory


def told(
    model: PreTrainedModel, asked: dict[str, Questions], before: dict[str, list[Read]] | None = None
) -> tuple[dict[str, float], dict[str, list[Read]]]:
    """The share of right answers in each domain and, with what the model read `before`, its divergence from that."""
    figures, reads = {}, {}
    for name, each in asked.items():
        figures[f"right_{name}"] = float(score(model, each.encoded).greedy.float().mean())
        reference = None if before is None else Reference(model, [text.states for text in before[name]])
        reads[name] = read(model, each.whole, reference)
        if reference is not None:
            tokens = sum(text.tokens for text in reads[name])
            figures[f"divergence_{name}"] = sum((t.divergence or 0.0) * t.tokens for t in reads[name]) / tokens
    return figures, reads


def main(variant: str, target: Path, donor: Path, out: Path, making: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `swap`."""
    recipe = read_params(params, f"swap.{variant}", ExpertsRecipe)
    model, tokenizer = load(target, device="cpu"), load_tokenizer(target)
    routers_of(model)
    experts = given(places(recipe, model, tokenizer), load(donor, device="cpu"))
    check(model, experts)
    moved = sum(part.numel() for each in experts.values() for part in (each.gate, each.up, each.down))
    asked = {name: questions(tokenizer, name, "test", recipe.test) for name in recipe.domains}
    usual, before = told(model, asked)
    with implanted(model, experts):
        figures, _ = told(model, asked, before)
        figures |= {f"{name}_of_target": value for name, value in usual.items()}
        write_making(making, "swap", [recipe.donor], recipe, moved, 0, {**figures, "items": recipe.test})
        with new_directory(out) as directory:
            save(model, tokenizer, directory)


if __name__ == "__main__":
    run(main)
