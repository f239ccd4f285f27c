"""Adapters read, added, cut, drawn anew, extracted and written again, held to what PEFT makes of them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from stages.adapt import difference, main
from stages.anatomy.adapters import fuse, read_adapter, write_adapter
from stages.anatomy.blocks import linear_modules
from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.recipes.adapter import AdapterRecipe
from stages.storage import read_json
from tests import grafts
from tests.families import FAMILIES, tiny, token_ids

IDS = token_ids()
FORMS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 8, "rank_pattern": {r"layers\.1\.mlp\..*": 2, "q_proj": 6},
                 "alpha_pattern": {"layers.2.self_attn.o_proj": 1, "down_proj": 5}},
    "some modules": {"r": 3, "lora_alpha": 3, "target_modules": ["v_proj", "layers.2.mlp.up_proj"]},
}  # fmt: skip


def adapter(family: str, root: Path, seed: int = 0, model=None, **given) -> Path:
    """A random adapter of a tiny model, as PEFT saves it; a mixture's of attention, since PEFT takes experts too."""
    plain = model or tiny(family)
    mixture = any(name.endswith("experts") for name, _ in plain.named_modules())
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"] if mixture else "all-linear"
    config = {"r": 4, "lora_alpha": 8, "target_modules": modules, "lora_dropout": 0.0} | given
    made = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    made.save_pretrained(str(root))
    return root


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def by_peft(model, *paths: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(model, paths[0]).eval())


pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set:UserWarning")  # PEFT corrects it for Conv1D


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_adapter_answers_as_peft_does_in_every_family(family, tmp_path):
    directory = adapter(family, tmp_path / "a")
    model = tiny(family)
    changes = read_adapter(directory, model)
    fuse(model, changes)
    expected = by_peft(tiny(family), directory)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(tiny(family))).abs().max() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_every_scaling_is_peft_s(form, tmp_path):
    directory = adapter("llama", tmp_path / "a", **FORMS[form])
    model = tiny("llama")
    fuse(model, read_adapter(directory, model))
    torch.testing.assert_close(logits(model), by_peft(tiny("llama"), directory), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_written_anew_opens_in_peft_with_the_same_logits(family, tmp_path):
    directory = adapter(family, tmp_path / "a")
    changes = read_adapter(directory, tiny(family))
    first = next(iter(changes))
    changes = {name: c.truncated(2) if name == first else c.scaled(0.5) for name, c in changes.items()}
    write_adapter(tmp_path / "b", changes, tiny(family))
    model = tiny(family)
    fuse(model, changes)
    torch.testing.assert_close(by_peft(tiny(family), tmp_path / "b"), logits(model), rtol=1e-4, atol=1e-4)
    again = read_adapter(tmp_path / "b", tiny(family))
    assert all(torch.allclose(again[name].dense, change.dense) for name, change in changes.items())
    assert [again[name].rank for name in changes] == [2] + [4] * (len(changes) - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_difference_of_low_rank_is_extracted_whole(family, tmp_path):
    donor = tiny(family)
    changes = read_adapter(adapter(family, tmp_path / "a"), donor)
    fuse(donor, changes)
    found, kept, whole = difference(tiny(family), donor, 4)
    assert kept == pytest.approx(whole, rel=1e-4)
    assert found.keys() == {name for name, change in changes.items() if name in linear_modules(donor)}
    model = tiny(family)
    fuse(model, found)
    torch.testing.assert_close(logits(model), logits(donor), rtol=1e-3, atol=1e-3)
    _, less, _ = difference(tiny(family), donor, 1)
    exact = sum(torch.linalg.svdvals(found[name].dense)[0].square() for name in found)
    assert less == pytest.approx(float(exact), rel=1e-3) and less < 0.8 * whole


def test_what_no_linear_module_holds_counts_as_unexplained():
    donor = tiny("mixtral")
    donor.get_parameter("model.embed_tokens.weight").mul_(1.5)
    donor.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(1.1)
    found, kept, whole = difference(tiny("mixtral"), donor, 32)
    moved = [(p - tiny("mixtral").get_parameter(n)).square().sum() for n, p in donor.named_parameters()]
    assert list(found) == ["model.layers.1.self_attn.q_proj"]
    assert whole == pytest.approx(float(sum(moved)), rel=1e-5) and 0 < kept < whole


def changed(directory: Path, **config) -> Path:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(read_json(path) | config))
    return directory


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda d: changed(d, use_dora=True), "Expected a plain LoRA adapter at .*, got use_dora; merge it with PEFT"),
        (lambda d: changed(d, modules_to_save=["lm_head"]), "got modules_to_save"),
        (lambda d: changed(d, bias="all"), "got bias all"),
        (lambda d: changed(d, target_parameters=["experts.w"]), "got target_parameters"),
        (lambda d: changed(d, peft_type="IA3"), "got IA3"),
        (lambda d: (d / "adapter_model.safetensors").rename(d / "adapter_model.bin"), "pickled weights are not read"),
        (lambda d: (d / "adapter_model.safetensors").write_text("no"), "Expected a readable"),
        (lambda d: save_file({}, d / "adapter_model.safetensors"), "got an empty file"),
        (lambda d: renamed(d, "lora_A", "lora_embedding_A"), "which is none; use the model that the adapter was"),
        (lambda d: renamed(d, "layers.3", "layers.9"), "got base_model.model.model.layers.9.*which is none"),
        (lambda d: (d / "adapter_config.json").unlink(), "got none; name a PEFT directory"),
    ],
)  # fmt: skip
def test_what_is_no_plain_adapter_of_the_model_is_refused(spoil, sentence, tmp_path):
    directory = adapter("llama", tmp_path / "a")
    spoil(directory)
    with pytest.raises(BadInput, match=sentence):
        read_adapter(directory, tiny("llama"))


def renamed(directory: Path, old: str, new: str) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({name.replace(old, new): value for name, value in load_file(path).items()}, path)


def test_another_width_is_sent_to_bridges(tmp_path):
    with pytest.raises(BadInput, match="with the model's shape .*; carry the adapter over by source: bridge"):
        read_adapter(adapter("llama", tmp_path / "a"), tiny("llama", hidden_size=24))
    with pytest.raises(BadInput, match="Expected a donor with the target's weights.*source: bridge"):
        difference(tiny("llama"), tiny("llama", hidden_size=24), 2)
    with pytest.raises(BadInput, match="Expected a donor that differs"):
        difference(tiny("llama"), tiny("llama"), 2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A target, two adapters of it, and a model that one of them was merged into."""
    made = tmp_path_factory.mktemp("adapt")
    grafts.directory(tiny("llama", vocab_size=grafts.VOCABULARY), grafts.bpe(), made / "models" / "target")
    for name, seed, rank in (("one", 1, 4), ("two", 2, 2)):
        adapter("llama", made / "donors" / name, seed, load(made / "models" / "target"), r=rank)
    merged = PeftModel.from_pretrained(load(made / "models" / "target"), made / "donors" / "one").merge_and_unload()
    grafts.directory(merged, grafts.bpe(), made / "models" / "merged")
    (made / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in grafts.SENTENCES))
    return made


def built(root: Path, out: Path, **recipe) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    (out / "params.yaml").write_text(yaml.safe_dump({"adapt": {"v": {"donors": {"one": 1.0}} | recipe}}))
    main("v", root / "models" / "target", root / "models", root / "donors", root / "text.jsonl", out / "graft",
         out / "making.json", out / "params.yaml")  # fmt: skip
    return read_json(out / "making.json")


def of_graft(out: Path, root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The graft's logits, and those of the target under the adapter beside it."""
    beside = PeftModel.from_pretrained(load(root / "models" / "target"), out / "graft" / "adapter").eval()
    return logits(load(out / "graft")), logits(beside)


def test_the_graft_its_adapter_and_peft_s_merge_agree(root, tmp_path):
    told = built(root, tmp_path)
    fused, beside = of_graft(tmp_path, root)
    peft = by_peft(load(root / "models" / "target"), root / "donors" / "one")
    spread = (peft - logits(load(root / "models" / "target"))).std()
    torch.testing.assert_close(beside, peft, rtol=1e-4, atol=1e-4)
    assert (fused - peft).std() < 0.05 * spread, "bfloat16 rounds once"
    graft, merged, before = (load_file(tmp_path.joinpath(*path, "model.safetensors")) for path in (
        ("graft",), (root, "models", "merged"), (root, "models", "target")))  # fmt: skip
    assert sum(int((graft[name] != merged[name]).sum()) for name in graft) < 10
    moved = sum(int((graft[name] != before[name]).sum()) for name in graft)
    assert told["parameters"] == {"moved": moved, "added": 0}
    assert told["way"] == "adapt" and told["figures"]["modules"] == 28 and told["figures"]["rank"] == 4
    shares = [y for _, y in told["curves"]["Squared change held by the leading ranks"]["points"]]
    assert len(shares) == 4 and shares == sorted(shares) and shares[-1] == 1


def test_strength_zero_is_the_target_and_half_is_half(root, tmp_path):
    told = built(root, tmp_path / "none", donors={"one": 0.0})
    assert told["parameters"]["moved"] == 0
    assert torch.equal(*(logits(load(path)) for path in (tmp_path / "none" / "graft", root / "models" / "target")))
    whole, half = (built(root, tmp_path / str(s), donors={"one": s})["figures"]["length"] for s in (1.0, 0.5))
    assert half == pytest.approx(whole / 2, rel=1e-5)


def test_two_adapters_add_up_as_peft_s_side_by_side_and_cut_as_its_svd(root, tmp_path):
    for name, peft, given in (("cat", {"combination_type": "cat"}, {}),
                              ("svd", {"combination_type": "svd", "svd_rank": 3}, {"rank": 3})):  # fmt: skip
        told = built(root, tmp_path / name, donors={"one": 0.7, "two": 0.4}, **given)
        model = PeftModel.from_pretrained(load(root / "models" / "target"), root / "donors" / "one", adapter_name="one")
        model.load_adapter(root / "donors" / "two", adapter_name="two")
        model.add_weighted_adapter(["one", "two"], [0.7, 0.4], "both", **peft)
        model.set_adapter("both")
        torch.testing.assert_close(of_graft(tmp_path / name, root)[1], logits(model.eval()), rtol=1e-3, atol=1e-3)
        assert told["figures"]["rank"] == (6 if name == "cat" else 3)
        assert told["figures"]["kept_energy"] == 1 if name == "cat" else 0.3 < told["figures"]["kept_energy"] < 1


def test_an_adapter_drawn_anew_is_as_long_moves_as_far_and_comes_out_the_same_again(root, tmp_path):
    plain = built(root, tmp_path / "plain")
    told = [built(root, tmp_path / name, random=True, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert told[0]["figures"]["length"] == pytest.approx(plain["figures"]["length"], rel=1e-5)
    files = [{p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name / "graft").rglob("*")
              if p.is_file()} for name in "abc"]  # fmt: skip
    assert {p: b for p, b in files[0].items()} == files[1] and told[0] == told[1]
    assert files[0] != files[2]
    ours, drawn = (
        read_adapter(tmp_path / n / "graft" / "adapter", tiny("llama", vocab_size=320)) for n in ("plain", "a")
    )
    assert all(drawn[name].energy == pytest.approx(ours[name].energy, rel=1e-4) for name in ours)
    assert not any(torch.allclose(drawn[name].dense, ours[name].dense, rtol=0.5) for name in ours)


def test_the_adapter_is_found_again_in_the_model_it_was_merged_into(root, tmp_path):
    told = built(root, tmp_path, donors={"merged": 1.0}, source="difference", rank=4)
    assert 0.99 < told["figures"]["explained_energy_merged"] <= 1
    found = read_adapter(tmp_path / "graft" / "adapter", tiny("llama", vocab_size=320))
    real = read_adapter(root / "donors" / "one", tiny("llama", vocab_size=320))
    for name, change in real.items():
        torch.testing.assert_close(found[name].dense, change.dense, rtol=0.1, atol=0.02)


def test_an_adapter_of_another_model_is_carried_over_and_opens_in_peft(root, tmp_path):
    base = tiny("llama", 5, hidden_size=24, num_hidden_layers=3, vocab_size=grafts.VOCABULARY)
    adapter("llama", root / "donors" / "narrow", 3, base)
    grafts.directory(tiny("llama", 5, hidden_size=24, num_hidden_layers=3, vocab_size=320), grafts.bpe(),
                     root / "models" / "narrow_base")  # fmt: skip
    told = built(root, tmp_path, donors={"narrow": 0.5}, source="bridge", base="narrow_base", texts=4)
    fused, beside = of_graft(tmp_path, root)
    assert (fused - beside).std() < 0.1 * beside.std()
    assert told["figures"]["modules"] == 28 and told["figures"]["rank"] == 4
    assert {f"{side}_r2_{which}_narrow" for side in ("into", "out") for which in ("mean", "least")} <= told[
        "figures"
    ].keys()
    with pytest.raises(BadInput, match="carry the adapter over by source: bridge"):
        built(root, tmp_path / "no", donors={"narrow": 0.5})
    assert not (tmp_path / "no" / "graft").exists()


@pytest.mark.parametrize("given", [{"source": "difference"}, {"source": "bridge"}, {"base": "b"}, {"donors": {}}])
def test_settings_that_do_not_go_together_are_refused(given):
    with pytest.raises(ValueError, match="rank|base|donors"):
        AdapterRecipe.model_validate({"donors": {"one": 1.0}} | given)
