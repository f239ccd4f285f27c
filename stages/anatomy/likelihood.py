"""How likely a model finds continuations, reading each distinct input once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.errors import BadInput


@dataclass(frozen=True)
class Encoded:
    """A context and its continuation as token ids."""

    ids: tuple[int, ...]
    start: int
    """Index of the continuation's first token."""

    @property
    def continuation(self) -> tuple[int, ...]:
        return self.ids[self.start :]


def encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
    """Contexts and their continuations, tokenized together; a continuation begins after as many tokens as its context
    has alone.

    Raises BadInput when either has no token of its own.
    """
    contexts = tokenizer([context for context, _ in pairs], add_special_tokens=False).input_ids
    wholes = tokenizer([context + continuation for context, continuation in pairs], add_special_tokens=False).input_ids
    for (context, continuation), before, whole in zip(pairs, contexts, wholes, strict=True):
        if not 0 < len(before) < len(whole):
            raise BadInput(
                f"Expected a context and a continuation of at least one token each, got {context!r}, {continuation!r}."
            )
    return [Encoded(tuple(whole), len(before)) for before, whole in zip(contexts, wholes, strict=True)]


def pad(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> torch.Tensor:
    """`sequences` as one tensor [batch, tokens], padded on the right with token 0.

    A causal model's real tokens never see what stands to their right, so no mask is needed and none can be wrong.
    """
    width = max(map(len, sequences))
    return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in sequences], device=device)


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices grouped by like length, the longest first, at most `budget` padded tokens a group."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if group and (len(group) + 1) * lengths[group[0]] > budget:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


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

    Continuations that differ in their last token alone share one pass; logits are computed where they are read.
    """
    distinct: dict[tuple[int, ...], list[int]] = {}
    for index, e in enumerate(encoded):
        distinct.setdefault(e.ids[:-1], []).append(index)
    inputs = list(distinct)
    loglikelihood = torch.zeros(len(encoded), dtype=torch.float64)
    greedy = torch.zeros(len(encoded), dtype=torch.bool)
    confidence = torch.zeros(len(encoded), dtype=torch.float64)
    for group in batches([len(ids) for ids in inputs], budget):
        read = [(row, index) for row, i in enumerate(group) for index in distinct[inputs[i]]]
        first = min(encoded[index].start for _, index in read) - 1
        ids = pad([inputs[i] for i in group], model.device)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - first).logits
        logprobs = logits.float().log_softmax(-1)
        for row, index in read:
            answer = torch.tensor(encoded[index].continuation, device=logits.device)
            begin = encoded[index].start - 1 - first
            told = logprobs[row, begin : begin + len(answer)]
            loglikelihood[index] = told.gather(-1, answer[:, None]).double().sum().item()
            top = told.max(-1)
            right = top.indices == answer
            greedy[index] = bool(right.all())
            left = len(answer) if right.all() else int(right.long().argmin()) + 1
            confidence[index] = top.values[:left].double().sum().exp().item()
    return Scores(loglikelihood, greedy, confidence)


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


@torch.inference_mode()
def read(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    reference: PreTrainedModel | None = None,
    budget: int = 1024,
) -> list[Read]:
    """Reads whole sequences of token ids, `budget` padded tokens a pass; `reference` has the same tokenizer."""
    results: dict[int, Read] = {}
    for group in batches([len(ids) for ids in sequences], budget):
        ids = pad([sequences[i] for i in group], model.device)
        own = model(input_ids=ids, use_cache=False).logits
        other = None if reference is None else reference(input_ids=ids, use_cache=False).logits
        for row, i in enumerate(group):
            n = len(sequences[i]) - 1
            told = own[row, :n].float().log_softmax(-1)
            loglikelihood = told.gather(-1, ids[row, 1 : n + 1, None]).double().sum().item()
            divergence = agreement = None
            if other is not None:
                expected = other[row, :n].float().log_softmax(-1)
                divergence = (expected.exp() * (expected - told)).sum(-1).double().mean().item()
                agreement = (expected.argmax(-1) == told.argmax(-1)).double().mean().item()
            results[i] = Read(loglikelihood, n, divergence, agreement)
    return [results[i] for i in range(len(sequences))]
