"""Which modules are copied, and how far."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from stages.anatomy.blocks import blocks
from stages.anatomy.channels import alike
from stages.anatomy.channels import chosen as named
from stages.anatomy.loading import load, load_config
from stages.anatomy.modules import linear_paths, weighted_paths
from stages.errors import BadInput
from stages.recipes.weights import WeightsRecipe, chosen, dealt, point, redrawn
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
    plain = {"seed": None, "size": 3, "strength": 0.5, "match": 0.25, "prompts": 20, "texts": 8}
    made = [plain | {"id": i, "method": m, "capability": c, "divergence": d} for i, (m, c, d) in enumerate(rows)]
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


def test_a_frontier_of_another_model_is_refused():
    with pytest.raises(BadInput, match="this donor's 6 modules, got some of layers.9.x; select with this donor first"):
        chosen(recipe(), SIZES, POINTS, [{"layers.9.x": 1.0}] * 3)


@pytest.mark.parametrize(
    "given",
    [
        {"drawn": True}, {"sweep": {}}, {"strength": 0.5}, {"modules": ["layers.1"]},
        {"select": "modules", "modules": ["layers.1"]},
        {"select": "modules", "strength": 0.5}, {"select": "modules", "modules": ["layers.1"], "strength": 1.1},
        {"ratio": 1.0}, {"select": "modules", "modules": ["layers.1"], "strength": 1.0, "sweep": {"shares": [2.0]}},
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(given):
    with pytest.raises(ValueError, match="strength|ratio|select: modules|above 0"):
        recipe(**given)


def built(variant: str, receiving: Path, giving: Path, root: Path, out: Path) -> dict:
    """What the stage tells of the graft that it wrote to `out`."""
    items = [root / f"{name}.jsonl" for name in ("capability", "text")]
    main(variant, receiving, giving, root, out, root / "making.json", items[0], items[1], root / "params.yaml")
    return read_json(root / "making.json")


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
    built("w", receiving, giving, tmp_path, tmp_path / "out")
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
        built("w", receiving, giving, tmp_path, tmp_path / name)
    out = tmp_path / "out"
    making = read_json(tmp_path / "making.json")
    assert making["figures"]["selection_match"] == 0.25 and making["figures"]["components"] > 0
    assert making["curves"]["match by strengths"]["points"] == [[3, 0.25]]
    told = read_json(out / "transplant.json")
    assert told["point"]["method"] == "strengths" and told["donor"] == "d"
    assert set(told["strengths"]) == {name for name in every if "norm" not in name}
    assert all(p.read_bytes() == (tmp_path / "again" / p.name).read_bytes() for p in out.iterdir())
    assert "auto_map" not in read_json(out / "config.json") and not list(out.glob("*.py"))
    graft, target, donor = load(out), load(receiving), load(giving)
    for ours, theirs in zip(blocks(graft), blocks(donor), strict=True):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert torch.equal(graft.get_input_embeddings().weight, target.get_input_embeddings().weight)


def describe(root: Path, **variants: dict) -> None:
    """params.yaml with these variants, and something to sweep on."""
    section = {name: {"donor": "d", "select": "modules"} | each for name, each in variants.items()}
    (root / "params.yaml").write_text(yaml.safe_dump({"transplant": section}))
    rows = [{"prompt": f"What is {i} + 1?", "answer": f" {i + 1}"} for i in range(6)]
    (root / "capability.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in grafts.SENTENCES))


PARTS = {
    "heads": ["layers.0.self_attn.heads.1", "layers.*.self_attn.heads.3"],
    "parts": ["layers.1.self_attn", "layers.2.mlp"],
    "blocks": ["layers.0", "layers.3"],
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "mixtral", "opt", "bloom"])
def test_components_that_are_named_move_and_nothing_else(family, kind, tmp_path):
    receiving, giving = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    describe(tmp_path, v={"modules": PARTS[kind], "strength": 0.25})
    told = built("v", receiving, giving, tmp_path, tmp_path / "out")
    graft, target, donor = (dict(load(path).named_parameters()) for path in (tmp_path / "out", receiving, giving))
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in target.items()}
    for pieces in named(tiny(family, vocab_size=320), PARTS[kind]).values():
        for p in pieces:
            masks[p.parameter].index_fill_(
                p.axis, torch.tensor(p.index or range(target[p.parameter].shape[p.axis])), True
            )
    for name, before in target.items():
        moved = torch.where(masks[name], before.lerp(donor[name], 0.25), before)
        assert torch.equal(graft[name], moved.to(torch.bfloat16).float()), name
    assert told["parameters"]["moved"] == sum(int((graft[name] != p).sum()) for name, p in target.items())
    assert 0 < sum(int(mask.sum()) for mask in masks.values()) < sum(p.numel() for p in target.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transplant_from_itself_changes_no_logit(family, tmp_path):
    receiving = grafts.target(tmp_path, family)
    describe(tmp_path, v={"modules": ["layers.1", "layers.*.self_attn.heads.2"], "strength": 0.6})
    told = built("v", receiving, receiving, tmp_path, tmp_path / "out")
    ids = torch.tensor([[5, 60, 7, 91, 3, 44]])
    with torch.no_grad():
        assert torch.equal(*(load(path)(input_ids=ids).logits for path in (receiving, tmp_path / "out")))
    assert told["parameters"] == {"moved": 0, "added": 0} and told["figures"]["relative_move"] == 0


def test_the_control_takes_as_many_of_each_form_elsewhere():
    model = tiny("llama")
    sites = list(named(model, ["layers.1", "layers.2.self_attn.heads.*", "layers.0.mlp.neurons.0:16"]))
    drawn = [redrawn(sites, alike(model, sites), seed) for seed in range(20)]
    for found in drawn:
        assert len(set(found)) == len(sites) == 6
        assert sum(".heads." in site for site in found) == 4 and sum(site.count(".") == 1 for site in found) == 1
        assert sum(site.endswith("mlp.neurons.0:16") for site in found) == 1
    assert drawn[0] == redrawn(sites, alike(model, sites), 0) and len({tuple(found) for found in drawn}) > 10


def test_a_sweep_tells_more_and_stronger_components_apart_and_leaves_the_graft_as_it_is(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    plain = {"modules": ["layers.*"], "strength": 1.0}
    sweep = {"shares": [0.25, 1.0], "strengths": [0.1, 1.0], "prompts": 4, "texts": 3, "tokens": 20}
    describe(tmp_path, plain=plain, swept=plain | {"sweep": sweep})
    built("plain", receiving, giving, tmp_path, tmp_path / "plain")
    told = built("swept", receiving, giving, tmp_path, tmp_path / "swept")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "swept")]
    assert files[0] == files[1]
    weak, strong = (dict(told["curves"][f"divergence at strength {s}"]["points"]) for s in ("0.1", "1"))
    assert list(weak) == [1, 4] and weak[1] < weak[4] < strong[4] and strong[1] < strong[4]
    assert told["figures"]["sweep_prompts"] == 4 and told["figures"]["sweep_tokens"] > 30
    assert {y for _, y in told["curves"]["answers right at strength 1"]["points"]} <= {0, 0.25, 0.5, 0.75, 1}


@pytest.mark.parametrize(
    "given",
    [{"num_attention_heads": 8}, {"num_key_value_heads": 4}, {"hidden_size": 16}, {"num_hidden_layers": 3},
     {"intermediate_size": 48}],
)  # fmt: skip
def test_a_donor_of_another_geometry_is_refused_before_any_work(given, tmp_path):
    receiving = grafts.target(tmp_path)
    other = grafts.directory(tiny("llama", 1, vocab_size=320, **given), grafts.bpe(), tmp_path / "other")
    describe(tmp_path, v={"modules": ["layers.0"], "strength": 1.0})
    key, value = next(iter(given.items()))
    wanted = getattr(load_config(receiving), key)
    with pytest.raises(BadInput, match=f"Expected donor 'd' to have the target's {key} {wanted}, got {value}; take"):
        built("v", receiving, other, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
