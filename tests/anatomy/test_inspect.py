"""What is told of a model, and of two."""

import pytest
import torch

from stages.anatomy.inspect import differences, main, parts, patterns, possible, told
from stages.anatomy.names import matching
from stages.anatomy.sites import sites_of
from tests.families import FAMILIES, saved, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_counted_once_in_one_part(family):
    model = tiny(family)
    found = parts(model)
    assert sum(part.parameters for part in found) == model.num_parameters()
    assert sum(part.bytes for part in found) == 4 * model.num_parameters()
    sizes = {part.name: part.parameters for part in found}
    assert sizes["embedding"] == 128 * 32
    assert sizes["MLP"] >= 2 * 4 * 32 * 64 and sizes["attention"] >= 3 * 4 * 32 * 32
    assert ("head" in sizes) == (not model.config.tie_word_embeddings)


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_mean_every_site(family):
    model = tiny(family)
    found = patterns(model)
    assert sum(found.values()) == len(sites_of(model))
    assert all(len(matching([pattern], sites_of(model))) == count for pattern, count in found.items())
    assert not any(letter.isdigit() for pattern in found for letter in pattern)
    assert (found["layers.*"], found["layers.*.self_attn.heads.*"], found["norm"]) == (4, 16, 1)


def test_a_matrix_moved_by_half_is_found_in_its_part():
    model, other = tiny("llama"), tiny("llama")
    weight = other.get_submodule("model.layers.1.mlp.up_proj").weight
    weight.mul_(1.5)
    found = {each.name: each for each in differences(model, other)}
    assert (found["MLP"].equal, found["MLP"].moved, found["MLP"].unlike) == (11, 1, 0)
    mlps = [tensor for part in parts(model) if part.name == "MLP" for tensor in part.tensors.values()]
    whole = sum(tensor.square().sum() for tensor in mlps).sqrt()
    assert found["MLP"].distance == pytest.approx((weight.norm() / 3 / whole).item(), rel=1e-5)
    assert {each.moved for name, each in found.items() if name != "MLP"} == {0}
    assert {each.distance for name, each in found.items() if name != "MLP"} == {0}


def test_a_model_of_other_widths_shares_no_shape_of_its_matrices():
    found = differences(tiny("llama"), tiny("llama", hidden_size=48, head_dim=12))
    assert {(each.equal, each.moved, each.distance) for each in found} == {(0, 0, None)}


def test_what_can_be_done_follows_from_blocks_widths_and_tokens():
    target = tiny("llama")
    assert possible(target, tiny("llama", seed=1), True)[0].startswith("Weights can be copied")
    assert possible(target, tiny("llama", seed=1), False)[0] == "Weights cannot be copied: the tokens differ."
    assert possible(target, tiny("gpt2"), True)[0] == "Weights cannot be copied: the blocks differ."
    assert possible(target, tiny("gpt2"), True)[1].startswith("A blade needs no bridge for the width")
    wide = tiny("llama", hidden_size=48, head_dim=12)
    assert possible(target, wide, False)[1:] == [
        "A blade needs a bridge from width 48 to 32.",
        "Tokens are matched by character offsets.",
    ]


def test_a_model_is_told_from_its_directory(tmp_path):
    said = told(saved(tiny("qwen2").to(torch.bfloat16), tmp_path / "model"))
    text = "\n".join(" ".join(line.split()) for line in said)
    assert "architecture Qwen2ForCausalLM, 4 × Qwen2DecoderLayer" in text
    assert f"parameters {tiny('qwen2').num_parameters():,}, bfloat16" in text
    assert "heads 4 of queries, 2 of keys and values" in text
    assert "MLP width 64" in text
    assert "layers.*.self_attn.heads.* 16" in text
    assert "special tokens bos None, eos 2, pad 0, unk 1" in text


def test_two_models_are_compared_and_another_tokenizer_is_told(tmp_path):
    target = saved(tiny("llama"), tmp_path / "target")
    said = "\n".join(told(target, saved(tiny("llama", seed=1), tmp_path / "same")))
    assert "tokenizers: the same" in said and "Weights can be copied" in said
    wide = tiny("llama", hidden_size=48, head_dim=12)
    said = "\n".join(told(target, saved(wide, tmp_path / "wide", r"\d|[^\d]{1,3}")))
    assert "found in the other's 99" in said and "A blade needs a bridge from width 48 to 32." in said


def test_what_is_no_model_is_answered_in_a_sentence(tmp_path, capsys):
    assert main([]) == main(["--help"]) == main([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    none, option, empty = said.err.splitlines()
    assert none.startswith("graftline: Expected one or two model directories, got none; try")
    assert "got --help" in option
    assert empty.startswith("graftline: Expected a model directory with config.json") and "without one" in empty


def test_lines_are_printed(tmp_path, capsys):
    path = saved(tiny("gpt2"), tmp_path / "model")
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == list(told(path))
