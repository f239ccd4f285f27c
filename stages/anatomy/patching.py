"""Exact effects of replacing what leaves single sites of a model: ablation and patching, restarted and in batches."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import Batch
from stages.anatomy.head import logits_at
from stages.anatomy.hooks import replacing
from stages.anatomy.names import layer_of
from stages.anatomy.outcomes import Judge, Outcome, states_at
from stages.anatomy.restart import resumed
from stages.errors import BadInput

Change = Callable[[int, torch.Tensor], torch.Tensor]
"""From the index of a batch and the state [batch, tokens, channels] that leaves a site to what stands in its place, or
what broadcasts to it."""


@dataclass(frozen=True)
class Patch:
    """One intervention."""

    site: str
    change: Change


def to_states(states: Sequence[torch.Tensor]) -> Change:
    """States kept from another run, a tensor a batch."""
    return lambda index, state: states[index].to(state)


def to_vector(vector: torch.Tensor | float) -> Change:
    """The same vector [channels] stands at every position: 0 for zero ablation, a mean for mean ablation."""
    return lambda _, state: torch.as_tensor(vector).to(state)


def only_at(masks: Sequence[torch.Tensor], change: Change) -> Change:
    """`change` where the masks, [batch, tokens] a batch, are true; elsewhere the state stays."""
    return lambda index, state: torch.where(masks[index][..., None].to(state.device), change(index, state), state)


def mean_states(model: PreTrainedModel, texts: Sequence[Batch], sites: Sequence[str]) -> dict[str, torch.Tensor]:
    """Site → the mean state [channels] over the texts' positions but their first, whose state is massive.

    Raises BadInput when no text has a second position.
    """
    places = [(batch.row[batch.column > 0], batch.column[batch.column > 0]) for batch in texts]
    if not any(len(row) for row, _ in places):
        raise BadInput("Expected texts of at least three tokens to take means over, got none; give longer texts.")
    kept = states_at(model, texts, sites)
    return {
        site: torch.cat([state[place] for state, place in zip(kept[site], places, strict=True)]).mean(0)
        for site in sites
    }


@torch.inference_mode()
def patched(
    judge: Judge,
    model: PreTrainedModel,
    kept: Sequence[Sequence[torch.Tensor]],
    patches: Sequence[Patch],
    budget: int = 0,
) -> list[Outcome]:
    """What `model` does under each patch by itself, exactly.

    `kept` [layer][batch] are the model's own states on the judge's batches. A patch inside block I restarts from what
    enters that block, one at its output from there, so that only what can differ runs: half of the blocks on average.
    Patches that restart at one place run in one pass, on as many copies of the batch as `budget` tokens hold (at least
    one). Raises BadInput for a site that the model lacks or that no pass reaches, and for `lm_head`, whose states are
    not those of a batch.
    """
    starts: dict[int, list[int]] = {}
    for number, patch in enumerate(patches):
        starts.setdefault(_start(model, patch.site), []).append(number)
    scores: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in patches]
    for start, members in starts.items():
        for index, batch in enumerate(judge.batches):
            together = max(1, budget // batch.ids.numel())
            for first in range(0, len(members), together):
                some = members[first : first + together]
                entering = None if start < 0 else kept[start][index]
                logits = _logits(model, index, batch, [patches[n] for n in some], start, entering)
                for number, each in zip(some, logits, strict=True):
                    scores[number].append(judge.score(index, each))
    return [judge.gathered(each) for each in scores]


def _start(model: PreTrainedModel, site: str) -> int:
    """The last block that need not run for a patch at `site`; -1 where all must."""
    layer = layer_of(site)
    if site == "lm_head":
        raise BadInput("Expected a site before the head to patch, got 'lm_head'; patch 'norm' instead.")
    if layer is None:
        return -1 if site == "embed" else len(blocks(model)) - 1
    return layer if site == f"layers.{layer}" else layer - 1


def _logits(
    model: PreTrainedModel, index: int, batch: Batch, patches: list[Patch], start: int, entering: torch.Tensor | None
) -> torch.Tensor:
    """[patches, positions, vocabulary] from one pass over a copy of the batch for each patch."""
    copies, rows = len(patches), len(batch.ids)
    places = torch.cat([batch.row + copy * rows for copy in range(copies)]), batch.column.repeat(copies)
    with _resumed(model, start, entering, copies), replacing(model, _changes(index, patches, rows)):
        logits = logits_at(model, batch.ids.repeat(copies, 1), *places)
    return logits.float().view(copies, len(batch.row), -1)


def _resumed(
    model: PreTrainedModel, start: int, entering: torch.Tensor | None, copies: int
) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if entering is None else resumed(model, start, entering.repeat(copies, 1, 1))


def _changes(index: int, patches: list[Patch], rows: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Each site's change of the whole pass: every patch there changes its own copy of the batch."""

    def change_at(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(state: torch.Tensor) -> torch.Tensor:
            changed = state.clone()
            for copy, patch in enumerate(patches):
                if patch.site == site:
                    part = changed[copy * rows : (copy + 1) * rows]
                    part.copy_(patch.change(index, part))
            return changed

        return change

    return {site: change_at(site) for site in dict.fromkeys(patch.site for patch in patches)}
