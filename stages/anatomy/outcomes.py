"""What many versions of a model make of the same answers and texts, compared with one of them."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import Batch
from stages.anatomy.head import logits_at
from stages.anatomy.hooks import reading
from stages.anatomy.restart import resumed


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
        self.answers, self.texts = answers, texts
        self.batches = [*answers, *texts]
        self._answer_item, self._text_item = (_joined([b.item for b in each]) for each in (answers, texts))
        self.tokens = self._text_item.bincount()
        """[texts], positions read of each"""
        self._probabilities = [_logits(target, batch).softmax(-1) for batch in texts]
        self._entropy = [torch.special.entr(part).sum(-1) for part in self._probabilities]

    @torch.inference_mode()
    def outcome(
        self, model: PreTrainedModel, layer: int | None = None, states: Sequence[torch.Tensor] | None = None
    ) -> Outcome:
        """What `model` does; with `states` (a tensor a batch) leaving block `layer`, only later blocks run."""
        scores = []
        for i, batch in enumerate(self.batches):
            with contextlib.nullcontext() if layer is None or states is None else resumed(model, layer, states[i]):
                scores.append(self.score(i, _logits(model, batch)))
        return self.gathered(scores)

    def score(self, index: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of batch `index`, from its logits [positions, vocabulary], by position: the log-likelihood of an answer's
        token and whether it is the greedy one; of a text, the divergence, twice.
        """
        if index < len(self.answers):
            following = self.batches[index].following.to(logits.device)
            loglikelihood = logits.gather(-1, following[:, None])[:, 0] - logits.logsumexp(-1)
            return loglikelihood, logits.argmax(-1) == following
        text = index - len(self.answers)
        crossed = logits.logsumexp(-1) - torch.linalg.vecdot(self._probabilities[text], logits)
        divergence = (crossed - self._entropy[text]).clamp(min=0)  # below 0 by rounding alone
        return divergence, divergence

    def gathered(self, scores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Outcome:
        """The scores of all batches, in their order, summed by item."""
        answers, texts = scores[: len(self.answers)], scores[len(self.answers) :]
        wrong = _sums(_joined([~right for _, right in answers]), self._answer_item)
        return Outcome(
            _sums(_joined([loglikelihood for loglikelihood, _ in answers]), self._answer_item),
            (wrong == 0).double(),
            _sums(_joined([divergence for divergence, _ in texts]), self._text_item),
        )

    def states(self, model: PreTrainedModel) -> list[list[torch.Tensor]]:
        """[layer][batch] → the states [batch, tokens, width] that leave each block of an untouched model."""
        kept = states_at(model, self.batches, [f"layers.{layer}" for layer in range(len(blocks(model)))])
        return list(kept.values())


@torch.inference_mode()
def states_at(model: PreTrainedModel, batches: Iterable[Batch], sites: Sequence[str]) -> dict[str, list[torch.Tensor]]:
    """Site → the states [batch, tokens, channels] that leave it, a tensor a batch. Raises as `reading` does."""
    kept: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for batch in batches:
        with reading(model, sites) as states:
            model.base_model(input_ids=batch.ids.to(model.device), use_cache=False)
        for site in sites:
            kept[site].append(states[site])
    return kept


def _logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    return logits_at(model, batch.ids, batch.row, batch.column).float()


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """All parts after one another; nothing where there is none."""
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.long)


def _sums(values: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Sums over each item's positions."""
    count = int(item.max()) + 1 if len(item) else 0
    return torch.zeros(count, dtype=torch.float64).index_add_(0, item, values.double().cpu())
