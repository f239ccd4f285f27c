"""Several donors' modules and states that change one block together."""

from pathlib import Path

import pytest
import torch
import yaml

from stages.anatomy.loading import load
from stages.assembly import write_graft
from stages.errors import BadInput
from stages.fuse import main
from stages.graft.fusion import Fusion
from stages.kept import Site, keep, learning, logits
from stages.recipes.fusion import FusionRecipe, fused
from stages.recipes.implant import host
from stages.storage import read_json, write_jsonl
from stages.training import train
from tests import grafts
from tests.families import FAMILIES

ROWS = [grafts.bpe()(text).input_ids for text in grafts.SENTENCES[:3]]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}
MEMBERS = (
    {"donor": "like", "part": "self_attn", "donor_layer": 1, "bridge": "linear"},
    {"donor": "like", "part": "states", "donor_layer": 2, "mix": "delta"},
    {"donor": "characters", "part": "states", "donor_layer": "n-1", "bridge": "linear"},
    {"donor": "characters", "part": "block", "donor_layer": 0, "bridge": "linear"},
)


def recipe(**given) -> FusionRecipe:
    training = grafts.UNTRAINED | given.pop("training", {})
    return FusionRecipe.model_validate({"layer": 2, "members": MEMBERS, "training": training} | given)


def donors(root: Path, family: str = "llama") -> dict[str, Path]:
    return {"like": grafts.target(root, family, seed=1), "characters": grafts.characters(root)}


def made(root: Path, family: str = "llama", **given):
    into = host(grafts.target(root, family), 2)
    whole = fused(recipe(**given), donors(root, family), into)
    return into, whole, Site(into.model, into.layer, whole.readings, whole.part)


def stirred(part: Fusion) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.copy_((torch.randn(parameter.shape, generator=generator) * 0.3).to(torch.bfloat16))


def built(root: Path, family: str = "llama", **given):
    into, whole, _ = made(root, family, **given)
    stirred(whole.part)
    write_graft(into.model, into.tokenizer, whole.readings, [(whole.part, whole.spec)], root / "graft")
    return grafts.loaded(root / "graft")


def kept(site: Site, predictions: bool = False):
    return keep(site, [(tuple(row), 1) for row in ROWS], predictions)


@pytest.mark.parametrize("combiner", ["softmax", "attention"])
def test_an_untrained_fusion_is_the_target_bit_for_bit_and_all_of_it_can_learn(tmp_path, combiner):
    _, whole, site = made(tmp_path, combiner=combiner)
    states = keep(site, [(tuple(ROWS[0]), 1)], predictions=False)
    plain = grafts.logits(load(grafts.target(tmp_path)), torch.tensor(ROWS[:1]))[0, :-1]
    assert torch.equal(logits(site, states)[0], plain)
    optimizer = torch.optim.SGD([p for p in whole.part.parameters() if p.requires_grad], lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        logits(site, states)[0].square().mean().backward()
        optimizer.step()
    assert not torch.allclose(logits(site, states)[0], plain, atol=1e-3)
    assert all(p.grad is not None and p.grad.any() for p in whole.part.parameters() if p.requires_grad)


@pytest.mark.parametrize("combiner", ["softmax", "attention"])
def test_shares_sum_to_one_and_follow_from_the_token_alone(combiner):
    members = [{"bridge": "linear", "mix": "add", "donor_width": 8, "donor": 0, "taken": 0}] * 3
    part = Fusion(0, combiner, members, 16)
    h, x = torch.randn(2, 5, 16), torch.randn(2, 5, 3, 16)
    if combiner == "softmax":
        assert torch.allclose(part.shares(h, x), torch.full((2, 5, 4), 0.25))
    stirred(part)
    shares = part.shares(h, x)
    assert shares.shape == (2, 5, 4)
    assert torch.allclose(shares.sum(-1), torch.ones(2, 5))
    assert torch.allclose(part.shares(h[:, 2:], x[:, 2:]), shares[:, 2:], atol=1e-6)
    assert not torch.allclose(part.shares(h, x.flip(2)), shares, atol=1e-3)
    with torch.no_grad():
        part.bias.fill_(-50)
    assert torch.allclose(part.shares(h, x)[..., 0], torch.ones(2, 5), atol=1e-3)


@pytest.mark.parametrize(
    ("family", "combiner"), [("llama", "softmax"), *((family, "attention") for family in FAMILIES)]
)
def test_kept_states_give_the_logits_of_the_whole_graft_and_of_its_cache(tmp_path, family, combiner):
    graft = built(tmp_path, family, combiner=combiner)
    into, whole, site = made(tmp_path, family, combiner=combiner)
    stirred(whole.part)
    alone = torch.cat([grafts.logits(graft, torch.tensor([row]))[0, :-1] for row in ROWS])
    assert torch.allclose(logits(site, kept(site))[0], alone, atol=1e-4, rtol=1e-4)
    plain = torch.cat([grafts.logits(into.model, torch.tensor([row]))[0, :-1] for row in ROWS])
    assert not torch.allclose(alone, plain, atol=1e-2)
    ids, mask = grafts.padded(ROWS)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **GREEDY)
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(tmp_path, side):
    graft = built(tmp_path)
    grafts.assert_padding_changes_no_logit(graft, ROWS, side)


def test_a_donor_that_two_members_hear_is_carried_once(tmp_path):
    twice = [MEMBERS[1], MEMBERS[1] | {"donor_layer": 0, "mix": "add"}]
    graft = built(tmp_path, members=twice)
    (donor,) = graft.donors
    assert donor.taken == [2, 0]
    assert [(m.donor, m.taken) for m in graft.parts[0].members] == [(0, 0), (0, 1)]


def test_training_lowers_the_loss_and_changes_nothing_that_was_given(tmp_path):
    into, whole, site = made(tmp_path)
    frozen = [into.model, *(r.donor for r in whole.readings), whole.part.members[0].organ]
    before = [{n: v.clone() for n, v in m.state_dict().items()} for m in frozen]
    items = keep(site, [(tuple(row), len(row) - 3) for row in ROWS], predictions=False)
    settings = recipe(training={"steps": 25, "batch": 3, "positions": 8, "divergence": 0.1}).training
    curve = train(learning(site), settings, items, kept(site, predictions=True))
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert curve[-1]["cross_entropy"] < 0.5 * curve[0]["cross_entropy"]
    for model, old in zip(frozen, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())


def test_a_fusion_is_trained_on_all_its_tasks_and_tells_how_it_was_made(tmp_path):
    (tmp_path / "models").mkdir()
    for name, path in donors(tmp_path).items():
        path.rename(tmp_path / "models" / name)
    for task, sign in (("capability", "+"), ("domains/far", "*")):
        (tmp_path / task).mkdir(parents=True)
        rows = [{"prompt": f"What is {a} {sign} 1? Answer:", "answer": f" {a}."} for a in range(6)]
        write_jsonl(tmp_path / task / "train.jsonl", rows)
    (tmp_path / "retention").mkdir()
    write_jsonl(tmp_path / "retention" / "train.jsonl", [{"text": text} for text in grafts.SENTENCES])
    settings = recipe(tasks=["capability", "domains/far"], training={"steps": 2, "prompts": 3, "positions": 9})
    section = {"fuse": {"all": settings.model_dump(mode="json")}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(section))
    receiving, written = grafts.target(tmp_path), []
    for name in ("one", "other"):
        making = tmp_path / f"{name}.json"
        main("all", receiving, tmp_path / "models", tmp_path, tmp_path / name, making, tmp_path / "params.yaml")
        written.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} | {"": making.read_bytes()})
    assert written[0] == written[1]
    told_of, graft = read_json(tmp_path / "one.json"), load(tmp_path / "one")
    added = sum(p.numel() for p in graft.parameters()) - sum(p.numel() for p in graft.target.parameters())
    assert told_of["parameters"]["added"] == added > told_of["parameters"]["moved"] > 0
    assert told_of["donors"] == ["like", "characters"]


def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="set mix: add for them"):
        recipe(members=[MEMBERS[0] | {"mix": "delta"}, MEMBERS[1]])
    with pytest.raises(BadInput, match="Donor 'characters' has width 24 and the target 32; .*set bridge: linear"):
        made(tmp_path, members=[MEMBERS[0], MEMBERS[2] | {"bridge": "identity"}])
    with pytest.raises(BadInput, match="block, self_attn, mlp, got 'mlp.experts.1'"):
        made(tmp_path, members=[MEMBERS[0] | {"part": "mlp.experts.1"}, MEMBERS[1]])
    with pytest.raises(ValueError, match="softmax or attention, got 'mean'"):
        Fusion(0, "mean", [], 16)
