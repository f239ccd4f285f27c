"""Exact outcomes of each kind of intervention on the target's states, site by site."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from stages.anatomy.contrast import Contrast
from stages.anatomy.names import layer_of
from stages.anatomy.outcomes import Judge, Outcome, states_at
from stages.anatomy.patching import Change, Patch, mean_states, only_at, patched, to_states, to_vector
from stages.anatomy.positions import Position, positions_at

Kind = Literal["donor", "zero", "mean", "clean"]
"""What stands in place of the target's states: the donor's, zero, their mean over the texts, or, in the run of a
corrupted prompt, the states of the clean one."""


@dataclass(frozen=True)
class Found:
    """What one intervention did."""

    intervention: str
    site: str
    position: Position | None
    """Where it stood alone; None for all positions."""
    outcome: Outcome
    unpatched: Outcome
    """Of the same model without it."""


def intervened(
    kinds: Collection[Kind],
    sites: Sequence[str],
    target: PreTrainedModel,
    donor: PreTrainedModel,
    judge: Judge,
    kept: Sequence[Sequence[torch.Tensor]],
    pairs: Contrast | None,
    budget: int,
    positions: Sequence[Position] = (),
    digits: torch.Tensor | None = None,
) -> Iterator[Found]:
    """Every intervention at every site: at all positions together, then at each of `positions` alone.

    `donor_states` (at whole blocks at single positions only: at all of them nothing need be replaced inside a pass),
    `zero` and `mean` run on the judge's items, from the target's own states `kept` [layer][batch]; `clean_states` on
    `pairs`, where the unpatched target reads the corrupted prompts. Passes read at most `budget` tokens, or one batch.
    """
    made: dict[str, dict[str, Change]] = {}
    if "donor" in kinds:
        parts = [site for site in sites if positions or not _whole(site)]
        theirs = states_at(donor, judge.batches, parts)
        made["donor_states"] = {site: to_states(theirs[site]) for site in parts}
    if "zero" in kinds:
        made["zero"] = dict.fromkeys(sites, to_vector(0.0))
    if "mean" in kinds:
        means = mean_states(target, judge.texts, sites)
        made["mean"] = {site: to_vector(means[site]) for site in sites}
    masks = {each: positions_at(each, judge.answers, judge.texts, digits) for each in positions}
    for name, changes in made.items():
        yield from _found(name, judge, target, kept, changes, masks, budget)
    if "clean" in kinds and pairs:
        corrupted = Judge(target, pairs.corrupted, [])
        clean = states_at(target, pairs.clean, sites)
        changes = {site: to_states(clean[site]) for site in sites}
        masks = {each: positions_at(each, pairs.corrupted, [], digits) for each in positions}
        yield from _found("clean_states", corrupted, target, corrupted.states(target), changes, masks, budget)


def _whole(site: str) -> bool:
    """Whether a site is the residual stream that leaves a block."""
    return site == f"layers.{layer_of(site)}"


def _found(
    name: str,
    judge: Judge,
    target: PreTrainedModel,
    kept: Sequence[Sequence[torch.Tensor]],
    changes: Mapping[str, Change],
    masks: Mapping[Position, Sequence[torch.Tensor]],
    budget: int,
) -> Iterator[Found]:
    unpatched = judge.outcome(target, len(kept) - 1, kept[-1])
    asked: list[tuple[str, Position | None, Patch]] = [
        (site, None, Patch(site, change))
        for site, change in changes.items()
        if not (name == "donor_states" and _whole(site))
    ]
    asked += [
        (site, at, Patch(site, only_at(mask, change))) for at, mask in masks.items() for site, change in changes.items()
    ]
    outcomes = patched(judge, target, kept, [patch for *_, patch in asked], budget)
    for (site, position, _), outcome in zip(asked, outcomes, strict=True):
        yield Found(name, site, position, outcome, unpatched)
