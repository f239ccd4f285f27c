"""How much each gate of a graft lets through, token by token, on any text."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.gating import gated, listening
from stages.errors import BadInput


@dataclass(frozen=True)
class Amounts:
    """What the gates of a graft do at every token of a text."""

    parts: tuple[str, ...]
    """What has a gate, by its place in the target; empty for a graft of weights alone, which has none."""
    tokens: tuple[str, ...]
    """The text, cut into what each token spells; a special token that spells nothing stands with its name."""
    ends: tuple[int, ...]
    """Where each token ends in the text, in characters."""
    open: torch.Tensor
    """[tokens, parts], 0 where nothing is let through"""


@torch.inference_mode()
def amounts(graft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Amounts:
    """The gates of `graft`, read in one pass over `text`; the model stays as it is.

    The amount of a gate over channels is its mean over them; a gate that shares a budget, and a fusion's shares, count
    once for each blade or member. Nothing is let through where the donor is not heard, whatever its gate says. α is
    not part of it. Debates and biased routers have no gate. Raises BadInput for a text without tokens, and for one
    longer than the model reads.
    """
    ids, tokens, ends = spelled(tokenizer, text)
    longest = getattr(graft.config.get_text_config(), "max_position_embeddings", None)
    if not ids or len(ids) > (longest or len(ids)):
        raise BadInput(f"Expected a text of 1 to {longest or 'any number of'} tokens, got {len(ids)}; give another.")
    with listening(graft) as seen:
        graft(input_ids=torch.tensor([ids], device=graft.device), use_cache=False)
    names, columns = [], []
    for number in gated(graft):
        spec = graft.config.parts[number]
        gates = _gates(spec)
        names += [f"layers.{spec.get('layer', 0)} {name}" for name in gates]
        found = seen.get(number, torch.zeros(1, 1, 1))  # a closed gate is not asked
        columns.append(found[0].float().cpu().expand(len(ids), len(gates)))
    told = torch.cat(columns, dim=1) if columns else torch.zeros(len(ids), 0)
    return Amounts(tuple(_distinct(names)), tuple(tokens), tuple(ends), told)


def spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[str], list[int]]:
    """Token ids of `text`, the stretch of it that each spells, and its end; the stretches make up the text.

    Of tokens that spell one character together, the first has it.
    """
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, reached, tokens, ends = encoded["input_ids"], 0, [], []
    for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        if start == end and token in tokenizer.all_special_ids:
            tokens.append(str(tokenizer.convert_ids_to_tokens(token)))
        else:
            tokens.append(text[reached:end])
        reached = max(reached, end)
        ends.append(reached)
    if tokens and reached < len(text):
        tokens[-1], ends[-1] = tokens[-1] + text[reached:], len(text)
    return ids, tokens, ends


def _gates(spec: Mapping[str, Any]) -> list[str]:
    """What a part's gates are called: one, or one for each blade or member."""
    several = spec.get("sources") or spec.get("members")
    return [f"{spec['kind']} {i}" for i in range(1, len(several) + 1)] if several else [spec["kind"]]


def _distinct(names: list[str]) -> Iterator[str]:
    """The names, with a number after those that occur again."""
    counts = {name: itertools.count(2) for name in names}
    known: set[str] = set()
    for name in names:
        yield f"{name} ({next(counts[name])})" if name in known else name
        known.add(name)
