"""A donor's module that works inside the target between two bridges."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from stages.anatomy.hooks import reading
from stages.anatomy.loading import load
from stages.assembly import write_graft
from stages.errors import BadInput
from stages.implant import main
from stages.kept import Site, keep, learning, logits
from stages.organ import cut_out
from stages.recipes.implant import ImplantRecipe, host, implant
from stages.storage import read_json, write_jsonl
from stages.training import train
from tests import grafts
from tests.families import FAMILIES, MIXTURES, tiny

ROWS = [grafts.bpe()(text).input_ids for text in grafts.SENTENCES[:3]]
PARTS = ("block", "self_attn", "mlp")
GREEDY = {"do_sample": False, "max_new_tokens": 7, "pad_token_id": 0}


def recipe(**given) -> ImplantRecipe:
    settings = {"donor": "donor", "layer": 2, "donor_layer": 1, "gate": "token", "bridge": "linear"} | given
    if settings["gate"] not in ("identity", "closed") or settings["bridge"] != "identity":
        settings["training"] = grafts.UNTRAINED | settings.get("training", {})
    return ImplantRecipe.model_validate(settings)


def made(receiving: Path, giving: Path, **given):
    into = host(receiving, given.get("layer", 2))
    return into, *implant(recipe(**given), giving, into)


def stirred(part: torch.nn.Module, scale: float = 0.3) -> None:
    """Draws what learns anew, in values that bfloat16 holds."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator) * scale
                parameter.copy_(drawn.to(torch.bfloat16))


def built(root: Path, receiving: Path, giving: Path, **given):
    """A graft, in float32, whose bridges and gate are stirred."""
    into, part, spec = made(receiving, giving, **given)
    stirred(part)
    write_graft(into.model, into.tokenizer, [], [(part, spec)], root / "graft")
    return grafts.loaded(root / "graft")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_organ_gives_what_the_part_gives_inside_its_donor(family):
    donor, layer = tiny(family), 2
    ids = torch.arange(3, 22)[None]
    sites = [f"layers.{layer - 1}", *(f"layers.{layer}" + ("" if p == "block" else f".{p}") for p in PARTS)]
    with torch.no_grad(), reading(donor, sites) as states:
        donor(input_ids=ids, use_cache=False)
    entering = states[sites[0]]
    for part, site in zip(PARTS, sites[1:], strict=True):
        organ = cut_out(donor, layer, part).organ
        expected = states[site] - entering if part == "block" else states[site]
        assert torch.allclose(organ(entering, torch.ones_like(ids), None), expected, atol=1e-4, rtol=1e-4)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in organ.modules())


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_gives_for_the_tokens_routed_to_it_what_it_gives_in_its_mixture(family):
    donor = tiny(family)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad(), reading(donor, ["layers.0", "layers.1.mlp.experts.1"]) as states:
        donor(input_ids=ids, use_cache=False)
    expected = states["layers.1.mlp.experts.1"]
    there = expected.any(-1)
    assert 0 < there.sum() < there.numel()
    organ = cut_out(donor, 1, "mlp.experts.1").organ
    found = organ(states["layers.0"], torch.ones_like(ids), None)
    assert torch.allclose(found[there], expected[there], atol=1e-4, rtol=1e-4)
    assert found[~there].any(-1).all()
    assert len(organ.module().gate_up_proj) == 1


@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_keeps_its_own_kind_of_attention(layer):
    donor = tiny("gemma2")
    organ = cut_out(donor, layer, "block").organ
    assert organ.donor.config.layer_types == [donor.config.layer_types[layer]]
    ids = torch.arange(3, 23)[None]
    states = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(0))
    moved = states.clone()
    moved[:, 0] += 1
    mask = torch.ones_like(ids)
    same = torch.isclose(organ(states, mask, None), organ(moved, mask, None), atol=1e-6).all(-1)[0]
    assert same[6:].all() if layer == 0 else not same[6:].any()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_module_between_identity_bridges_changes_no_logit(tmp_path, family, part):
    receiving = grafts.target(tmp_path, family)
    into, own, spec = made(
        receiving, receiving, donor_layer=2, part=part, bridge="identity", gate="identity", mix="delta"
    )
    write_graft(into.model, into.tokenizer, [], [(own, spec)], tmp_path / "graft")
    ids = torch.tensor(ROWS[:1])
    assert torch.allclose(
        grafts.logits(grafts.loaded(tmp_path / "graft"), ids), grafts.logits(load(receiving), ids), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("given", [
    {"mix": "add"}, {"mix": "delta"}, {"mix": "delta", "part": "mlp"}, {"mix": "add", "part": "self_attn"},
    {"mix": "add", "bridge": "residual"}, {"mix": "delta", "bridge": "identity", "gate": "channel"},
    {"gate": "closed", "bridge": "identity"},
])  # fmt: skip
def test_an_untrained_implant_is_the_target_bit_for_bit_and_can_leave_it(tmp_path, given):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    into, part, _ = made(receiving, giving, **given)
    site = Site(into.model, into.layer, (), part)
    (kept,) = keep(site, [(tuple(ROWS[0]), 1)], predictions=False)
    found, plain = logits(site, [kept])[0], grafts.logits(load(receiving), torch.tensor(ROWS[:1]))[0, :-1]
    assert torch.equal(found, plain)
    if given.get("gate") == "closed":
        return
    optimizer = torch.optim.SGD([p for p in part.parameters() if p.requires_grad], lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        logits(site, [kept])[0].square().mean().backward()
        optimizer.step()
    assert not torch.allclose(logits(site, [kept])[0], plain, atol=1e-4)
    assert all(p.grad is not None and p.grad.any() for p in part.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_states_give_the_logits_of_the_whole_graft_and_of_its_cache(tmp_path, family):
    receiving, giving = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    graft = built(tmp_path, receiving, giving)
    into, part, _ = made(receiving, giving)
    stirred(part)
    site = Site(into.model, into.layer, (), part)
    kept = keep(site, [(tuple(row), 1) for row in ROWS], predictions=False)
    whole = torch.cat([grafts.logits(graft, torch.tensor([row]))[0, :-1] for row in ROWS])
    assert torch.allclose(logits(site, kept)[0], whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        whole, torch.cat([grafts.logits(into.model, torch.tensor([r]))[0, :-1] for r in ROWS]), atol=1e-2
    )
    ids, mask = grafts.padded(ROWS)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **GREEDY)
    assert cached.shape[1] > ids.shape[1]
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY))


@pytest.mark.parametrize("part", PARTS)
def test_each_step_of_a_generation_gives_the_logits_of_a_whole_pass(tmp_path, part):
    graft = built(tmp_path, grafts.target(tmp_path, "qwen2"), grafts.target(tmp_path, "gemma2", seed=1), part=part)
    ids, cache, steps = torch.tensor(ROWS[:1]), None, []
    for column in range(ids.shape[1]):
        with torch.no_grad():
            step = graft(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        steps.append(step.logits[0, -1])
    assert torch.allclose(torch.stack(steps), grafts.logits(graft, ids)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("giving", ["llama", "gpt2", "bloom", "mistral", "mixtral"])
def test_padding_changes_no_logit(tmp_path, giving, side):
    graft = built(tmp_path, grafts.target(tmp_path), grafts.target(tmp_path, giving, seed=1))
    grafts.assert_padding_changes_no_logit(graft, ROWS, side)


def test_beams_with_a_cache_are_those_without(tmp_path):
    graft = built(tmp_path, grafts.target(tmp_path), grafts.characters(tmp_path))
    ids, mask = grafts.padded(ROWS)
    given = {"input_ids": ids, "attention_mask": mask, "num_beams": 3, **GREEDY}
    assert torch.equal(graft.generate(**given, use_cache=True), graft.generate(**given, use_cache=False))


def test_training_lowers_the_loss_and_changes_neither_model(tmp_path):
    into, part, _ = made(grafts.target(tmp_path), grafts.characters(tmp_path))
    site = Site(into.model, into.layer, (), part)
    before = {n: v.clone() for m in (into.model, part.implanted.organ) for n, v in m.state_dict().items()}
    items = keep(site, [(tuple(row), len(row) - 3) for row in ROWS], predictions=False)
    texts = keep(site, [(tuple(row), 1) for row in ROWS], predictions=True)
    settings = recipe(training={"steps": 25, "batch": 3, "positions": 8, "divergence": 0.1}).training
    curve = train(learning(site), settings, items, texts)
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert curve[-1]["cross_entropy"] < 0.5 * curve[0]["cross_entropy"]
    after = {n: v for m in (into.model, part.implanted.organ) for n, v in m.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.fixture
def files(tmp_path):
    asked = [(f"What is {a} + {b}? Answer:", f" {a + b}.") for a, b in ((12, 30), (1, 1), (99, 1), (7, 8))]
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": p, "answer": a} for p, a in asked])
    write_jsonl(tmp_path / "text.jsonl", [{"text": text} for text in grafts.SENTENCES])
    settings = grafts.UNTRAINED | {"steps": 3, "prompts": 4, "batch": 2, "texts": 2, "positions": 9}
    given = {"donor": "d", "layer": "n-2", "donor_layer": "n-1", "gate": "token", "bridge": "linear"}
    section = {"implant": {"one": given | {"training": settings}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(section))

    def run(name: str) -> Path:
        giving, making = grafts.characters(tmp_path), tmp_path / f"{name}.json"
        paths = tmp_path / "train.jsonl", tmp_path / "text.jsonl", tmp_path / name, making
        main("one", grafts.target(tmp_path), giving, *paths, tmp_path / "params.yaml")
        return tmp_path / name

    return run


def test_the_same_run_gives_the_same_bytes_and_tells_how_it_was_made(files):
    one, other = files("one"), files("other")
    assert all(p.read_bytes() == (other / p.name).read_bytes() for p in one.iterdir())
    assert one.with_suffix(".json").read_bytes() == other.with_suffix(".json").read_bytes()
    making, graft = read_json(one.with_suffix(".json")), load(one)
    added = sum(p.numel() for p in graft.parameters()) - sum(p.numel() for p in graft.target.parameters())
    assert making["parameters"]["added"] == added > making["parameters"]["moved"] > 0
    assert [len(line["points"]) for line in making["curves"].values()] == [3, 3]
    assert "parameters" in json.dumps(making) and making["way"] == "implant"


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path):
    receiving, other = grafts.target(tmp_path), grafts.characters(tmp_path)
    with pytest.raises(BadInput, match="width 24 and the target 32; .*set bridge: linear"):
        made(receiving, other, bridge="identity", gate="token")
    with pytest.raises(BadInput, match="block, self_attn, mlp, got 'mlp.experts.0'"):
        made(receiving, other, part="mlp.experts.0")
    with pytest.raises(BadInput, match="layer from 0 to 3"):
        made(receiving, other, donor_layer=4)
    with pytest.raises(ValueError, match="got gate token, bridge identity and no training section"):
        ImplantRecipe.model_validate({"donor": "d", "layer": 1, "donor_layer": 1, "gate": "token"})
    with pytest.raises(ValueError, match=r"set training.hardest: 0"):
        recipe(training={"hardest": 0.5})


def test_a_block_that_depends_on_where_it_stands_is_refused():
    donor = tiny("gpt2", scale_attn_by_inverse_layer_idx=True)
    assert cut_out(donor, 0, "block")
    with pytest.raises(BadInput, match="got block 2 of the donor, which depends on where it stands"):
        cut_out(donor, 2, "block")
