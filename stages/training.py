"""Parts of a graft trained from kept states: the loss, and the positions of texts that it looks at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div

from stages.making import Curve, curve
from stages.recipes.blade import Training


@dataclass(frozen=True)
class Kept:
    """A text to train on, and what the models made of it, without pads."""

    ids: tuple[int, ...]
    start: int
    """The first token that is predicted in training: an answer's, or a text's second."""
    final: torch.Tensor | None
    """[tokens, vocabulary], the target's log-probabilities in half precision, as there are many; for texts"""
    h: torch.Tensor
    """[tokens, width], leaving the target's block after which it is run anew"""
    read: tuple[tuple[torch.Tensor, ...], ...]
    """For each donor and each of its blocks that are taken, [tokens, donor width]"""
    known: tuple[torch.Tensor, ...]
    """For each donor, [tokens], where it has read something"""
    early: torch.Tensor | None
    """[tokens, width], leaving another block of the target; None where none was asked for"""


Predict = Callable[[Sequence[Kept], Training | None, torch.Generator | None], tuple[torch.Tensor, torch.Tensor]]
"""The graft's logits [positions, vocabulary] where it predicts tokens of the texts, at as many of these positions as
the training says, all without one; second, which these are, [positions], over all of the texts."""


@dataclass(frozen=True)
class Learning:
    """What learns, and the graft's logits with it as it is."""

    learned: torch.nn.Module
    predict: Predict


def stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Ragged tensors as one batch, padded on the right with zeros."""
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def places(examples: Sequence[Kept], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column [positions] where the tokens are predicted that training looks at."""
    found = [(row, column) for row, e in enumerate(examples) for column in range(e.start - 1, len(e.ids) - 1)]
    row, column = torch.tensor(found, device=device).T
    return row, column


def chosen(moved: torch.Tensor, training: Training | None, generator: torch.Generator | None) -> torch.Tensor:
    """The positions of a step: its share of those that `moved` [positions] the farthest, and others drawn."""
    if training is None or training.positions >= len(moved):
        return torch.arange(len(moved), device=moved.device)
    order = moved.argsort(descending=True)
    hardest = round(training.hardest * training.positions)
    most, others = order[:hardest], order[hardest:]
    drawn = torch.randperm(len(others), generator=generator)[: training.positions - hardest]
    return torch.cat([most, others[drawn.to(moved.device)]])


def train(learning: Learning, recipe: Training, items: Sequence[Kept], texts: Sequence[Kept]) -> list[dict[str, Any]]:
    """Trains what learns, in place, by Adam; gives the loss curve.

    Loss: cross-entropy of the answers' tokens + divergence · KL(target ‖ graft) at `positions` tokens of the texts, in
    nats a token; a text is drawn as often as it is long. Answers and texts pass apart, since texts are several times
    as long and would pad the answers.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.Adam([p for p in learning.learned.parameters() if p.requires_grad], lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    lengths = torch.tensor([float(len(k.ids)) for k in texts])
    curve = []
    for step in range(recipe.steps):
        asked = [items[i] for i in torch.randint(len(items), (recipe.batch,), generator=generator).tolist()]
        told = [texts[i] for i in torch.multinomial(lengths, recipe.texts, True, generator=generator).tolist()]
        answers = learning.predict(asked, None, None)[0]
        wanted = torch.tensor([i for k in asked for i in k.ids[k.start :]], device=answers.device)
        right = cross_entropy(answers, wanted)
        reference = torch.cat([k.final[k.start - 1 : -1] for k in told if k.final is not None])
        told_now, positions = learning.predict(told, recipe, generator)
        moved = kl_div(
            told_now.log_softmax(-1), reference[positions].to(told_now), log_target=True, reduction="batchmean"
        )
        optimizer.zero_grad(set_to_none=True)
        (right + recipe.divergence * moved).backward()
        optimizer.step()
        schedule.step()
        curve.append({"step": step, "cross_entropy": round(right.item(), 5), "kl": round(moved.item(), 5)})
        if step % 10 == 0 or step == recipe.steps - 1:
            print(f"step {step} of {recipe.steps}: cross-entropy {right:.4f}, KL {moved:.4f}", flush=True)
    return curve


def account(steps: Sequence[dict[str, Any]]) -> tuple[dict[str, float | None], dict[str, Curve]]:
    """Figures, of the last ten steps, and curves of a training for `data/making`; null and empty without one."""
    names = {"cross_entropy": "Cross-entropy of the answers", "kl": "KL(target ‖ graft) on texts"}
    last = steps[-10:]
    figures = {
        f"{name} at the end, nats a token": sum(row[key] for row in last) / len(last) if last else None
        for key, name in names.items()
    }
    lines = {
        name: curve("step", "nats a token", [(row["step"], row[key]) for row in steps]) for key, name in names.items()
    }
    return figures, lines if steps else {}
