"""Training on kept states is training the graft, and touches nothing else."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from stages import kept as kept_states
from stages import train_gates
from stages.anatomy.encoding import encode
from stages.blades import keep, learning, logits
from stages.items import read_items
from stages.recipes.blade import Parts, Training, parts
from stages.storage import read_json, write_jsonl
from stages.train_gates import begun, main
from stages.training import train
from tests import grafts
from tests.families import FAMILIES

ASKED = [(f"What is {a} + {b}? Answer:", f" {a + b}.") for a, b in ((12, 30), (1, 1), (99, 1), (7, 8), (45, 3))]
TOLD = [*grafts.SENTENCES, "In the old town it is 30, and in the new town 12."]


def sequences() -> tuple[list, list]:
    asked = [(e.ids, e.start) for e in encode(grafts.bpe(), ASKED)]
    return asked, [(tuple(grafts.bpe()(text).input_ids), 1) for text in TOLD]


def kept(made: Parts):
    asked, told = sequences()
    return keep(made, asked, predictions=False), keep(made, told, predictions=True)


def training(**given) -> Training:
    fixed = {"steps": 60, "batch": 5, "texts": 5, "positions": 80, "learning_rate": 0.05, "divergence": 0.0}
    return Training.model_validate(grafts.UNTRAINED | fixed | given)


@pytest.fixture
def spelt(tmp_path):
    """The parts of a graft whose donor reads characters, untrained."""
    giving = grafts.characters(tmp_path)
    return parts(grafts.recipe(bridge="linear", mix="add"), grafts.target(tmp_path), giving)


def assert_equal_to_the_whole_graft(made: Parts, path: Path) -> None:
    graft, (items, texts) = grafts.loaded(path), kept(made)
    for group in (items, texts, items[:1]):
        told = logits(made, group)[0]
        whole = [graft(input_ids=torch.tensor([k.ids]), use_cache=False).logits[0, k.start - 1 : -1] for k in group]
        assert told.shape[0] == sum(len(k.ids) - k.start for k in group)
        assert torch.allclose(told, torch.cat(whole), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_states_give_the_logits_of_the_whole_graft(tmp_path, family):
    receiving, giving = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    assert_equal_to_the_whole_graft(*grafts.built(tmp_path / "x", receiving, giving))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_several_layers_are_trained_as_they_run(tmp_path, family):
    receiving, giving = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    given = {"layer": [3, 0, 2], "donor_layer": [2, 0, 1], "alpha": "learned"}
    made, path = grafts.built(tmp_path / "x", receiving, giving, **given)
    assert_equal_to_the_whole_graft(made, path)
    train(learning(made), training(steps=2, divergence=1.0), *kept(made))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parts.parameters())


def test_kept_states_of_another_tokenizer_give_the_logits_of_the_whole_graft(tmp_path):
    given = {"bridge": "linear", "mix": "add", "gate": "channel"}
    assert_equal_to_the_whole_graft(
        *grafts.built(tmp_path / "x", grafts.target(tmp_path), grafts.characters(tmp_path), **given)
    )


def test_what_is_kept_does_not_depend_on_its_company(spelt):
    asked, _ = sequences()
    together = keep(spelt, asked, predictions=True)
    for each, alone in zip(together, (keep(spelt, [s], predictions=True)[0] for s in asked), strict=True):
        assert (each.ids, each.start) == (alone.ids, alone.start)
        assert torch.allclose(each.h, alone.h, atol=1e-5)
        assert torch.allclose(each.read[0][0], alone.read[0][0], atol=1e-5)
        assert torch.equal(each.known[0], alone.known[0])
        assert each.final is not None and alone.final is not None
        assert torch.allclose(each.final, alone.final, atol=1e-4)


def test_only_the_injection_changes(spelt):
    before = {n: v.clone() for m in (spelt.target, spelt.readings[0].donor) for n, v in m.state_dict().items()}
    fresh = {n: v.clone() for n, v in spelt.parts.state_dict().items()}
    train(learning(spelt), training(steps=5, divergence=1.0), *kept(spelt))
    after = {n: v for m in (spelt.target, spelt.readings[0].donor) for n, v in m.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert all(p.grad is None for m in (spelt.target, spelt.readings[0].donor) for p in m.parameters())
    assert not any(module._forward_hooks for m in (spelt.target, spelt.readings[0].donor) for module in m.modules())
    assert any(not torch.equal(value, fresh[name]) for name, value in spelt.parts.state_dict().items())


def test_the_loss_falls_and_is_that_of_the_answers(spelt):
    items, texts = kept(spelt)
    wanted = torch.tensor([i for k in items for i in k.ids[k.start :]])

    def loss() -> float:
        return cross_entropy(logits(spelt, items)[0], wanted).item()

    before = loss()
    curve = train(learning(spelt), training(), items, texts)
    assert [row["step"] for row in curve] == list(range(60))
    assert loss() < 0.5 * before
    assert curve[-1]["cross_entropy"] < 0.5 * curve[0]["cross_entropy"]


def test_the_hardest_positions_are_those_that_the_injection_moves_most(spelt):
    _, texts = kept(spelt)
    whole, everywhere = logits(spelt, texts)
    few, chosen = logits(spelt, texts, training(positions=6, hardest=0.5), torch.Generator().manual_seed(0))
    assert everywhere.tolist() == list(range(sum(len(k.ids) - k.start for k in texts)))
    assert torch.allclose(few, whole[chosen], atol=1e-4)
    with torch.no_grad():
        moved = torch.cat([((spelt.parts[0](k.h[None], k.read[0][0][None], k.known[0][None])[0] - k.h).norm(dim=-1)
                            / k.h.norm(dim=-1))[k.start - 1 : -1] for k in texts])  # fmt: skip
    assert sorted(chosen[:3].tolist()) == sorted(moved.topk(3).indices.tolist())
    assert len(set(chosen.tolist())) == 6


def test_the_weight_on_divergence_keeps_the_target_where_it_was(tmp_path):
    moved = []
    for weight in (0.0, 20.0):
        made = parts(grafts.recipe(bridge="linear", mix="add"), grafts.target(tmp_path), grafts.characters(tmp_path))
        moved.append(train(learning(made), training(divergence=weight), *kept(made))[-1]["kl"])
    assert moved[1] < 0.2 * moved[0]


def test_a_graft_that_changes_nothing_has_no_divergence(tmp_path):
    receiving = grafts.target(tmp_path)
    made = parts(grafts.recipe(layer=2, donor_layer=2), receiving, receiving)
    curve = train(learning(made), training(steps=2), *kept(made))
    assert [row["kl"] for row in curve] == pytest.approx([0, 0], abs=1e-4)


def test_kept_states_of_a_mixture_give_the_logits_of_the_whole_graft(tmp_path):
    given = {"bridge": "mixture", "bridges": 3}
    assert_equal_to_the_whole_graft(
        *grafts.built(tmp_path / "x", grafts.target(tmp_path), grafts.characters(tmp_path), **given)
    )


def test_a_fitted_start_brings_the_donors_states_closer_to_the_targets(tmp_path):
    given = {"bridge": "mixture", "bridges": 2, "start": "fitted"}
    made = parts(grafts.recipe(**given), grafts.target(tmp_path), grafts.characters(tmp_path))
    items, texts = kept(made)

    def error() -> float:
        with torch.no_grad():
            return sum(
                (made.parts[0].bridge(k.read[0][0][1:]) - k.h[1:]).square().mean().item() for k in [*items, *texts]
            )

    before, figures = error(), begun(made, [*items, *texts], 0)
    assert error() < 0.7 * before
    assert figures["Rows fitted"] + figures["Rows held out"] == sum(len(k.ids) - 1 for k in [*items, *texts])


@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": p, "answer": a} for p, a in ASKED])
    write_jsonl(tmp_path / "text.jsonl", [{"text": text} for text in TOLD])
    settings = grafts.UNTRAINED | {"steps": 3, "prompts": 4, "batch": 2, "texts": 2, "positions": 9}
    blade = {"donor": "d", "layer": 2, "donor_layer": 1, "gate": "token", "bridge": "linear", "training": settings}
    closed = {"donor": "d", "layer": 2, "donor_layer": 1, "gate": "closed"}
    several = blade | {"bridge": "mixture", "bridges": 2, "start": "fitted"}
    sections = {"inject": {"blade": blade, "closed": closed}, "mixture": {"blade": several}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections))

    def run(variant: str, name: str, **given) -> Path:
        giving = grafts.characters(tmp_path) if variant == "blade" else grafts.target(tmp_path, seed=1)
        prompts, text = tmp_path / "train.jsonl", tmp_path / "text.jsonl"
        main(
            variant, grafts.target(tmp_path), giving, prompts, text, tmp_path / name, tmp_path / "params.yaml", **given
        )
        return tmp_path / name

    return run


def test_the_same_run_gives_the_same_bytes(files):
    one, other = files("blade", "one"), files("blade", "other")
    assert sorted(p.name for p in one.iterdir()) == ["gate.safetensors", "training.json"]
    assert all(p.read_bytes() == (other / p.name).read_bytes() for p in one.iterdir())
    assert len(read_json(one / "training.json")["curve"]) == 3
    assert {v.dtype for v in load_file(one / "gate.safetensors").values()} == {torch.bfloat16}


def test_a_variant_of_another_section_tells_how_it_was_made(files, tmp_path):
    out = files("blade", "several", section="mixture", making=tmp_path / "several.json")
    assert load_file(out / "gate.safetensors")["0.bridge.share.weight"].shape[0] == 2
    making = read_json(tmp_path / "several.json")
    assert making["way"] == "mixture" and making["recipe"]["bridges"] == 2
    assert making["parameters"]["added"] > making["parameters"]["moved"] > 0
    assert making["figures"]["R² of the mixture start on held-out rows"] <= 1
    assert [len(line["points"]) for line in making["curves"].values()] == [3, 3]


def test_a_gate_with_nothing_to_learn_is_written_without_training(files):
    out = files("closed", "closed")
    assert load_file(out / "gate.safetensors") == {}
    assert read_json(out / "training.json")["curve"] == []


def test_only_as_many_prompts_as_asked_for_and_no_other_file_are_read(files, monkeypatch):
    read, passed = [], []
    monkeypatch.setattr(kept_states, "read_items", lambda path, *a: read.append(path.name) or read_items(path, *a))
    monkeypatch.setattr(
        train_gates,
        "keep",
        lambda made, given, predictions: passed.append(len(given)) or keep(made, given, predictions),
    )
    files("blade", "out")
    assert read == ["train.jsonl", "text.jsonl"]
    assert passed == [4, len(TOLD)]


def test_the_dag_gives_training_no_test_item():
    whole = yaml.safe_load((Path(__file__).parent.parent / "dvc.yaml").read_text())["stages"]["train_gates"]
    stage = whole.get("do", whole)
    seen = [word for word in [*stage["cmd"].split(), *map(str, stage["deps"])] if word.startswith("data/prompts")]
    assert set(seen) == {"data/prompts/capability/train.jsonl", "data/prompts/retention/train.jsonl"}
