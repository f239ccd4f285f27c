"""How likely a model finds continuations and texts, reading each distinct input once."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.anatomy.encoding import Batch, Encoded, bundles_of, texts_of
from stages.anatomy.head import cached, logits_at, logits_of, states_and_logits_at

_ROWS = 128  # distributions worked on at a time: some 25 MB, which the allocator keeps for the next


@dataclass(frozen=True)
class Scores:
    """What a model thinks of each continuation."""

    loglikelihood: torch.Tensor
    """[n], natural logarithm, summed over the continuation's tokens"""
    greedy: torch.Tensor
    """[n], whether greedy decoding gives exactly this continuation"""
    confidence: torch.Tensor
    """[n], the probability of the greedy path up to and including the first token where it leaves this continuation"""


@torch.inference_mode()
def score(model: PreTrainedModel, encoded: Sequence[Encoded], budget: int = 2048) -> Scores:
    """Log-likelihood and greedy match of every continuation, in `budget` padded tokens a forward pass.

    What several contexts begin with is read once.
    """
    scores = Scores(*(torch.zeros(len(encoded), dtype=t) for t in (torch.float64, torch.bool, torch.float64)))
    for batch, computed in _passes(model, encoded, budget):
        told, best, right = [], [], []
        for logits, following in _parts(computed, batch.following):
            logprobs = logits.log_softmax(-1)
            top = logprobs.max(-1)
            told.append(logprobs.gather(-1, following[:, None])[:, 0])
            best.append(top.values)
            right.append(top.indices == following)
        each = (torch.cat(values).cpu() for values in (told, best, right))
        items, counts = batch.item.unique_consecutive(return_counts=True)
        for index, own, top, hit in zip(items, *(v.split(counts.tolist()) for v in each), strict=True):
            scores.loglikelihood[index] = own.double().sum()
            scores.greedy[index] = hit.all()
            left = len(hit) if hit.all() else int(hit.long().argmin()) + 1
            scores.confidence[index] = top[:left].double().sum().exp()
    return scores


def _passes(model: PreTrainedModel, encoded: Sequence[Encoded], budget: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    for bundle in bundles_of(encoded, budget):
        length = bundle.beginnings.shape[1]
        past = cached(model, bundle.beginnings) if length else None
        for origin, batch in bundle.batches:
            if past is None:
                ids = torch.cat([bundle.beginnings[origin], batch.ids], dim=1)
                yield batch, logits_at(model, ids, batch.row, batch.column + length)
            else:
                own = copy.deepcopy(past)
                own.batch_select_indices(origin.to(model.device))
                yield batch, logits_at(model, batch.ids, batch.row, batch.column, own)


@dataclass(frozen=True)
class Read:
    """How a model reads one text, token by token."""

    loglikelihood: float
    """Natural logarithm, summed over all tokens but the first"""
    tokens: int
    """Tokens scored"""
    divergence: float | None
    """Mean KL(reference ‖ model) in nats a token; None without a reference"""
    agreement: float | None
    """Share of tokens at which both think the same token the likeliest"""
    states: torch.Tensor
    """[tokens scored, width], what the head makes the predictions from"""


@dataclass(frozen=True)
class Reference:
    """A model that has read the same texts before."""

    model: PreTrainedModel
    states: Sequence[torch.Tensor]
    """[texts] of [tokens scored, width], as it read them"""


@torch.inference_mode()
def read(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], reference: Reference | None = None, budget: int = 1024
) -> list[Read]:
    """Reads whole sequences of token ids, `budget` padded tokens a pass."""
    results: dict[int, Read] = {}
    for batch in texts_of(sequences, budget):
        states, own = states_and_logits_at(model, batch.ids, batch.row, batch.column)
        items, counts = (values.tolist() for values in batch.item.unique_consecutive(return_counts=True))
        other = own
        if reference is not None:  # all rows at once, since the rounding of a product depends on how many there are
            other = logits_of(reference.model, torch.cat([reference.states[i] for i in items]).to(model.device))
        told, moved, same = [], [], []
        for (logits, following), theirs in zip(_parts(own, batch.following), other.split(_ROWS), strict=True):
            logprobs = logits.log_softmax(-1)
            told.append(logprobs.gather(-1, following[:, None])[:, 0])
            if reference is not None:
                expected = theirs.float().log_softmax(-1)
                moved.append((expected.exp() * (expected - logprobs)).sum(-1))
                same.append(expected.argmax(-1) == logprobs.argmax(-1))
        sums, moves, sames = (
            [float(part.sum()) for part in torch.cat(v).double().cpu().split(counts)] if v else [None] * len(items)
            for v in (told, moved, same)
        )
        for index, count, *whole, kept in zip(
            items, counts, sums, moves, sames, states.cpu().split(counts), strict=True
        ):
            means = (None if v is None else v / count for v in whole[1:])
            results[index] = Read(whole[0], count, *means, kept)
    return [results[i] for i in range(len(sequences))]


def _parts(logits: torch.Tensor, following: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits in single precision and the tokens that follow, some rows at a time."""
    for part, tokens in zip(logits.split(_ROWS), following.to(logits.device).split(_ROWS), strict=True):
        yield part.float(), tokens
