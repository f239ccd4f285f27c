"""Parts of a graft trained from states that are kept: only the blocks that differ with them, and later ones, run."""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks, path_of
from stages.anatomy.encoding import batches, encode, pad
from stages.anatomy.head import logits_at
from stages.anatomy.restart import resumed
from stages.graft.call import Call
from stages.items import PROMPT, TEXT, read_items
from stages.reading import Reading
from stages.recipes.blade import Training
from stages.training import Kept, Learning, chosen, places, stacked, train


@dataclass(frozen=True)
class Site:
    """A part of a graft with all that it works on, in memory."""

    target: PreTrainedModel
    layer: int
    """The target's first block that differs with the part."""
    readings: Sequence[Reading]
    part: nn.Module


Sequences = Sequence[tuple[tuple[int, ...], int]]
"""Token ids, and the first of them that is to be predicted."""


def asked(tokenizer: PreTrainedTokenizerBase, path: Path, count: int | None = None) -> Sequences:
    """The first `count` prompts of a file, or all, with their answers: ids, and where the answer starts."""
    rows = [(row["prompt"], row["answer"]) for row in read_items(path, PROMPT, count)]
    return [(e.ids, e.start) for e in encode(tokenizer, rows)]


def told(tokenizer: PreTrainedTokenizerBase, path: Path) -> Sequences:
    """The texts of a file: ids, and the second token, which is the first to be predicted."""
    return [(tuple(tokenizer(row["text"]).input_ids), 1) for row in read_items(path, TEXT)]


class KeptCall(Call):
    """A pass in which the donors' states are those kept of the same texts."""

    def __init__(self, target: PreTrainedModel, ids: torch.Tensor, kept: Sequence[Kept]):
        super().__init__(target, path_of(target, blocks(target)), nn.ModuleList(), ids, torch.ones_like(ids), None)
        self._kept = kept

    def states(self, donor: int, taken: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        return stacked([k.read[donor][taken] for k in self._kept]), stacked([k.known[donor] for k in self._kept])


@torch.inference_mode()
def read_once(
    target: PreTrainedModel,
    readings: Sequence[Reading],
    sequences: Sequences,
    predictions: bool,
    layer: int,
    early: int | None = None,
) -> list[Kept]:
    """Runs target and donors once; keeps what leaves the target's block `layer`, and `early` where it is given."""
    kept: dict[int, Kept] = {}
    left: dict[int, torch.Tensor] = {}

    def leave(block: int):
        return lambda _, args, out: left.__setitem__(block, out[0] if isinstance(out, tuple) else out)

    watched = {layer} if early is None else {layer, early}
    handles = [blocks(target)[block].register_forward_hook(leave(block)) for block in sorted(watched)]
    try:
        for group in batches([len(ids) for ids, _ in sequences], budget=512):
            ids = pad([sequences[i][0] for i in group], target.device)
            output = (target if predictions else target.base_model)(input_ids=ids, use_cache=False)
            read = [each.donor.states(ids, torch.ones_like(ids), None) for each in readings]
            known = [torch.ones_like(ids, dtype=torch.bool) if where is None else where for _, where in read]
            for row, i in enumerate(group):
                tokens, start = sequences[i]
                n = len(tokens)
                kept[i] = Kept(
                    tokens,
                    start,
                    output.logits[row, :n].log_softmax(-1).half() if predictions else None,
                    left[layer][row, :n].clone(),
                    tuple(tuple(state[row, :n].clone() for state in states) for states, _ in read),
                    tuple(where[row, :n].clone() for where in known),
                    None if early is None else left[early][row, :n].clone(),
                )
    finally:
        for handle in handles:
            handle.remove()
    return [kept[i] for i in range(len(sequences))]


def keep(site: Site, sequences: Sequences, predictions: bool) -> list[Kept]:
    """What a part learns from: the states that enter its block; for the first block, which is run whole, any."""
    return read_once(site.target, site.readings, sequences, predictions, max(0, site.layer - 1))


def logits(
    site: Site,
    kept: Sequence[Kept],
    training: Training | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The graft's logits [positions, vocabulary] where it predicts the tokens of `kept` that training looks at.

    With `training`, at as many of these positions, drawn, as it says. Second, which these are, [positions].
    """
    h = stacked([k.h for k in kept])
    ids = pad([k.ids for k in kept], h.device)
    row, column = places(kept, h.device)
    positions = chosen(torch.zeros(len(row), device=h.device), training, generator)
    with contextlib.ExitStack() as stack:
        if site.layer:
            stack.enter_context(resumed(site.target, site.layer - 1, h))
        call = stack.enter_context(KeptCall(site.target, ids, kept))
        site.part.attach(call)  # type: ignore[operator]
        return logits_at(site.target, ids, row[positions], column[positions]), positions


def learning(site: Site) -> Learning:
    """The part as what learns."""
    return Learning(site.part, functools.partial(logits, site))


def trained(
    site: Site, tokenizer: PreTrainedTokenizerBase, capabilities: Sequence[Path], text: Path, training: Training
) -> list[dict[str, Any]]:
    """Trains the part in place on the first `prompts` of each of `capabilities` and on texts; gives the loss curve."""
    prompts = [each for path in capabilities for each in asked(tokenizer, path, training.prompts)]
    items, texts = keep(site, prompts, predictions=False), keep(site, told(tokenizer, text), predictions=True)
    return train(learning(site), training, items, texts)
