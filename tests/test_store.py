"""What is stored comes from the states, its strength from calibration, and its control from chance."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.recipes.stored import StoredRecipe, chosen, direction
from stages.storage import read_json, write_jsonl
from stages.store import main
from tests import grafts

ASKED = [(f"What is {a} + {b}? Answer:", f" {a + b}.") for a, b in ((12, 30), (1, 1), (99, 1), (7, 8), (45, 3), (2, 5))]
DICTIONARY = {"features": 20, "active": 4, "steps": 20, "chosen": 3}
FIXED = {"donor": "donor", "layer": 2, "donor_layer": 1, "prompts": 4, "calibration": 3}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Target, donors and items."""
    root = tmp_path_factory.mktemp("given")
    for seed in (0, 1):
        grafts.target(root, seed=seed)
    grafts.characters(root)
    for name, some in (("train", ASKED[:4]), ("calibration", ASKED[3:])):
        write_jsonl(root / f"{name}.jsonl", [{"prompt": prompt, "answer": answer} for prompt, answer in some])
    write_jsonl(root / "text.jsonl", [{"text": text} for text in grafts.SENTENCES])
    return root


def stored(given: Path, out: Path, donor: str = "llama_1", **settings) -> tuple[Path, dict]:
    """The graft that the stage wrote, and what it told of the making."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "params.yaml").write_text(yaml.safe_dump({"store": {"it": FIXED | settings}}))
    train, calibration, text = (given / f"{name}.jsonl" for name in ("train", "calibration", "text"))
    written, making, params = out / "graft", out / "making.json", out / "params.yaml"
    main("it", given / "llama_0", given / donor, train, calibration, text, out, written, making, params)
    return out / "graft", read_json(out / "making.json")


def part(graft: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(graft / "model.safetensors")
    return {name.removeprefix("parts.0."): v.float() for name, v in tensors.items() if name.startswith("parts.0.")}


def mean_difference(given: Path) -> torch.Tensor:
    """By plain passes, one prompt at a time."""
    tokenizer, rows = grafts.bpe(), []
    target, donor = load(given / "llama_0"), load(given / "llama_1")
    for prompt, answer in ASKED[:4]:
        ids, start = torch.tensor([tokenizer(prompt + answer).input_ids]), len(tokenizer(prompt).input_ids)
        states = [
            model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[layer + 1][0, start - 1 : -1]
            for model, layer in ((target, 2), (donor, 1))
        ]
        rows.append(states[1] - states[0])
    return torch.cat(rows).mean(0)


def test_the_vector_is_the_mean_difference_where_answers_are_predicted(given, tmp_path):
    graft, told = stored(given, tmp_path, source="vector", alphas=[0.5])
    torch.testing.assert_close(
        part(graft)["source.vector"], mean_difference(given).bfloat16().float(), atol=1e-2, rtol=1e-2
    )
    assert told["figures"]["cosine_to_mean_difference"] == pytest.approx(1, abs=1e-5)
    assert told["parameters"] == {"added": 32, "moved": 0}
    assert told["way"] == "store" and told["donors"] == ["donor"]
    assert not any("donor" in name for name in load_file(graft / "model.safetensors"))


def test_the_random_vector_has_its_length_and_another_direction(given, tmp_path):
    own = part(stored(given, tmp_path / "own", source="vector", alphas=[1.0])[0])["source.vector"]
    graft, told = stored(given, tmp_path / "random", source="vector", random=True, alphas=[1.0])
    other = part(graft)["source.vector"]
    assert other.norm().item() == pytest.approx(own.norm().item(), rel=0.01)
    assert abs(told["figures"]["cosine_to_mean_difference"]) < 0.6


def test_the_strength_is_the_best_on_calibration_and_judged_as_the_graft_itself(given, tmp_path):
    graft, told = stored(given, tmp_path, source="vector", alphas=[0.1, 2.0, 8.0], divergence=0.5)
    points = [told["curves"][f"strength, {name}"]["points"]
              for name in ("cross-entropy of calibration answers", "KL to the target on text")]  # fmt: skip
    assert [x for x, _ in points[0]] == [0.1, 2.0, 8.0]
    best = min(range(3), key=lambda i: points[0][i][1] + 0.5 * points[1][i][1])
    assert told["figures"]["alpha"] == points[0][best][0]
    model, tokenizer, losses = grafts.loaded(graft), grafts.bpe(), []
    for prompt, answer in ASKED[3:]:
        ids, start = torch.tensor([tokenizer(prompt + answer).input_ids]), len(tokenizer(prompt).input_ids)
        logprobs = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
        losses.append(-logprobs.gather(-1, ids[0, start:, None]))
    assert torch.cat(losses).mean().item() == pytest.approx(told["figures"]["cross_entropy"], rel=2e-2)


def test_a_gate_over_it_learns_to_predict_the_answers_better(given, tmp_path):
    training = grafts.UNTRAINED | {"steps": 30, "prompts": 4, "batch": 4, "divergence": 0.0}
    _, told = stored(given, tmp_path, source="vector", gate="channel", alphas=[1.0], training=training)
    points = told["curves"]["gate in training, cross-entropy of answers"]["points"]
    assert points[-1][1] < points[0][1] - 0.1


@pytest.mark.parametrize("random", [False, True])
def test_chosen_features_of_a_dictionary_are_stored(given, tmp_path, random):
    graft, told = stored(given, tmp_path, source="features", random=random, dictionary=DICTIONARY, alphas=[0.5])
    assert part(graft)["source.decoder"].shape == (3, 32)
    figures = told["figures"]
    assert figures["active_features"] == pytest.approx(4, rel=0.6)
    if not random:
        assert figures["chosen_in_donor"] > figures["chosen_in_text"]


def test_published_files_stand_in_for_what_is_fitted(given, tmp_path):
    vector = torch.linspace(-1, 1, 32)
    torch.save(vector, tmp_path / "vector.pt")
    graft, told = stored(given, tmp_path, source="vector", file="vector.pt", alphas=[1.0])
    torch.testing.assert_close(part(graft)["source.vector"], vector.bfloat16().float())
    drawn = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    torch.save({"W_enc": drawn.T, "W_dec": drawn, "b_enc": torch.zeros(40), "b_dec": torch.ones(32)}, tmp_path / "s.pt")
    graft, told = stored(given, tmp_path, source="features", file="s.pt", dictionary={"chosen": 4}, alphas=[0.1])
    rows = part(graft)["source.decoder"]
    assert all((drawn.bfloat16().float() == row).all(1).any() for row in rows) and len(rows) == 4
    assert told["figures"]["explained_of_unseen_states"] < 1


def test_the_same_recipe_gives_the_same_bytes(given, tmp_path):
    for name in ("one", "other"):
        stored(given, tmp_path / name, source="features", dictionary=DICTIONARY, alphas=[0.5])
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("one", "other"))
    assert one == other


def test_features_are_chosen_by_what_they_do_more_at_answers():
    working, usual = torch.tensor([[0.0, 3.0, 5.0, 1.0]] * 2), torch.tensor([[0.0, 0.0, 4.5, 2.0]])
    assert chosen(working, usual, 2, None) == [1, 2]
    assert sorted(chosen(working, usual, 9, torch.Generator())) == [1, 2, 3]


def test_random_directions_favour_no_channel():
    rows = torch.tensor([[3.0, 4.0]])
    made = torch.stack([direction(rows, torch.Generator().manual_seed(seed)).vector for seed in range(200)])
    torch.testing.assert_close(made.norm(dim=1), torch.full((200,), 5.0))
    assert made.mean(0).norm() < 1


def test_a_donor_of_another_width_is_refused_before_any_work(given, tmp_path):
    with pytest.raises(BadInput, match="width 24 and the target 32; .* bridge: linear under inject"):
        stored(given, tmp_path, donor="characters", source="vector")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "vector", "gate": "token"}, "a training section goes with a gate that learns"),
        ({"source": "features"}, "a dictionary section goes with source: features"),
        ({"source": "vector", "random": True, "file": "x.pt"}, "leave out the file"),
        ({"source": "vector", "gate": "token", "training": grafts.UNTRAINED}, "takes one of alphas"),
        (
            {"source": "vector", "gate": "token", "alphas": [1.0], "training": grafts.UNTRAINED | {"prompts": 9}},
            "raise",
        ),
        ({"source": "vector", "alphas": []}, "at least 1 item"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StoredRecipe.model_validate(FIXED | settings)
