"""A graft of the target on itself: perturbed views of it in one batch, reconciled at every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import Batch, answers_of, encode, texts_of
from stages.anatomy.head import logits_at
from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.graft.debate import DebateConfig, DebateForCausalLM
from stages.items import PROMPT, TEXT, read_items
from stages.making import Curve, curve, write_making
from stages.reading import around
from stages.recipes.debate import DebateRecipe, Lessons
from stages.saving import save
from stages.settings import read
from stages.storage import new_directory

_BUDGET = 256
"""Tokens a pass, each of which every view reads."""


def debating(recipe: DebateRecipe, target: PreTrainedModel) -> DebateForCausalLM:
    """`target` with the recipe's views, its weights not copied; a gate weighs them alike.

    Raises BadInput for a layer that the target lacks.
    """
    views = [view.resolved(len(blocks(target))) for view in recipe.views]
    config = DebateConfig(views=views, reconcile=recipe.reconcile, **around(target))
    with no_init_weights(), torch.device("meta"):
        model = DebateForCausalLM(config)
    model.target = target
    model.reconcile = type(model.reconcile)(recipe.reconcile, model.reconcile.temperatures).to(target.device)
    model.generation_config = target.generation_config
    return model.eval()


@dataclass(frozen=True)
class Heard:
    """What each view, and the target itself, predicts at some positions."""

    views: torch.Tensor
    """[views, positions, vocabulary], logits in half precision, as there are many"""
    target: torch.Tensor
    """[positions, vocabulary], likewise"""
    following: torch.Tensor
    """[positions], the token that comes"""


@torch.no_grad()
def hear(model: DebateForCausalLM, batches: Sequence[Batch]) -> Heard:
    """Runs debate and target once over `batches`."""
    said: list[torch.Tensor] = []
    alone: list[torch.Tensor] = []
    handle = model.reconcile.register_forward_pre_hook(lambda _, args: said.append(args[0][0].half()))
    try:
        for batch in batches:
            logits_at(model, batch.ids, batch.row, batch.column)
            alone.append(logits_at(model.target, batch.ids, batch.row, batch.column).half())
    finally:
        handle.remove()
    following = torch.cat([batch.following for batch in batches]).to(said[0].device)
    return Heard(torch.cat(said, dim=1), torch.cat(alone), following)


def losses(model: DebateForCausalLM, heard: Heard, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of what follows, and KL(target ‖ debate), at `rows` of the positions, nats a token."""
    own = model.reconcile(heard.views[None, :, rows].float())[0].log_softmax(-1)
    reference = heard.target[rows].float().log_softmax(-1)
    return cross_entropy(own, heard.following[rows]), kl_div(own, reference, log_target=True, reduction="batchmean")


def train(model: DebateForCausalLM, lessons: Lessons, answers: Heard, texts: Heard) -> list[tuple[float, float]]:
    """Trains the gate in place by Adam; the loss's two parts a step.

    Loss: cross-entropy of answers' tokens + divergence · KL(target ‖ debate) on texts, at positions drawn alike.
    """
    generator = torch.Generator().manual_seed(lessons.seed)
    optimizer = torch.optim.Adam(model.reconcile.parameters(), lr=lessons.learning_rate)
    points = []
    for _ in range(lessons.steps):
        rows = [torch.randint(len(each.following), (lessons.batch,), generator=generator) for each in (answers, texts)]
        right, moved = losses(model, answers, rows[0])[0], losses(model, texts, rows[1])[1]
        optimizer.zero_grad(set_to_none=True)
        (right + lessons.divergence * moved).backward()
        optimizer.step()
        points.append((right.item(), moved.item()))
    return points


@torch.no_grad()
def figures(model: DebateForCausalLM, answers: Heard, texts: Heard) -> dict[str, float | None]:
    """How the views differ, whom the debate follows, and what comes of it where answers and texts are predicted."""
    right, moved, weights = 0.0, 0.0, torch.zeros(len(answers.views))
    for rows in torch.arange(len(answers.following)).split(64):
        right += losses(model, answers, rows)[0].item() * len(rows)
        logprobs = torch.stack([
            (z / heat).log_softmax(-1)
            for z, heat in zip(answers.views[:, rows].float(), model.reconcile.temperatures, strict=True)
        ])  # fmt: skip
        weights += model.reconcile.weights(logprobs[None])[0].sum(1).cpu()
    for rows in torch.arange(len(texts.following)).split(64):
        moved += losses(model, texts, rows)[1].item() * len(rows)
    first = answers.views.argmax(-1)
    alone = cross_entropy(answers.target.float(), answers.following)
    return {
        "answer_positions": len(answers.following),
        "text_positions": len(texts.following),
        "views_disagree_at_answers": (first != first[:1]).any(0).float().mean().item(),
        "views_disagree_in_text": (texts.views.argmax(-1) != texts.views.argmax(-1)[:1]).any(0).float().mean().item(),
        "cross_entropy_before": alone.item(),
        "cross_entropy": right / len(answers.following),
        "kl": moved / len(texts.following),
        **{f"weight_of_view_{n}": w for n, w in enumerate((weights / len(answers.following)).tolist())},
    }


def batches(
    recipe: DebateRecipe, tokenizer: PreTrainedTokenizerBase, capability: Path, text: Path
) -> tuple[list[Batch], list[Batch]]:
    """The answers and the texts that the views are compared on."""
    rows = read_items(capability, PROMPT, recipe.prompts)
    told = read_items(text, TEXT, recipe.texts)
    encoded = encode(tokenizer, [(row["prompt"], row["answer"]) for row in rows])
    return answers_of(encoded, _BUDGET), texts_of([tokenizer(row["text"]).input_ids for row in told], _BUDGET)


def main(
    variant: str, target: Path, capability: Path, text: Path, out: Path, making: Path,
    params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Build the debate of the variant that params.yaml describes under `debate`."""
    recipe = read(params, f"debate.{variant}", DebateRecipe)
    model, tokenizer = debating(recipe, load(target)), load_tokenizer(target)
    answers, texts = (hear(model, each) for each in batches(recipe, tokenizer, capability, text))
    curves: dict[str, Curve] = {}
    if recipe.training is not None:
        points = train(model, recipe.training, answers, texts)
        for place, label in enumerate(("cross-entropy of answers", "KL to the target on text")):
            curves[f"gate in training, {label}"] = curve(
                "step", "nats a token", [(step, each[place]) for step, each in enumerate(points)]
            )
    told = figures(model, answers, texts)
    with new_directory(out) as directory:
        save(model, tokenizer, directory)
    added = sum(parameter.numel() for parameter in model.reconcile.parameters())
    write_making(making, "debate", [], recipe, 0, added, told, curves)
    print(", ".join(f"{name} {value:.4g}" for name, value in told.items() if value is not None))


if __name__ == "__main__":
    run(main)
