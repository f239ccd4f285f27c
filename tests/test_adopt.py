"""A donor trained here as a model directory."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from stages.adopt import Adoption, adopt
from stages.anatomy.loading import load, load_tokenizer
from stages.errors import BadInput
from stages.storage import read_json
from tests import grafts

IDS = torch.tensor([[5, 60, 7, 91, 3, 44]])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("adopt")
    grafts.target(made)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM")
    adapter = get_peft_model(load(made / "llama_0"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapter.save_pretrained(made / "adapter")
    grafts.characters(made)
    (made / "characters" / "training.json").write_text("{}")
    (made / "characters" / "README.md").write_text("card")
    return made


def test_a_merged_adapter_answers_as_peft_does(root, tmp_path):
    adopt(Adoption(trained="a"), root / "adapter", root / "llama_0", tmp_path / "out")
    with torch.no_grad():
        peft = PeftModel.from_pretrained(load(root / "llama_0"), root / "adapter").eval()(input_ids=IDS).logits
        merged, plain = (load(path)(input_ids=IDS).logits for path in (tmp_path / "out", root / "llama_0"))
    spread = (peft - plain).std()
    assert (merged - peft).std() < 0.05 * spread
    assert read_json(tmp_path / "out" / "source.json") == {"source": "trained:a", "null_seed": None}
    assert load_tokenizer(tmp_path / "out").get_vocab() == grafts.bpe().get_vocab()


def test_a_merged_weight_is_w_plus_scaled_b_a_rounded_once(root, tmp_path):
    adopt(Adoption(trained="a"), root / "adapter", root / "llama_0", tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    plain, low = (
        load_file(root / "llama_0" / "model.safetensors"),
        load_file(root / "adapter" / "adapter_model.safetensors"),
    )
    changed = 0
    for name, value in merged.items():
        assert value.dtype == torch.bfloat16
        inner = "base_model.model." + name.removesuffix(".weight")
        if f"{inner}.lora_A.weight" in low:
            changed += 1
            exact = plain[name].float() + 2 * low[f"{inner}.lora_B.weight"] @ low[f"{inner}.lora_A.weight"]
            assert torch.allclose(value.float(), exact, rtol=2**-8, atol=1e-6)
        else:
            assert torch.equal(value, plain[name])
    assert changed == 4 * 7


def test_a_model_of_its_own_is_copied_without_its_record(root, tmp_path):
    adopt(Adoption(trained="c"), root / "characters", root / "llama_0", tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "source.json"} <= names
    assert not {"training.json", "README.md"} & names
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (root / "characters" / weights).read_bytes()


def test_a_null_donor_has_the_shape_and_none_of_the_weights(root, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        adopt(Adoption(trained="c", null_seed=seed), root / "characters", root / "llama_0", tmp_path / name)
    trained = load_file(root / "characters" / "model.safetensors")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert {n: (v.shape, v.dtype) for n, v in one.items()} == {n: (v.shape, v.dtype) for n, v in trained.items()}
    drawn = [n for n, v in trained.items() if v.dim() > 1]
    assert len(drawn) > 20
    assert not any(torch.equal(one[n], trained[n]) or torch.equal(one[n], two[n]) for n in drawn)
    assert all(p.read_bytes() == (tmp_path / "again" / p.name).read_bytes() for p in (tmp_path / "one").iterdir())
    assert load_tokenizer(tmp_path / "one").get_vocab() == load_tokenizer(root / "characters").get_vocab()
    assert load(tmp_path / "one")(input_ids=IDS).logits.isfinite().all()
    assert read_json(tmp_path / "one" / "source.json")["null_seed"] == 1


def test_a_null_adapter_changes_the_same_modules_as_far_in_other_directions(root, tmp_path):
    for name, seed in (("trained", None), ("one", 1), ("again", 1), ("two", 2)):
        adopt(Adoption(trained="a", null_seed=seed), root / "adapter", root / "llama_0", tmp_path / name)
    plain = load_file(root / "llama_0" / "model.safetensors")
    trained, one, again, two = (
        load_file(tmp_path / name / "model.safetensors") for name in ("trained", "one", "again", "two")
    )
    changed = [name for name in plain if not torch.equal(trained[name], plain[name])]
    assert len(changed) == 4 * 7
    for name, value in one.items():
        assert torch.equal(value, again[name])
        if name not in changed:
            assert torch.equal(value, plain[name])
            continue
        ways = [(each[name].float() - plain[name].float()).flatten() for each in (trained, one, two)]
        assert float(ways[1].norm()) == pytest.approx(float(ways[0].norm()), rel=0.02)
        assert abs(torch.cosine_similarity(ways[0], ways[1], dim=0)) < 0.3
        assert abs(torch.cosine_similarity(ways[1], ways[2], dim=0)) < 0.3


def test_what_cannot_be_adopted_is_refused_and_leaves_nothing(root, tmp_path):
    with pytest.raises(BadInput, match="Expected a model directory with config.json at .*got nothing"):
        adopt(Adoption(trained="a"), tmp_path / "none", root / "llama_0", tmp_path / "out")
    assert not (tmp_path / "out").exists()
