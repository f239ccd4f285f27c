"""A debate is built from its recipe, its gate learns, and its control is the target."""

from pathlib import Path

import pytest
import torch
import yaml

from stages.anatomy.loading import load
from stages.debate import main
from stages.errors import BadInput
from stages.recipes.debate import DebateRecipe
from stages.storage import read_json, write_jsonl
from tests import grafts

ASKED = [(f"What is {a} + {b}? Answer:", f" {a + b}.") for a, b in ((12, 30), (1, 1), (99, 1), (7, 8))]
NOISY = [{}, {"noise": 0.5, "layer": "n-2"}, {"skip": [1]}]
LESSONS = {"steps": 40, "batch": 12, "learning_rate": 0.2, "divergence": 0.0}


def built(root: Path, **settings) -> tuple[Path, dict]:
    """The graft that the stage wrote, and what it told of the making."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"debate": {"it": settings}}))
    write_jsonl(root / "train.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in ASKED])
    write_jsonl(root / "text.jsonl", [{"text": text} for text in grafts.SENTENCES])
    asked, told, params = root / "train.jsonl", root / "text.jsonl", root / "params.yaml"
    main("it", grafts.target(root), asked, told, root / "graft", root / "making.json", params)
    return root / "graft", read_json(root / "making.json")


def test_the_control_of_equal_views_is_the_target_and_its_figures_say_so(tmp_path):
    graft, told = built(tmp_path, views=[{}, {}, {}])
    ids = torch.tensor([grafts.bpe()(grafts.SENTENCES[0]).input_ids])
    own, plain = (load(path)(input_ids=ids, use_cache=False).logits for path in (graft, tmp_path / "llama_0"))
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)
    figures = told["figures"]
    assert figures["cross_entropy"] == pytest.approx(figures["cross_entropy_before"], rel=1e-4)
    assert figures["kl"] == pytest.approx(0, abs=1e-5)
    assert figures["views_disagree_at_answers"] == figures["views_disagree_in_text"] == 0
    assert [figures[f"weight_of_view_{n}"] for n in range(3)] == pytest.approx([1 / 3] * 3)
    assert told["way"] == "debate" and told["donors"] == [] and told["parameters"] == {"added": 0, "moved": 0}


def test_figures_are_those_of_the_exported_model(tmp_path):
    graft, told = built(tmp_path, views=NOISY, reconcile="entropy")
    model, tokenizer, losses = load(graft), grafts.bpe(), []
    for prompt, answer in ASKED:
        ids, start = torch.tensor([tokenizer(prompt + answer).input_ids]), len(tokenizer(prompt).input_ids)
        logprobs = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        losses.append(-logprobs.gather(-1, ids[0, start:, None]))
    assert torch.cat(losses).mean().item() == pytest.approx(told["figures"]["cross_entropy"], rel=1e-2)
    assert told["figures"]["views_disagree_at_answers"] > 0


def test_a_gate_learns_to_weigh_the_views_better_than_alike(tmp_path):
    _, told = built(tmp_path / "gate", views=NOISY, reconcile="gate", training=LESSONS)
    _, alike = built(tmp_path / "average", views=NOISY)
    assert told["figures"]["cross_entropy"] < alike["figures"]["cross_entropy"] - 0.01
    assert told["parameters"]["added"] == 3 * 6 + 3
    assert len(told["curves"]["gate in training, cross-entropy of answers"]["points"]) == 40


def test_the_same_recipe_gives_the_same_bytes(tmp_path):
    one, other = (built(tmp_path / n, views=NOISY, reconcile="gate", training=LESSONS)[0] for n in ("one", "other"))
    assert all(p.read_bytes() == (other / p.name).read_bytes() for p in one.iterdir())
    assert (tmp_path / "one" / "making.json").read_bytes() == (tmp_path / "other" / "making.json").read_bytes()
    assert str(tmp_path) not in (one / "config.json").read_text()


def test_a_layer_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a layer from 0 to 3"):
        built(tmp_path, views=[{}, {"skip": [4]}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": [{}]}, "at least 2 items"),
        ({"views": [{}, {"noise": 0.1}]}, "noise and the layer that it leaves go together"),
        ({"views": [{}, {"temperature": 0}]}, "greater than 0"),
        ({"views": [{}, {}], "reconcile": "gate"}, "a training section goes with reconcile: gate"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DebateRecipe.model_validate(settings)
