"""Which blocks are copied, and how far."""

import pandas as pd
import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.recipes.weights import WeightsRecipe, chosen, transplant
from stages.storage import read_json
from stages.transplant import main
from tests import grafts
from tests.families import FAMILIES, tiny


def recipe(**given) -> WeightsRecipe:
    return WeightsRecipe.model_validate({"donor": "d", "select": "evidence", "blocks": 2, "strength": 0.5} | given)


def trace(lost: list[float], harm: list[float]) -> pd.DataFrame:
    """`lost`: capability that the donor loses without the block; `harm`: divergence that the block brings."""
    out = [{"intervention": "weights_out", "layer": i, "capability": -v, "retention": 9.0} for i, v in enumerate(lost)]
    into = [{"intervention": "weights_in", "layer": i, "capability": 9.0, "retention": v} for i, v in enumerate(harm)]
    other = [{"intervention": "donor", "layer": None, "capability": 5.0, "retention": 1.0}]
    return pd.DataFrame(other + into + out)


def test_evidence_takes_the_most_capability_for_the_least_harm_in_order_of_layers():
    evidence = trace([8.0, 1.0, 3.0, 2.0], [4.0, 0.1, 3.0, 0.5])  # worth 2, 10, 1, 4
    assert chosen(recipe(blocks=1), 4, evidence) == [1]
    assert chosen(recipe(blocks=2), 4, evidence) == [1, 3]
    assert chosen(recipe(blocks=3), 4, evidence) == [0, 1, 3]
    assert chosen(recipe(blocks=4), 4, evidence) == [0, 1, 2, 3]
    assert chosen(recipe(blocks=2), 4, evidence.sample(frac=1, random_state=0)) == [1, 3]


def test_a_block_without_harm_is_no_division_by_nothing():
    assert chosen(recipe(blocks=1), 2, trace([0.5, 1.0], [0.0, 3.0])) == [0]
    assert chosen(recipe(blocks=1), 2, trace([-0.5, 1.0], [0.0, 3.0])) == [1]


def test_chance_is_blind_to_the_evidence_and_the_same_for_a_seed():
    drawn = [chosen(recipe(select="random", blocks=3, seed=seed), 10, trace([1], [1])) for seed in range(30)]
    assert all(each == sorted(set(each)) and len(each) == 3 for each in drawn)
    assert drawn[0] == chosen(recipe(select="random", blocks=3, seed=0), 10, trace([2, 3], [4, 5]))
    assert {layer for each in drawn for layer in each} == set(range(10))


def test_more_blocks_than_there_are_and_a_trace_of_another_model_are_refused():
    with pytest.raises(BadInput, match="at most 4 blocks to transplant, which is all, got 5; lower it"):
        chosen(recipe(blocks=5, select="random"), 4, trace([1] * 4, [1] * 4))
    with pytest.raises(BadInput, match="Expected a trace of 4 blocks, got 3; trace this donor first"):
        chosen(recipe(), 4, trace([1] * 3, [1] * 3))


@pytest.mark.parametrize("strength", [0.0, 1.1, -1])
def test_strength_lies_above_zero_and_up_to_one(strength):
    with pytest.raises(ValueError, match="strength"):
        recipe(strength=strength)


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_blocks_move_by_lambda_and_nothing_else_moves(family):
    target, donor, before = tiny(family), tiny(family, seed=1), tiny(family).state_dict()
    given = donor.state_dict()
    transplant(target, donor, [1, 3], 0.3)
    inside = {id(p) for layer in (1, 3) for p in blocks(target)[layer].parameters()}
    names = {name for name, p in target.named_parameters() if id(p) in inside}
    assert names
    for name, value in target.state_dict().items():
        expected = before[name].lerp(given[name], 0.3) if name in names else before[name]
        assert torch.equal(value, expected)
        if name in names:
            assert torch.allclose(value, before[name] + 0.3 * (given[name] - before[name]), atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_all_blocks_at_full_strength_are_the_donors(family):
    target, donor = tiny(family), tiny(family, seed=1)
    transplant(target, donor, [0, 1, 2, 3], 1.0)
    for ours, theirs in zip(blocks(target), blocks(donor), strict=True):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("donor", [tiny("llama", hidden_size=16), tiny("gpt2"), tiny("llama", num_hidden_layers=2)])
def test_weights_of_another_shape_are_refused(donor):
    with pytest.raises(BadInput, match="Expected block 3 of the donor to have the target's weights.*use a blade"):
        transplant(tiny("llama"), donor, [3], 0.5)


def test_the_graft_is_a_plain_model_directory_with_its_selection(tmp_path):
    trace([4, 3, 2, 1], [1, 1, 1, 1]).to_parquet(tmp_path / "trace.parquet")
    (tmp_path / "params.yaml").write_text("transplant: {w: {donor: d, select: evidence, blocks: 2, strength: 1.0}}")
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    for name in ("out", "again"):
        main("w", receiving, giving, tmp_path / "trace.parquet", tmp_path / name, tmp_path / "params.yaml")
    out = tmp_path / "out"
    assert read_json(out / "transplant.json") == {"blocks": [0, 1], "strength": 1.0, "donor": "d"}
    assert all(p.read_bytes() == (tmp_path / "again" / p.name).read_bytes() for p in out.iterdir())
    assert "auto_map" not in read_json(out / "config.json") and not list(out.glob("*.py"))
    graft, target, donor = load(out), load(receiving), load(giving)
    sources = [donor, donor, target, target]
    for layer, source in enumerate(sources):
        own = blocks(source)[layer].state_dict()
        assert all(torch.equal(value, own[name]) for name, value in blocks(graft)[layer].state_dict().items())
