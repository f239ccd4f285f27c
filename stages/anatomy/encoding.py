"""Text as token ids, and the batches in which models read them."""

import itertools
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
    distinct = _distinct(encoded)
    inputs = list(distinct)
    groups = batches([len(ids) for ids in inputs], budget)
    return [rows_of(encoded, [distinct[inputs[i]] for i in group]) for group in groups]


@dataclass(frozen=True)
class Bundle:
    """Batches whose rows go on from one of a few beginnings, each of which is read once."""

    beginnings: torch.Tensor
    """[beginnings, length]; length 0 where nothing is shared"""
    batches: list[tuple[torch.Tensor, Batch]]
    """The beginning [batch] that each row of a batch goes on from; the rest of the row, columns counted from there."""


def bundles_of(encoded: Sequence[Encoded], budget: int) -> list[Bundle]:
    """Answers as `answers_of` gives them, with what several inputs begin with set apart.

    The beginnings are the partition of the inputs' prefix tree that leaves the fewest tokens to read; of a beginning
    nothing is predicted.
    """
    if not encoded:
        return []
    distinct = _distinct(encoded)
    inputs = sorted(distinct)
    limits = [min(encoded[item].start for item in distinct[ids]) - 1 for ids in inputs]
    by_length: dict[int, list[range]] = {}
    for length, members in _partition(inputs, limits, range(len(inputs)))[1]:
        by_length.setdefault(length, []).append(members)
    made = []
    for length, families in sorted(by_length.items()):
        for some in batches([length] * len(families), budget):
            origin = {i: n for n, family in enumerate(some) for i in families[family]}
            rest = sorted(origin)
            each = []
            for g in batches([len(inputs[i]) - length for i in rest], budget):
                rows = [rest[i] for i in g]
                batch = rows_of(encoded, [distinct[inputs[i]] for i in rows], length)
                each.append((torch.tensor([origin[i] for i in rows]), batch))
            made.append(Bundle(torch.tensor([inputs[families[n][0]][:length] for n in some], dtype=torch.long), each))
    return made


def _distinct(encoded: Sequence[Encoded]) -> dict[tuple[int, ...], list[int]]:
    """The items of each input, which is all of an item but its last token."""
    distinct: dict[tuple[int, ...], list[int]] = {}
    for index, e in enumerate(encoded):
        distinct.setdefault(e.ids[:-1], []).append(index)
    return distinct


def rows_of(encoded: Sequence[Encoded], rows: Sequence[Sequence[int]], skipped: int = 0) -> Batch:
    """One batch; each row is what the items named there begin with, all of one but its last token.

    The first `skipped` tokens of every row are left out, and columns are counted after them.
    """
    places = [
        (row, column - skipped, item, encoded[item].ids[column + 1])
        for row, items in enumerate(rows)
        for item in items
        for column in range(encoded[item].start - 1, len(encoded[item].ids) - 1)
    ]
    return Batch(pad([encoded[items[0]].ids[skipped:-1] for items in rows]), *torch.tensor(places).T)


def _partition(
    inputs: Sequence[tuple[int, ...]], limits: Sequence[int], members: range
) -> tuple[int, list[tuple[int, range]]]:
    """The tokens saved, and the parts of sorted `inputs` that share as many first tokens as stated, the best way.

    No part shares more than the limit of any of its inputs.
    """
    if len(members) == 1:
        return 0, [(0, members)]
    first, last = inputs[members[0]], inputs[members[-1]]
    common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    length = min(common, *(limits[i] for i in members))
    together = length * (len(members) - 1)
    apart, parts = 0, []
    for _, same in itertools.groupby(members, key=lambda i: inputs[i][common : common + 1]):
        indices = list(same)
        saved, own = _partition(inputs, limits, range(indices[0], indices[-1] + 1))
        apart += saved
        parts += own
    return (together, [(length, members)]) if together >= apart else (apart, parts)


def texts_of(sequences: Sequence[Sequence[int]], budget: int) -> list[Batch]:
    """Texts of two or more tokens in batches of at most `budget` padded tokens; every token but the first is read."""
    made = []
    for group in batches([len(ids) - 1 for ids in sequences], budget):
        places = [(row, column, i, sequences[i][column + 1]) for row, i in enumerate(group)
                  for column in range(len(sequences[i]) - 1)]  # fmt: skip
        made.append(Batch(pad([sequences[i][:-1] for i in group]), *torch.tensor(places).T))
    return made
