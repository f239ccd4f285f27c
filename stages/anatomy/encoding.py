"""Text as token ids, and the batches in which models read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from stages.errors import BadInput


@dataclass(frozen=True)
class Encoded:
    """A context and its continuation as token ids."""

    ids: tuple[int, ...]
    start: int
    """Index of the continuation's first token."""


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
class Batch:
    """Inputs that one forward pass reads, and the positions whose next-token distribution is of interest."""

    ids: torch.Tensor
    """[batch, tokens], padded on the right"""
    row: torch.Tensor
    """[positions]"""
    column: torch.Tensor
    """[positions]"""
    item: torch.Tensor
    """[positions], the index of the answer or text; an item's positions are neighbours, in order"""
    following: torch.Tensor
    """[positions], the token that follows in the item"""


def answers_of(encoded: Sequence[Encoded], budget: int) -> list[Batch]:
    """Answers in batches of at most `budget` padded tokens; every token of an answer is read.

    Answers that differ in their last token alone share one row.
    """
    distinct: dict[tuple[int, ...], list[int]] = {}
    for index, e in enumerate(encoded):
        distinct.setdefault(e.ids[:-1], []).append(index)
    inputs = list(distinct)
    made = []
    for group in batches([len(ids) for ids in inputs], budget):
        places = [
            (row, column, item, encoded[item].ids[column + 1])
            for row, i in enumerate(group)
            for item in distinct[inputs[i]]
            for column in range(encoded[item].start - 1, len(inputs[i]))
        ]
        made.append(Batch(pad([inputs[i] for i in group]), *torch.tensor(places).T))
    return made


def texts_of(sequences: Sequence[Sequence[int]], budget: int) -> list[Batch]:
    """Texts of two or more tokens in batches of at most `budget` padded tokens; every token but the first is read."""
    made = []
    for group in batches([len(ids) - 1 for ids in sequences], budget):
        places = [(row, column, i, sequences[i][column + 1]) for row, i in enumerate(group)
                  for column in range(len(sequences[i]) - 1)]  # fmt: skip
        made.append(Batch(pad([sequences[i][:-1] for i in group]), *torch.tensor(places).T))
    return made
