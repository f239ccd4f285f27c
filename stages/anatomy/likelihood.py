"""How likely a model finds continuations and texts, reading each distinct input once."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from stages.anatomy.encoding import Batch, Encoded, bundles_of, texts_of
from stages.anatomy.head import cached, logits_and_cache_at, logits_at, logits_of, states_and_logits_at

_ROWS = 128  # distributions worked on at a time: some 25 MB, which the allocator keeps for the next


@dataclass(frozen=True)
class Scores:
    """What a model thinks of each continuation."""

    loglikelihood: torch.Tensor
    """[n], natural logarithm, summed over the continuation's tokens"""
    greedy: torch.Tensor
    """[n], whether greedy decoding gives exactly this continuation"""


@torch.inference_mode()
def score(model: PreTrainedModel, encoded: Sequence[Encoded], budget: int = 2048) -> Scores:
    """Log-likelihood and greedy match of every continuation, in `budget` padded tokens a forward pass.

    What several contexts begin with is read once.
    """
    scores = Scores(torch.zeros(len(encoded), dtype=torch.float64), torch.zeros(len(encoded), dtype=torch.bool))
    for each in passes(model, encoded, budget):
        told, right = [], []
        for logits, following in parts(each.logits, each.batch.following):
            told.append(logits.gather(-1, following[:, None])[:, 0] - logits.logsumexp(-1))
            right.append(logits.argmax(-1) == following)
        values = (torch.cat(some).cpu() for some in (told, right))
        items, counts = each.batch.item.unique_consecutive(return_counts=True)
        for index, own, hit in zip(items, *(v.split(counts.tolist()) for v in values), strict=True):
            scores.loglikelihood[index] = own.double().sum()
            scores.greedy[index] = hit.all()
    return scores


@dataclass(frozen=True)
class Pass:
    """One forward pass over a batch of continuations."""

    batch: Batch
    logits: torch.Tensor
    """[positions, vocabulary], at the batch's positions"""
    cache: DynamicCache | None
    """After all rows' tokens, padding included; None where it was not to be kept, or is not one of plain rows"""


def passes(model: PreTrainedModel, encoded: Sequence[Encoded], budget: int, keep: bool = False) -> Iterator[Pass]:
    """All continuations read in `budget` padded tokens a pass; what several contexts begin with is read before them."""
    for bundle in bundles_of(encoded, budget):
        length = bundle.beginnings.shape[1]
        past = cached(model, bundle.beginnings) if length else None
        for origin, batch in bundle.batches:
            if past is None:
                ids, own = torch.cat([bundle.beginnings[origin], batch.ids], dim=1), None
            else:
                ids, own = batch.ids, copy.deepcopy(past)
                own.batch_select_indices(origin.to(model.device))
            column = batch.column if past is not None else batch.column + length
            if keep:
                logits, cache = logits_and_cache_at(model, ids, batch.row, column, own)
                yield Pass(batch, logits, cache)
            else:
                yield Pass(batch, logits_at(model, ids, batch.row, column, own), None)


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
        for (logits, following), theirs in zip(parts(own, batch.following), other.split(_ROWS), strict=True):
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


def parts(logits: torch.Tensor, following: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits in single precision and the tokens that follow, some rows at a time."""
    for part, tokens in zip(logits.split(_ROWS), following.to(logits.device).split(_ROWS), strict=True):
        yield part.float(), tokens
