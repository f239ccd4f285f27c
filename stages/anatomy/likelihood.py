"""How likely a model finds continuations, reading each distinct input once."""

import inspect
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


@dataclass(frozen=True)
class Batch:
    """Token ids padded on the left, so that the last columns are where the continuations stand."""

    input_ids: torch.Tensor
    """[batch, tokens]"""
    attention_mask: torch.Tensor
    """[batch, tokens], 1 at real tokens"""
    position_ids: torch.Tensor
    """[batch, tokens], 0 at each row's first real token"""


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


def pad(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Batch:
    """`sequences` as one batch, padded on the left with token 0, which the mask hides."""
    width = max(map(len, sequences))
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, ids in enumerate(sequences):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(input_ids.to(device), mask.to(device), positions.to(device))


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


def inputs_of(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """The keyword arguments of `model` for a batch; position ids only where its forward takes them."""
    accepted = inspect.signature(model.forward).parameters
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    return {name: value for name, value in given.items() if name in accepted}


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

    Continuations that differ in their last token alone share one pass; logits are computed where they are read.
    """
    distinct: dict[tuple[int, ...], list[int]] = {}
    for index, e in enumerate(encoded):
        distinct.setdefault(e.ids[:-1], []).append(index)
    inputs = list(distinct)
    loglikelihood = torch.zeros(len(encoded), dtype=torch.float64)
    greedy = torch.zeros(len(encoded), dtype=torch.bool)
    for group in batches([len(ids) for ids in inputs], budget):
        batch = pad([inputs[i] for i in group], model.device)
        keep = max(len(encoded[index].continuation) for i in group for index in distinct[inputs[i]])
        logits = model(**inputs_of(model, batch), logits_to_keep=keep, use_cache=False).logits
        logprobs = logits.float().log_softmax(-1)
        for row, i in enumerate(group):
            for index in distinct[inputs[i]]:
                answer = torch.tensor(encoded[index].continuation, device=logits.device)
                told = logprobs[row, -len(answer) :]
                loglikelihood[index] = told.gather(-1, answer[:, None]).double().sum().item()
                greedy[index] = bool((told.argmax(-1) == answer).all())
    return Scores(loglikelihood, greedy)
