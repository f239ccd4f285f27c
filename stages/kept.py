"""Parts of a graft at one block, trained from the states that enter it: only that block and the later ones run."""

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
from stages.training import Example, Learning, chosen, places, stacked, train


@dataclass(frozen=True)
class Site:
    """A part of a graft with all that it works on, in memory."""

    target: PreTrainedModel
    layer: int
    """The target's first block that differs with the part."""
    readings: Sequence[Reading]
    part: nn.Module


@dataclass(frozen=True)
class Entered(Example):
    """A text's states."""

    h: torch.Tensor
    """[tokens, width], entering the target's block"""
    read: tuple[tuple[torch.Tensor, ...], ...]
    """For each donor and each of its blocks that are taken, [tokens, donor width]"""
    known: tuple[torch.Tensor, ...]
    """For each donor, [tokens], where it has read something"""


class KeptCall(Call):
    """A pass in which the donors' states are those kept of the same texts."""

    def __init__(self, target: PreTrainedModel, ids: torch.Tensor, kept: Sequence[Entered]):
        super().__init__(target, path_of(target, blocks(target)), nn.ModuleList(), ids, torch.ones_like(ids), None)
        self._kept = kept

    def states(self, donor: int, taken: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
        return stacked([k.read[donor][taken] for k in self._kept]), stacked([k.known[donor] for k in self._kept])


@torch.inference_mode()
def keep(site: Site, sequences: Sequence[tuple[tuple[int, ...], int]], predictions: bool) -> list[Entered]:
    """Runs target and donors once over `sequences` of ids and start."""
    kept: dict[int, Entered] = {}
    entered: list[torch.Tensor] = []

    def note(_, args, kwargs):
        entered.append(args[0] if args else kwargs["hidden_states"])

    handle = blocks(site.target)[site.layer].register_forward_pre_hook(note, with_kwargs=True)
    try:
        for group in batches([len(ids) for ids, _ in sequences], budget=512):
            ids = pad([sequences[i][0] for i in group], site.target.device)
            entered.clear()
            output = (site.target if predictions else site.target.base_model)(input_ids=ids, use_cache=False)
            read = [each.donor.states(ids, torch.ones_like(ids), None) for each in site.readings]
            for row, i in enumerate(group):
                tokens, start = sequences[i]
                n = len(tokens)
                kept[i] = Entered(
                    tokens,
                    start,
                    output.logits[row, :n].log_softmax(-1).half() if predictions else None,
                    entered[0][row, :n].clone(),
                    tuple(tuple(state[row, :n].clone() for state in states) for states, _ in read),
                    tuple((torch.ones_like(ids, dtype=torch.bool) if known is None else known)[row, :n].clone()
                          for _, known in read),
                )  # fmt: skip
    finally:
        handle.remove()
    return [kept[i] for i in range(len(sequences))]


def logits(
    site: Site,
    kept: Sequence[Entered],
    training: Training | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The graft's logits [positions, vocabulary] where it predicts the tokens of `kept` that training looks at.

    With `training`, at as many of these positions, drawn, as it says. Second, which these are, [positions].
    """
    h = stacked([k.h for k in kept])
    ids = pad([k.ids for k in kept], h.device)
    row, column = places(list(kept), h.device)
    positions = chosen(torch.zeros(len(row), device=h.device), training, generator)
    with contextlib.ExitStack() as stack:
        if site.layer:
            stack.enter_context(resumed(site.target, site.layer - 1, h))
        call = stack.enter_context(KeptCall(site.target, ids, kept))
        site.part.attach(call)  # type: ignore[operator]
        return logits_at(site.target, ids, row[positions], column[positions]), positions


def learning(site: Site) -> Learning[Entered]:
    """The part as what learns."""
    return Learning(site.part, functools.partial(logits, site))


def trained(
    site: Site, tokenizer: PreTrainedTokenizerBase, capabilities: Sequence[Path], text: Path, training: Training
) -> list[dict[str, Any]]:
    """Trains the part in place on the first `prompts` of each of `capabilities` and on texts; gives the loss curve."""
    rows = [row for path in capabilities for row in read_items(path, PROMPT, training.prompts)]
    asked = [(e.ids, e.start) for e in encode(tokenizer, [(row["prompt"], row["answer"]) for row in rows])]
    told = [(tuple(tokenizer(row["text"]).input_ids), 1) for row in read_items(text, TEXT)]
    return train(learning(site), training, keep(site, asked, predictions=False), keep(site, told, predictions=True))
