"""Adapters carried to another width: exact between models that are one up to a change of basis, refused where not."""

import pytest
import torch

from stages.anatomy.adapters import fuse
from stages.anatomy.modules import linear_paths
from stages.bridging import carried, counterparts
from stages.errors import BadInput
from stages.maths.lowrank import LowRank
from tests.families import tiny, tokenizer
from tests.maths.rows import normal

TEXTS = [
    f"{i * 7919 % 1000} and {i * 104729 % 997}: a text, number {i}, of some other words {i * i}." for i in range(30)
]
BOTH = tokenizer(), tokenizer()
IDS = torch.tensor([tokenizer()("What is 12 + 30? It is 42.").input_ids])


def changes(model, scale: float = 0.3) -> dict[str, LowRank]:
    """A random change of rank 2 of each linear module."""
    found = {}
    for number, path in enumerate(linear_paths(model).values()):
        out, width = model.get_submodule(path).weight.shape
        found[path] = LowRank(scale * normal(number, out, 2).float(), scale * normal(number + 99, 2, width).float())
    return found


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def test_between_twins_the_change_itself_arrives_as_far_as_the_texts_reach():
    """A map between a space and itself is the identity on what occurs there, and these modules' outputs occur in all
    directions."""
    target, donor = tiny("llama"), tiny("llama")
    full = ("q_proj", "o_proj", "down_proj")
    given = {path: change for path, change in changes(donor, 0.1).items() if path.endswith(full)}
    moved = carried(given, target, donor, BOTH, TEXTS, strength=1e-6)
    assert moved.changes.keys() == given.keys()
    assert min(moved.into.values()) > 0.999 and min(moved.out.values()) > 0.999
    before = logits(target)
    fuse(target, moved.changes)
    fuse(donor, given)
    ours, theirs = logits(target) - before, logits(donor) - before
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.95
    assert float(ours.norm() / theirs.norm()) == pytest.approx(1, abs=0.1)


def test_another_depth_and_width_takes_each_block_s_change_from_the_nearest_depth():
    target, donor = tiny("llama", 1, hidden_size=24, num_hidden_layers=7), tiny("llama")
    found = counterparts(target, donor, set(changes(donor)))
    layers = {int(ours.split(".")[2]): int(theirs.split(".")[2]) for ours, theirs in found.items()}
    assert layers == {0: 0, 1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3}
    assert all(ours.split(".", 3)[3] == theirs.split(".", 3)[3] for ours, theirs in found.items())
    moved = carried(changes(donor), target, donor, BOTH, TEXTS[:8], strength=0.05)
    for path, change in moved.changes.items():
        assert change.dense.shape == target.get_submodule(path).weight.shape and change.rank == 2
    assert moved.into.keys() == moved.out.keys() == found.keys()
    fuse(target, moved.changes)
    assert logits(target).isfinite().all()


def test_maps_between_strangers_are_told_to_fit_worse_than_between_twins():
    twin, stranger = (carried(changes(tiny("llama")), target, tiny("llama"), BOTH, TEXTS[:12], 0.05)
                      for target in (tiny("llama"), tiny("llama", 1, hidden_size=24)))  # fmt: skip
    means = [sum(each.out.values()) / len(each.out) for each in (twin, stranger)]
    assert means[0] > means[1] + 0.1


def test_another_tokenizer_is_paired_by_characters():
    target, donor = tiny("llama"), tiny("llama", hidden_size=24)
    coarse = tokenizer(r"\d|[^\d]{1,3}")
    moved = carried(changes(donor), target, donor, (coarse, tokenizer()), TEXTS[:10], strength=0.1)
    assert all(change.dense.isfinite().all() for change in moved.changes.values())


def test_models_that_cut_their_blocks_otherwise_and_too_few_texts_are_refused():
    with pytest.raises(BadInput, match="Expected the target to have the modules that the adapter changes, got no"):
        counterparts(tiny("phi3"), tiny("llama"), set(changes(tiny("llama"))))
    with pytest.raises(BadInput, match="got no lm_head"):
        counterparts(tiny("llama"), tiny("llama"), {"lm_head"})
    with pytest.raises(BadInput, match="Expected two texts or more"):
        carried(changes(tiny("llama")), tiny("llama"), tiny("llama"), BOTH, TEXTS[:1], 0.1)
