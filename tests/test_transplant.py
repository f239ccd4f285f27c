"""Which modules are copied, and how far."""

import json

import pandas as pd
import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.loading import load
from stages.anatomy.modules import linear_paths, weighted_paths
from stages.errors import BadInput
from stages.recipes.weights import WeightsRecipe, chosen, dealt, point
from stages.storage import read_json
from stages.transplant import main
from tests import grafts
from tests.families import FAMILIES, tiny

SIZES = {f"layers.{i}.{part}": 8 if "mlp" in part else 4 for i in range(3) for part in ("self_attn.q", "mlp.up")}
STRENGTHS = [{"layers.0.self_attn.q": 1.0}, {"layers.0.mlp.up": 0.25, "layers.2.mlp.up": 0.5}, {"layers.1.mlp.up": 0.9}]


def recipe(**given) -> WeightsRecipe:
    return WeightsRecipe.model_validate({"donor": "d", "select": "frontier"} | given)


def frontier(*rows: tuple[str, float, float]) -> pd.DataFrame:
    """Method, mean log-likelihood of the answers and divergence of each row."""
    made = [{"id": i, "method": m, "capability": c, "divergence": d, "seed": None} for i, (m, c, d) in enumerate(rows)]
    return pd.DataFrame(made).astype({"seed": "Int64"})


POINTS = frontier(("strengths", -0.1, 0.5), ("strengths", -0.6, 0.015), ("subset", -0.5, 0.019))


def test_the_likeliest_answers_within_the_ratio_are_taken_else_the_least_harm():
    assert point(POINTS, 1.02)["id"] == 2
    assert point(POINTS, 1.017)["id"] == 1
    assert point(POINTS, 2.0)["id"] == 0
    assert point(POINTS, 1.001)["id"] == 1
    better = frontier(("random subset", 0.0, 0.0), ("gain", 0.0, 0.0), ("strengths", -9.0, 0.1))
    assert point(better, 1.02)["id"] == 2, "no control and no foil is ever taken"
    json.dumps(point(POINTS, 1.02), allow_nan=False)


def test_the_frontier_s_strengths_are_taken_as_they_are():
    taken, row = chosen(recipe(ratio=1.017), SIZES, POINTS, STRENGTHS)
    assert taken == STRENGTHS[1] and row["method"] == "strengths"


def test_chance_moves_as_many_parameters_as_far_and_is_the_same_for_a_seed():
    drawn = [chosen(recipe(select="random", seed=s, ratio=1.017), SIZES, POINTS, STRENGTHS)[0] for s in range(40)]
    for each in drawn:
        assert sorted((SIZES[name], value) for name, value in each.items()) == [(8, 0.25), (8, 0.5)]
    assert {name for each in drawn for name in each} == {name for name, size in SIZES.items() if size == 8}
    assert drawn[0] == chosen(recipe(select="random", seed=0, ratio=1.017), SIZES, POINTS, STRENGTHS)[0]
    assert any(each != drawn[0] for each in drawn)


def test_dealing_keeps_what_each_size_has():
    strengths, sizes = torch.arange(6.0), torch.tensor([5, 7, 5, 7, 5, 1])
    found = dealt(strengths, sizes, "a")
    for size in (1, 5, 7):
        assert sorted(found[sizes == size].tolist()) == strengths[sizes == size].tolist()
    assert strengths.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["layers.1"], ["layers.1.self_attn.q", "layers.1.mlp.up"]),
        (["layers.*.mlp"], [f"layers.{i}.mlp.up" for i in range(3)]),
        (["layers.*.self_attn.q", "layers.2"], [name for name in SIZES if "attn" in name or "2" in name]),
        (["layers.*"], list(SIZES)),
    ],
)
def test_blocks_parts_and_modules_can_be_named(patterns, names):
    taken, row = chosen(recipe(select="modules", modules=patterns, strength=0.4), SIZES, POINTS, STRENGTHS)
    assert taken == dict.fromkeys(names, 0.4) and row == {}


def test_a_pattern_of_nothing_and_a_frontier_of_another_model_are_refused():
    with pytest.raises(BadInput, match="got 'layers.7', which means none of the model's"):
        chosen(recipe(select="modules", modules=["layers.7"], strength=0.4), SIZES, POINTS, STRENGTHS)
    with pytest.raises(BadInput, match="this donor's 6 modules, got some of layers.9.x; select with this donor first"):
        chosen(recipe(), SIZES, POINTS, [{"layers.9.x": 1.0}] * 3)


@pytest.mark.parametrize(
    "given",
    [
        {"strength": 0.5}, {"modules": ["layers.1"]}, {"select": "modules", "modules": ["layers.1"]},
        {"select": "modules", "strength": 0.5}, {"select": "modules", "modules": ["layers.1"], "strength": 1.1},
        {"ratio": 1.0},
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(given):
    with pytest.raises(ValueError, match="strength|ratio"):
        recipe(**given)


def selected(root, names: list[str], strength: float):
    """A selection with one point: these modules at one strength."""
    frontier(("strengths", -1.0, 0.01)).to_parquet(root / "frontier.parquet")
    (root / "strengths.json").write_text(json.dumps([dict.fromkeys(names, strength)]))
    (root / "descent.json").write_text('{"channels": null}')
    (root / "params.yaml").write_text(
        "transplant: {w: {donor: d, select: frontier}, r: {donor: d, control_for: w, select: random}}"
    )
    return root


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "opt"])
def test_the_graft_is_the_target_with_chosen_modules_moved_and_nothing_else(family, tmp_path):
    receiving, giving = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    names = list(linear_paths(tiny(family)))[1::3]
    selected(tmp_path, names, 0.5)
    main("w", receiving, giving, tmp_path, tmp_path / "out", tmp_path / "params.yaml")
    graft, target, donor = (load(path) for path in (tmp_path / "out", receiving, giving))
    given = donor.state_dict()
    inside = [f"{weighted_paths(target)[name]}." for name in names]
    for name, before in target.state_dict().items():
        moved = before + 0.5 * (given[name] - before) if any(name.startswith(path) for path in inside) else before
        assert torch.equal(graft.state_dict()[name], moved.to(torch.bfloat16).float()), name


def test_the_graft_is_a_plain_model_directory_with_its_selection(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    every = list(weighted_paths(tiny("llama")))
    selected(tmp_path, [name for name in every if "norm" not in name], 1.0)
    for name in ("out", "again"):
        main("w", receiving, giving, tmp_path, tmp_path / name, tmp_path / "params.yaml")
    out = tmp_path / "out"
    told = read_json(out / "transplant.json")
    assert told["point"]["method"] == "strengths" and told["donor"] == "d"
    assert set(told["strengths"]) == {name for name in every if "norm" not in name}
    assert all(p.read_bytes() == (tmp_path / "again" / p.name).read_bytes() for p in out.iterdir())
    assert "auto_map" not in read_json(out / "config.json") and not list(out.glob("*.py"))
    graft, target, donor = load(out), load(receiving), load(giving)
    for ours, theirs in zip(blocks(graft), blocks(donor), strict=True):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert torch.equal(graft.get_input_embeddings().weight, target.get_input_embeddings().weight)
