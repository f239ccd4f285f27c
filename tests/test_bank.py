"""Components in a bank: put back they change nothing, in another model they are the donor's, misfits are refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import FalconConfig, FalconForCausalLM, PreTrainedModel

from stages import deposit as deposit_stage
from stages import withdraw as withdraw_stage
from stages.anatomy.components import component_kind, components, sharing
from stages.anatomy.hooks import reading
from stages.anatomy.loading import load
from stages.anatomy.names import matching
from stages.bank import deposit, geometry, read_catalog
from stages.errors import BadInput
from stages.recipes.bank import WithdrawRecipe
from stages.storage import read_json
from stages.withdraw import withdraw
from tests import families, grafts
from tests.anatomy.test_places import MIXTURES, mixture
from tests.families import FAMILIES, tiny, token_ids, tokenizer

FALCONS = {
    "one key": {},
    "each its own": {"multi_query": False},
    "groups": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


def recipe(*sites: str, **given) -> WithdrawRecipe:
    return WithdrawRecipe.model_validate({"bank": "b", "sites": sites or ("*",)} | given)


def bank(model: PreTrainedModel, directory: Path, *patterns: str) -> Path:
    directory.mkdir(exist_ok=True)
    sites = matching(patterns, components(model))
    deposit(model, sites, {"donor": "d", "geometry": geometry(model, tokenizer())}, directory)
    return directory


def put(target: PreTrainedModel, directory: Path, *sites: str, **given) -> dict[str, int]:
    return withdraw(recipe(*sites, **given), directory, target, tokenizer())


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=token_ids(), use_cache=False).logits


def any_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Biases drawn too, which are zero in fresh models."""
    model = mixture(family) if family in MIXTURES and family != "mixtral" else tiny(family)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if seed or name.endswith("bias"):
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.data = drawn + (parameter.ndim == 1 and name.endswith("weight"))
    return model


@pytest.mark.parametrize("family", sorted({*FAMILIES, *MIXTURES}))
def test_a_model_s_own_components_put_back_change_no_logit(family, tmp_path):
    model, plain = any_model(family), logits(any_model(family))
    every = components(model)
    kinds = {component_kind(site) for site in every}
    assert {"embed", "block", "attention", "mlp", "norm"} <= kinds
    assert ("expert" in kinds) == (family in {*MIXTURES, *families.MIXTURES})
    assert ("head" in kinds) == (family != "deepseek_v3")
    directory = bank(model, tmp_path / "bank", *every)
    inner = [site for site in every if not any(other.startswith(f"{site}.") for other in every)]
    for sites in (inner, [site for site in every if component_kind(site) in ("block", "embed", "lm_head")]):
        told = put(model, directory, *sites)
        assert told["components"] == len(sites) and torch.equal(logits(model), plain)


@pytest.mark.parametrize("family", sorted({*FAMILIES, *MIXTURES}))
def test_blocks_embeddings_norms_and_head_together_are_the_donor(family, tmp_path):
    model, donor = any_model(family), any_model(family, seed=1)
    sites = [site for site in components(donor) if site.count(".") < 2 and component_kind(site) != "mlp"]
    assert not torch.allclose(logits(model), logits(donor), atol=1e-2)
    told = put(model, bank(donor, tmp_path / "bank", *sites))
    assert torch.equal(logits(model), logits(donor))
    assert told["parameters"] == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("olmo2", "olmoe")])
def test_a_head_is_the_donor_s_in_queries_keys_values_and_output(family, tmp_path):
    """Against a model with all of the donor's heads, which read the same input in block 0.

    OLMo 2 and OLMoE norm the queries of all heads together, so that none of their heads is one without the others.
    """
    sites = [f"layers.0.self_attn.heads.{head}" for head in range(4)]

    def states(model: PreTrainedModel) -> dict[str, torch.Tensor]:
        with reading(model, sites) as found:
            logits(model)
        return found

    whole, model, donor = any_model(family), any_model(family), any_model(family, seed=1)
    directory = bank(donor, tmp_path / "bank", *sites)
    put(whole, directory)
    before, expected = states(any_model(family)), states(whole)
    told = put(model, directory, sites[2])
    after = states(model)
    torch.testing.assert_close(after[sites[2]], expected[sites[2]], rtol=0, atol=1e-5)
    counts = (getattr(model.config, name, None) for name in ("num_key_value_heads", "num_kv_heads"))
    groups = next(filter(None, counts), 4)
    shared = 4 // groups - 1
    assert told["heads_sharing"] == shared == sharing(model, {sites[2]})
    same = [torch.equal(after[site], before[site]) for site in sites]
    assert same == [shared < 3, shared < 3, False, not shared]
    ours, theirs = (components(each)[sites[2]]["o"].view for each in (model, donor))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_are_the_attention_but_for_its_output_s_bias_and_norms(family, tmp_path):
    model, donor = any_model(family), any_model(family, seed=1)
    directory = bank(donor, tmp_path / "bank", "layers.1.self_attn.heads.*")
    put(model, directory)
    pairs = components(model)["layers.1.self_attn"], components(donor)["layers.1.self_attn"]
    unlike = {name for name, piece in pairs[0].items() if not torch.equal(piece.view, pairs[1][name].view)}
    assert unlike <= {"dense.bias", "c_proj.bias", "out_proj.bias", "q_norm.weight", "k_norm.weight"}


@pytest.mark.parametrize("form", FALCONS)
def test_heads_of_every_fused_layout_are_where_the_model_itself_splits_them(form):
    settings = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = FalconForCausalLM(FalconConfig(**settings, bos_token_id=1, eos_token_id=2, **FALCONS[form]))
    attention: Any = model.get_submodule("transformer.h.0.self_attention")
    numbers = torch.arange(len(attention.query_key_value.weight))[None, None]
    split = [part.reshape(-1, 8)[:, 0].tolist() for part in attention._split_heads(numbers)]
    for head in range(4):
        pieces = components(model)[f"layers.0.self_attn.heads.{head}"]
        for name, starts in zip("qkv", split, strict=True):
            start = starts[head if len(starts) == 4 else 0]
            assert pieces[name].index == (slice(start, start + 8),)


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_is_replaced_alone(family, tmp_path):
    model, donor, before = any_model(family), any_model(family, seed=1), any_model(family)
    site = "layers.1.mlp.experts.2"
    put(model, bank(donor, tmp_path / "bank", site))
    theirs, old = components(donor), components(before)
    for expert in range(4):
        name = f"layers.1.mlp.experts.{expert}"
        source = theirs if expert == 2 else old
        for piece, value in components(model)[name].items():
            assert torch.equal(value.view, source[name][piece].view)


def test_a_component_can_go_to_another_block_and_component_kind_the_way(tmp_path):
    model, donor, before = tiny("llama"), tiny("llama", seed=1), tiny("llama")
    told = put(model, bank(donor, tmp_path / "bank", "layers.1.mlp"), layer="n-1", strength=0.25)
    assert told["parameters"] == 3 * 32 * 64
    after, given, old = components(model), components(donor), components(before)
    for name, piece in after["layers.3.mlp"].items():
        start = old["layers.3.mlp"][name].view
        torch.testing.assert_close(piece.view, start + 0.25 * (given["layers.1.mlp"][name].view - start))
    assert all(torch.equal(piece.view, old["layers.1"][name].view) for name, piece in after["layers.1"].items())


def test_shared_keys_and_values_move_once_however_many_heads_are_taken(tmp_path):
    model, donor, before = tiny("llama"), tiny("llama", seed=1), tiny("llama")
    told = put(model, bank(donor, tmp_path / "bank", "layers.0.self_attn.heads.*"), strength=0.5)
    ours, given, old = (components(each)["layers.0.self_attn"] for each in (model, donor, before))
    for name, piece in ours.items():
        middle = old[name].view.lerp(given[name].view, 0.5)
        torch.testing.assert_close(piece.view, middle)
    assert told["parameters"] == sum(piece.view.numel() for piece in ours.values())
    assert told["heads_sharing"] == 0


def test_shuffled_components_are_all_in_wrong_places(tmp_path):
    model, donor = tiny("llama"), tiny("llama", seed=1)
    put(model, bank(donor, tmp_path / "bank", "layers.*.mlp"), shuffled=True)
    ours, given = components(model), components(donor)
    for layer in range(4):
        near = [torch.equal(ours[f"layers.{layer}.mlp"]["up_proj.weight"].view,
                            given[f"layers.{other}.mlp"]["up_proj.weight"].view) for other in range(4)]  # fmt: skip
        assert sum(near) == 1 and not near[layer]


def test_only_what_is_taken_is_read_and_what_is_taken_is_checked(tmp_path):
    model, donor = tiny("llama"), tiny("llama", seed=1)
    directory = bank(donor, tmp_path / "bank", "layers.*.mlp")
    tensors = load_file(directory / "components.safetensors")
    tensors["layers.2.mlp:up_proj.weight"] += 1
    save_file(tensors, directory / "components.safetensors")
    put(model, directory, "layers.1.mlp")
    with pytest.raises(BadInput, match="layers.2.mlp in .* is not what its catalog says"):
        put(model, directory, "layers.2.mlp")


@pytest.mark.parametrize(
    ("donor", "sites", "given", "says"),
    [
        ({"num_attention_heads": 8}, "layers.0.self_attn.heads.0", {}, "heads of the bank's model .* 8, got 4"),
        ({"hidden_size": 48}, "layers.0.mlp", {}, "layers.0.mlp of the target to hold .*64 × 48"),
        ({"num_hidden_layers": 6}, "layers.5.mlp", {}, "layers.5.mlp of the .*got no such component"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "layers.0.self_attn", {}, "positions"),
        ("gemma", "layers.0.mlp", {}, "the activation of the bank's model for layers.0.mlp, gelu"),
        ("qwen2", "layers.0", {}, "the family of the bank's model for layers.0, qwen2, got llama"),
        ("phi3", "layers.0.mlp", {}, "to hold .*gate_up_proj.weight 128 × 32 as the bank.s"),
        ("mixtral", "layers.0.mlp.experts.1", {}, "got no such component; take components of a model"),
        ({}, "layers.0.mpl", {}, "did you mean 'layers.0.mlp'"),
        ({}, "layers.*.mlp", {"layer": 2}, "components of one block to put into layer 2, got layers.0.mlp, "),
        ({}, "layers.0.mlp", {"layer": 9}, "a layer that does not exist"),
        ({}, "layers.0.mlp", {"shuffled": True}, "two or more components of a kind to shuffle, got layers.0.mlp"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(donor, sites, given, says, tmp_path):
    model = tiny("llama")
    kept = sites if "mpl" not in sites else "layers.0.mlp"
    giving = tiny(donor) if isinstance(donor, str) else tiny("llama", **donor)
    directory = bank(giving, tmp_path / "bank", kept)
    with pytest.raises(BadInput, match=says):
        put(model, directory, sites, **given)
    assert torch.equal(logits(model), logits(tiny("llama")))


def test_another_vocabulary_s_embeddings_and_parts_within_parts_are_refused(tmp_path):
    donor = tiny("llama", seed=1)
    directory = bank(donor, tmp_path / "bank", "embed", "layers.0", "layers.0.mlp")
    with pytest.raises(BadInput, match="the vocabulary of the bank's model for embed"):
        withdraw(recipe("embed"), directory, tiny("llama"), grafts.bpe())
    with pytest.raises(BadInput, match="beside each other, got layers.0.mlp, which is inside layers.0; name one"):
        put(tiny("llama"), directory)


def test_a_tied_head_is_the_embeddings(tmp_path):
    assert "lm_head" in components(tiny("llama"))
    assert "lm_head" not in components(tiny("gpt2"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_bank_and_a_graft_from_it_are_the_same_bytes_every_time(family, tmp_path):
    target, donor = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    params = {"bank": {"b": {"donor": "d", "sites": ["layers.*.self_attn", "layers.2", "norm"]}}}
    params |= {"withdraw": {"w": {"bank": "b", "sites": ["layers.1.self_attn", "layers.2", "norm"]}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    for name in ("one", "two"):
        deposit_stage.main("b", donor, tmp_path / name, tmp_path / "params.yaml")
        out, making = tmp_path / f"{name}_graft", tmp_path / f"{name}.json"
        withdraw_stage.main("w", target, tmp_path / name, out, making, tmp_path / "params.yaml")
    for first, second in (("one", "two"), ("one_graft", "two_graft")):
        files = sorted((tmp_path / first).iterdir())
        assert files and all(p.read_bytes() == (tmp_path / second / p.name).read_bytes() for p in files)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    catalog, told = read_catalog(tmp_path / "one"), read_json(tmp_path / "one.json")
    assert [row["site"] for row in catalog["components"]][-1] == "norm" and catalog["geometry"]["width"] == 32
    with safe_open(tmp_path / "one" / "components.safetensors", "pt") as file:
        held = {name.partition(":")[0] for name in file.keys()}  # noqa: SIM118
        assert held == {row["site"] for row in catalog["components"]}
        assert file.get_tensor("norm:weight").dtype == torch.bfloat16
    wanted = {"layers.1.self_attn", "layers.2", "norm"}
    assert told["parameters"]["moved"] == sum(r["parameters"] for r in catalog["components"] if r["site"] in wanted)
    assert told["donors"] == ["d"] and told["figures"]["components"] == 3
    graft, given = load(tmp_path / "one_graft"), load(donor)
    ours, theirs = components(graft), components(given)
    for site in wanted:
        assert all(torch.equal(piece.view, theirs[site][name].view) for name, piece in ours[site].items())
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(BadInput, match="catalog.json, but it is not there"):
        read_catalog(tmp_path / "one")
