"""Pruned and transplanted feed-forward networks: what stays, what is refused, what is told."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from stages.anatomy.activity import activity
from stages.anatomy.encoding import texts_of
from stages.anatomy.ffn import feed_forwards
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.outcomes import Judge
from stages.errors import BadInput
from stages.project import build, main, project, quality
from stages.recipes.projection import ProjectionRecipe
from stages.storage import read_json
from tests import grafts
from tests.families import FAMILIES, tiny, token_ids

DENSE = [family for family in FAMILIES if not any("experts" in name for name, _ in tiny(family).named_modules())]
TEXTS = [*grafts.SENTENCES, "Tea and bread: 12 + 30 = 42."]
IDS = token_ids()


def recipe(**given) -> ProjectionRecipe:
    return ProjectionRecipe.model_validate(
        {"donor": "d", "keep": 1.0, "prompts": 2, "texts": 2, "curve": [0.5]} | given
    )


def logits(model) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def model_of(family: str, seed: int = 0, **given):
    return tiny(family, seed, vocab_size=grafts.VOCABULARY, **given)


def projected(given: ProjectionRecipe, target, donor):
    return project(given, target, donor, (grafts.bpe(), grafts.bpe()), TEXTS)


@pytest.mark.parametrize("family", DENSE)
def test_all_of_a_model_s_own_neurons_change_no_logit(family):
    model, donor, plain = model_of(family), model_of(family), logits(model_of(family))
    projection = projected(recipe(), model, donor)
    judge = Judge(model, [], texts_of(IDS.tolist(), 512))
    curves, figures = quality(recipe(curve=[1.0]), projection, judge, model)
    assert all(each["points"][0][1] < 1e-6 for each in curves.values()) and figures["divergence"] < 1e-6
    assert torch.equal(logits(model), plain), "measuring leaves the model as it was, bit for bit"
    told = build(recipe(), projection, model)
    assert told["kept_magnitude"] == pytest.approx(1) and told["zero_neurons"] == 0
    torch.testing.assert_close(logits(model), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("by", ["activation", "weights", "random"])
def test_the_largest_neurons_are_kept_and_measured_as_they_are_exported(by):
    model, given = model_of("llama"), recipe(keep=20, by=by)
    projection = projected(given, model, model)
    judge = Judge(model_of("llama"), [], texts_of(IDS.tolist(), 512))
    figures = quality(given, projection, judge, model)[1]
    sizes = projection.sizes[by]
    build(given, projection, model)
    assert model.config.intermediate_size == 20
    told = float(judge.outcome(model).divergence.sum() / judge.tokens.sum())
    assert told == pytest.approx(figures["divergence"], rel=1e-4) and told > 0
    whole = feed_forwards(model_of("llama"))
    for layer, network in enumerate(feed_forwards(model)):
        kept = sizes[layer].sort(descending=True).indices[:20].sort().values
        assert torch.equal(network.neurons().up, whole[layer].neurons()[kept].up)


def test_one_pruned_block_is_filled_with_zeros():
    model, plain = model_of("llama"), model_of("llama")
    given = recipe(keep=0.25, layers=["n-2"])
    told = build(given, projected(given, model, model), model)
    assert (told["width"], told["kept"], told["zero_neurons"]) == (64, 16, 48)
    assert not feed_forwards(model)[2].neurons().down[16:].any()
    before = plain.state_dict()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and all("layers.2.mlp" in name for name in moved)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_donor_s_block_of_the_same_width_becomes_the_target_s(family):
    model, donor = model_of(family), model_of(family, seed=1)
    given = recipe(layers=[1], donor_layers=[3])
    build(given, projected(given, model, donor), model)
    ours, theirs = feed_forwards(model)[1].neurons(), feed_forwards(donor)[3].neurons()
    assert torch.equal(ours.up, theirs.up) and torch.equal(ours.down, theirs.down)


def test_neurons_beside_the_target_s_own_leave_those_as_they_are():
    model, donor = model_of("llama"), model_of("llama", seed=1, intermediate_size=40)
    own = feed_forwards(model)[1].neurons()
    given = recipe(keep=8, layers=[1], place="beside", strength=0.5)
    told = build(given, projected(given, model, donor), model)
    now = feed_forwards(model)
    assert told["width"] == 72 == model.config.intermediate_size and told["zero_neurons"] == 3 * 8
    assert torch.equal(now[1].neurons().up[:64], own.up) and now[1].neurons().down[64:].any()
    assert all(not now[layer].neurons().down[64:].any() for layer in (0, 2, 3))


def test_bridges_that_fit_carry_a_donor_of_another_width_over():
    """A donor that is the target in a space of twice the width: its network writes what the target's does."""
    target, donor = model_of("llama"), model_of("llama", hidden_size=64, head_dim=8)
    turn = torch.linalg.qr(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))[0].T
    given = recipe(ridge=1e-9, layers=[2], prompts=4)
    texts = [" ".join(TEXTS[i:] + TEXTS[:i]) for i in range(5)]
    network, like = feed_forwards(target)[2], feed_forwards(donor)[2]
    own = network.neurons()
    like.put(type(own)(own.up @ turn, own.down @ turn, own.gate @ turn if own.gate is not None else None))
    ids = [grafts.bpe()(text).input_ids for text in texts]
    # What enters the donor's network is made the target's, turned
    entering = activity(target, {2: network}, ids)[2].entering.split([len(each) for each in ids])
    queue = [*entering]
    handle = donor.get_submodule("model.layers.2.mlp").register_forward_pre_hook(
        lambda *_: (queue.pop(0)[None] @ turn,)
    )
    projection = project(given, target, donor, (grafts.bpe(), grafts.bpe()), texts)
    handle.remove()
    assert projection.figures["into_r2"] == pytest.approx(1, abs=1e-5)
    assert projection.figures["out_r2"] == pytest.approx(1, abs=1e-5)
    plain = logits(target)
    build(given, projection, target)
    torch.testing.assert_close(logits(target), plain, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("given", "donor", "says"),
    [
        ({"keep": 65}, "llama", "keep at most the donor's 64 neurons a block, got 65"),
        ({}, "gpt2", "is gated SiLUActivation.* as the target's in block 0, got plain NewGELU.*inject a blade"),
        ({"layers": [1, -3]}, "llama", "each of the target's blocks once, got \\[1, 1\\]"),
        ({"layers": [9]}, "llama", "a layer that does not exist"),
        ({}, "mixtral", "a mixture of experts or none"),
    ],
)
def test_what_does_not_fit_is_refused(given, donor, says):
    model = model_of("llama")
    with pytest.raises(BadInput, match=says):
        build(recipe(**given), projected(recipe(**given), model, model_of(donor)), model)
    assert torch.equal(logits(model), logits(model_of("llama")))


@pytest.mark.parametrize(
    "given", [{"keep": 0}, {"keep": 1.5}, {"donor_layers": [1]}, {"prompts": 0, "texts": 0}, {"curve": [0.0]}]
)
def test_settings_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match="keep|donor_layers|prompts|curve"):
        recipe(**given)


def files(root: Path, **given) -> dict[str, Path]:
    """What the stage's command line names."""
    (root / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i} + {i} =", "answer": f" {2 * i}."}) + "\n" for i in range(4))
    )
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    made = recipe(**given).model_dump(mode="json")
    (root / "params.yaml").write_text(yaml.safe_dump({"project": {"p": made}}))
    return {"capability": root / "prompts.jsonl", "text": root / "texts.jsonl", "params": root / "params.yaml"}


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_graft_is_a_plain_model_directory_with_fewer_neurons(family, tmp_path):
    target, given = grafts.target(tmp_path, family), files(tmp_path, keep=24)
    for name in ("out", "again"):
        main("p", target, target, out=tmp_path / name, making=tmp_path / f"{name}.json", **given)
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    out, again = (sorted((tmp_path / name).iterdir()) for name in ("out", "again"))
    assert [p.read_bytes() for p in out] == [p.read_bytes() for p in again]
    told = read_json(tmp_path / "out.json")
    each = 32 * (3 if family == "llama" else 2) + (family == "opt")
    assert told["way"] == "project" and told["parameters"] == {"moved": 0, "added": -4 * 40 * each}
    assert told["figures"]["kept"] == 24 and len(told["curves"]) == 3
    graft, plain = load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits(graft), logits(plain.eval()))
    assert len(load_tokenizer(tmp_path / "out")) == grafts.VOCABULARY


def test_a_donor_of_another_width_and_tokenizer_goes_beside(tmp_path):
    target, donor = grafts.target(tmp_path), grafts.characters(tmp_path)
    given = files(tmp_path, keep=16, layers=[1, 2], donor_layers=[0, 3], place="beside", texts=3)
    main("p", target, donor, out=tmp_path / "out", making=tmp_path / "out.json", **given)
    told = read_json(tmp_path / "out.json")
    assert told["parameters"] == {"moved": 2 * 16 * 3 * 32, "added": 4 * 16 * 3 * 32}
    assert told["figures"]["rows_fit"] > told["figures"]["rows_held_out"] > 0
    assert load(tmp_path / "out").config.intermediate_size == 80
