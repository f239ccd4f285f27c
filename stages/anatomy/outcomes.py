"""What a model makes of answers and texts, with logits computed only where they are read."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.head import logits_of
from stages.anatomy.hooks import reading
from stages.anatomy.likelihood import Encoded, batches, pad
from stages.anatomy.restart import resumed

_ROWS = 128  # positions whose logits are held at a time: some 25 MB, which the allocator keeps for the next


@dataclass(frozen=True)
class Batch:
    """Items that one forward pass reads, and the positions whose next-token distribution is of interest."""

    ids: torch.Tensor
    """[batch, tokens], padded on the right"""
    row: torch.Tensor
    """[positions]"""
    column: torch.Tensor
    """[positions]"""
    item: torch.Tensor
    """[positions], the index of the prompt or text"""
    following: torch.Tensor
    """[positions], the token that follows in the item"""


def answers_of(encoded: Sequence[Encoded], budget: int) -> list[Batch]:
    """Capability items in batches of at most `budget` padded tokens; every token of an answer is read."""
    return _batched([e.ids[:-1] for e in encoded], [e.start - 1 for e in encoded], [e.ids[1:] for e in encoded], budget)


def texts_of(sequences: Sequence[Sequence[int]], budget: int) -> list[Batch]:
    """Texts of two or more tokens in batches of at most `budget` padded tokens; every token but the first is read."""
    return _batched([ids[:-1] for ids in sequences], [0] * len(sequences), [ids[1:] for ids in sequences], budget)


def _batched(
    inputs: Sequence[Sequence[int]], starts: Sequence[int], following: Sequence[Sequence[int]], budget: int
) -> list[Batch]:
    made = []
    for group in batches([len(ids) for ids in inputs], budget):
        places = [(row, column, i) for row, i in enumerate(group) for column in range(starts[i], len(inputs[i]))]
        row, column, item = torch.tensor(places).T
        tokens = torch.tensor([following[i][c] for _, c, i in places])
        made.append(Batch(pad([inputs[i] for i in group]), row, column, item, tokens))
    return made


@dataclass(frozen=True)
class Outcome:
    """What a model does on all items."""

    loglikelihood: torch.Tensor
    """[prompts], of the answer, natural logarithm"""
    match: torch.Tensor
    """[prompts], 1 where greedy decoding gives exactly the answer, else 0"""
    divergence: torch.Tensor
    """[texts], KL from the target's next-token distribution, summed over tokens, nats"""


class Judge:
    """Measures models on the same answers and texts; the target's distributions on the texts are computed once."""

    @torch.inference_mode()
    def __init__(self, target: PreTrainedModel, answers: list[Batch], texts: list[Batch]) -> None:
        self.batches = [*answers, *texts]
        self._answers = len(answers)
        self._answer_item, self._text_item = (torch.cat([b.item for b in each]) for each in (answers, texts))
        self.tokens = self._text_item.bincount()
        """[texts], positions read of each"""
        self._following = torch.cat([batch.following for batch in answers])
        told = self._states_read(target, None, None)[1]
        self._probabilities = [logits.softmax(-1) for logits in _in_parts(target, told)]
        self._entropy = torch.cat([torch.special.entr(part).sum(-1) for part in self._probabilities])

    @torch.inference_mode()
    def outcome(
        self, model: PreTrainedModel, layer: int | None = None, states: Sequence[torch.Tensor] | None = None
    ) -> Outcome:
        """What `model` does; with `states` (a tensor a batch) leaving block `layer`, only later blocks run."""
        answered, told = self._states_read(model, layer, states)
        loglikelihood, right, crossed = [], [], []
        following = self._following.to(answered.device).split(_ROWS)
        for logits, tokens in zip(_in_parts(model, answered), following, strict=True):
            loglikelihood.append(logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1))
            right.append(logits.argmax(-1) == tokens)
        for logits, probabilities in zip(_in_parts(model, told), self._probabilities, strict=True):
            crossed.append(logits.logsumexp(-1) - torch.linalg.vecdot(probabilities, logits))
        divergence = (torch.cat(crossed) - self._entropy).clamp(min=0)  # below 0 by rounding alone
        wrong = _sums(~torch.cat(right), self._answer_item)
        return Outcome(
            _sums(torch.cat(loglikelihood), self._answer_item),
            (wrong == 0).double(),
            _sums(divergence, self._text_item),
        )

    @torch.inference_mode()
    def states(self, model: PreTrainedModel) -> list[list[torch.Tensor]]:
        """[layer][batch] → the states [batch, tokens, width] that leave each block of an untouched model."""
        sites = [f"layers.{layer}" for layer in range(len(blocks(model)))]
        kept = []
        for batch in self.batches:
            with reading(model, sites) as states:
                model.base_model(input_ids=batch.ids.to(model.device), use_cache=False)
            kept.append(states)
        return [[states[site] for states in kept] for site in sites]

    def _states_read(
        self, model: PreTrainedModel, layer: int | None, states: Sequence[torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Final states at the positions that are read, [positions, width]: of answers, of texts."""
        read = []
        for i, batch in enumerate(self.batches):
            with contextlib.nullcontext() if layer is None or states is None else resumed(model, layer, states[i]):
                final = model.base_model(input_ids=batch.ids.to(model.device), use_cache=False).last_hidden_state
            read.append(final[batch.row, batch.column])
        return torch.cat(read[: self._answers]), torch.cat(read[self._answers :])


def _in_parts(model: PreTrainedModel, states: torch.Tensor) -> Iterator[torch.Tensor]:
    return (logits_of(model, part).float() for part in states.split(_ROWS))


def _sums(values: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Sums over each item's positions."""
    return torch.zeros(int(item.max()) + 1, dtype=torch.float64).index_add_(0, item, values.double().cpu())
