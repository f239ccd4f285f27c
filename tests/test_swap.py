"""A mixture with a donor's experts, from a recipe to a model directory with its figures."""

from pathlib import Path

import pytest
import torch
import yaml

from stages.anatomy.experts import implanted, taken
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.routing import routed
from stages.errors import BadInput
from stages.recipes.router import questions
from stages.storage import read_json
from stages.swap import main
from tests.families import MIXTURES, saved, tiny, token_ids

PLACES = {"layers.1.mlp.experts.2": "layers.3.mlp.experts.0"}
RECIPE = {"target": "moe", "donor": "other", "places": PLACES, "test": 4}


def swap(root: Path, target: Path, donor: Path, **changed) -> tuple[Path, dict]:
    """The graft, and what its making tells."""
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"swap": {"variant": RECIPE | changed}}))
    main("variant", target, donor, root / "graft", root / "making.json", root / "params.yaml")
    return root / "graft", read_json(root / "making.json")


def logits(model) -> torch.Tensor:
    return model(input_ids=token_ids(), use_cache=False).logits


@pytest.mark.parametrize("family", MIXTURES)
def test_the_written_mixture_has_the_donors_expert_and_is_otherwise_the_target(tmp_path, family):
    receiving, giving = tiny(family).bfloat16(), tiny(family, seed=1).bfloat16()
    target, donor = saved(receiving, tmp_path / "target"), saved(giving, tmp_path / "donor")
    path, told = swap(tmp_path / "made", target, donor)
    graft, model = load(path), load(target)
    with implanted(model, {"layers.1.mlp.experts.2": taken(load(donor), "layers.3.mlp.experts.0")}):
        assert torch.equal(logits(graft), logits(model))
    assert not torch.allclose(logits(graft), logits(model), atol=1e-3)
    expert = sum(p[0].numel() for p in model.base_model.layers[1].mlp.experts.parameters())
    assert told["parameters"] == {"moved": expert, "added": 0}
    assert told["figures"]["divergence_letters"] > 1e-4


@pytest.mark.parametrize("family", MIXTURES)
def test_its_own_expert_in_its_place_is_the_target(tmp_path, family):
    target = saved(tiny(family).bfloat16(), tmp_path / "target")
    site = "layers.1.mlp.experts.2"
    path, told = swap(tmp_path / "made", target, target, places={site: site})
    assert torch.equal(logits(load(path)), logits(load(target)))
    for domain in ("letters", "arithmetic"):
        assert told["figures"][f"divergence_{domain}"] == pytest.approx(0, abs=1e-6)
        assert told["figures"][f"right_{domain}"] == told["figures"][f"right_{domain}_of_target"]


def test_a_dense_donors_mlp_becomes_an_expert(tmp_path):
    target = saved(tiny("mixtral").bfloat16(), tmp_path / "target")
    donor = saved(tiny("llama", intermediate_size=40).bfloat16(), tmp_path / "donor")
    path, told = swap(tmp_path / "made", target, donor, places={"layers.0.mlp.experts.1": "layers.2.mlp"})
    own, given = taken(load(path), "layers.0.mlp.experts.1"), taken(load(donor), "layers.2.mlp")
    assert torch.equal(own.gate[:40], given.gate) and torch.equal(own.down[:, :40], given.down)
    assert not own.down[:, 40:].any()
    assert told["parameters"]["moved"] == 3 * 40 * 32


def test_experts_are_chosen_by_where_the_target_sends_the_tokens_of_two_domains(tmp_path):
    target = saved(tiny("mixtral").bfloat16(), tmp_path / "target")
    donor = saved(tiny("mixtral", seed=1).bfloat16(), tmp_path / "donor")
    choice = {"toward": "letters", "away": "arithmetic", "experts": 1, "calibration": 4}
    path, told = swap(tmp_path / "made", target, donor, places={}, choice=choice)
    model, tokenizer = load(target), load_tokenizer(target)
    pools = [routed(model, questions(tokenizer, name, "calibration", 4).whole) for name in ("letters", "arithmetic")]
    wanted = {(layer, row.index(True)) for layer, row in enumerate(_most(*pools))}
    graft, giving = load(path), load(donor)
    for layer in range(len(pools[0].mass[0])):
        for expert in range(pools[0].mass.shape[2]):
            site = f"layers.{layer}.mlp.experts.{expert}"
            own = giving if (layer, expert) in wanted else model
            assert torch.equal(taken(graft, site).down, taken(own, site).down)
    assert told["parameters"]["moved"] == len(wanted) * sum(
        part[0].numel() for part in model.base_model.layers[0].mlp.experts.parameters()
    )


def _most(inside, outside) -> list[list[bool]]:
    difference = inside.mean() - outside.mean()
    return (difference == difference.amax(1, keepdim=True)).tolist()


def test_places_and_a_choice_together_are_refused(tmp_path):
    target = saved(tiny("mixtral"), tmp_path / "target")
    choice = {"toward": "letters", "away": "arithmetic", "experts": 1}
    with pytest.raises(BadInput, match="expected either places or choice, got both or none"):
        swap(tmp_path / "made", target, target, choice=choice)


def test_what_does_not_fit_is_refused_in_one_sentence_and_nothing_is_written(tmp_path):
    mixture, dense = saved(tiny("mixtral"), tmp_path / "mixture"), saved(tiny("llama"), tmp_path / "dense")
    narrow = saved(tiny("mixtral", hidden_size=16), tmp_path / "narrow")
    wrong = [
        (dense, mixture, {}, "Expected a mixture of experts, got LlamaForCausalLM, whose MLPs are dense"),
        (mixture, narrow, {}, "of width 32 .*, got one of width 16; take a donor of the target's width"),
        (mixture, mixture, {"places": {"layers.1.mlp.experts.9": "layers.0.mlp.experts.0"}}, "experts.9"),
        (mixture, dense, {}, r"got 'layers\.3\.mlp\.experts\.0'"),
        (mixture, mixture, {"places": {}}, "places"),
    ]
    for target, donor, changed, match in wrong:
        with pytest.raises(BadInput, match=match):
            swap(tmp_path / "refused", target, donor, **changed)
    assert [path.name for path in (tmp_path / "refused").iterdir()] == ["params.yaml"]
