"""Exact outcomes of each kind of intervention on the target's states, site by site."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from transformers import PreTrainedModel

from stages.anatomy.contrast import Contrast
from stages.anatomy.names import layer_of
from stages.anatomy.outcomes import Judge, Outcome, states_at
from stages.anatomy.patching import Patch, mean_states, patched, to_states, to_vector

Kind = Literal["donor", "zero", "mean", "clean"]
"""What stands in place of the target's states: the donor's, zero, their mean over the texts, or, in the run of a
corrupted prompt, the states of the clean one."""


def intervened(
    kinds: Collection[Kind],
    sites: Sequence[str],
    target: PreTrainedModel,
    donor: PreTrainedModel,
    judge: Judge,
    kept: Sequence[Sequence[torch.Tensor]],
    pairs: Contrast | None,
    budget: int,
) -> Iterator[tuple[str, str, Outcome, Outcome]]:
    """The name of each intervention, its site, its outcome and that of the unpatched target.

    `donor_states` (at parts of blocks only: at whole blocks nothing need be replaced inside a pass), `zero` and `mean`
    run on the judge's items, from the target's own states `kept` [layer][batch]; `clean_states` on `pairs`, where the
    unpatched target reads the corrupted prompts. Passes read at most `budget` tokens, or one batch.
    """
    made: dict[str, list[Patch]] = {}
    if "donor" in kinds:
        parts = [site for site in sites if site != f"layers.{layer_of(site)}"]
        theirs = states_at(donor, judge.batches, parts)
        made["donor_states"] = [Patch(site, to_states(theirs[site])) for site in parts]
    if "zero" in kinds:
        made["zero"] = [Patch(site, to_vector(0.0)) for site in sites]
    if "mean" in kinds:
        means = mean_states(target, judge.texts, sites)
        made["mean"] = [Patch(site, to_vector(means[site])) for site in sites]
    for name, patches in made.items():
        yield from _outcomes(name, judge, target, kept, patches, budget)
    if "clean" in kinds and pairs:
        corrupted = Judge(target, pairs.corrupted, [])
        clean = states_at(target, pairs.clean, sites)
        patches = [Patch(site, to_states(clean[site])) for site in sites]
        yield from _outcomes("clean_states", corrupted, target, corrupted.states(target), patches, budget)


def _outcomes(
    name: str,
    judge: Judge,
    target: PreTrainedModel,
    kept: Sequence[Sequence[torch.Tensor]],
    patches: Sequence[Patch],
    budget: int,
) -> Iterator[tuple[str, str, Outcome, Outcome]]:
    unpatched = judge.outcome(target, len(kept) - 1, kept[-1])
    for patch, outcome in zip(patches, patched(judge, target, kept, patches, budget), strict=True):
        yield name, patch.site, outcome, unpatched
