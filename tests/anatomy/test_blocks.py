"""Blocks, their parts and layer addresses, on every family."""

import pytest
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel

from stages.anatomy.blocks import attention_of, blocks, layer_index, linear_modules, mlp_of, mlp_output_of
from stages.errors import BadInput
from tests.families import FAMILIES, MIXTURES, tiny


class Blockless(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self) -> None:
        super().__init__(PreTrainedConfig())
        self.projections = nn.ModuleList([nn.Linear(4, 4) for _ in range(9)])


class Experts(nn.Module):
    """More experts in a block than there are blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Sequential(nn.Linear(4, 4))
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(16)])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shows_its_four_blocks_with_attention(family):
    found = blocks(tiny(family))
    assert len(found) == 4
    assert all(attention_of(block) is not None and mlp_output_of(block) is not None for block in found)


def test_opt_has_no_mlp_module_but_an_mlp_output():
    block = blocks(tiny("opt"))[0]
    assert mlp_of(block) is None
    assert mlp_output_of(block) is block.fc2


def test_experts_are_not_taken_for_blocks():
    model = Blockless()
    model.layers = nn.ModuleList([Experts() for _ in range(3)])
    assert blocks(model) is model.layers


def test_a_model_without_blocks_says_so_in_one_sentence():
    with pytest.raises(BadInput, match="list of like blocks, got Blockless"):
        blocks(Blockless())


def test_an_encoder_s_blocks_are_found_too():
    config = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    assert len(blocks(BertModel(config))) == 3


@pytest.mark.parametrize(
    ("spec", "count", "index"),
    [(26, 30, 26), ("26", 30, 26), ("n-4", 30, 26), ("n-4", 32, 28), (0.875, 32, 28), (0.875, 30, 26), ("0.5", 6, 3),
     (-1, 30, 29), ("N-1", 6, 5), (0, 6, 0), (0.0, 6, 0), (0.29, 100, 29)],
)  # fmt: skip
def test_layers_are_addressed_by_index_from_the_end_and_by_depth(spec, count, index):
    assert layer_index(spec, count) == index


@pytest.mark.parametrize("spec", [30, -31, "n-0", "n-31", 1.0, "deep", "", True, "1.5"])
def test_a_layer_that_does_not_exist_names_the_valid_range(spec):
    with pytest.raises(BadInput, match="layer from 0 to 29.*does not exist"):
        layer_index(spec, 30)


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_modules_are_those_of_the_blocks_and_no_others(family):
    model = tiny(family)
    found = linear_modules(model)
    weights = {id(module.weight) for module in found.values()}
    router = "mlp.router.weight" if family == "phimoe" else "mlp.gate.weight"
    routers = {id(block.get_parameter(router)) for block in blocks(model)} if family in MIXTURES else set()
    matrices = {id(p) for p in blocks(model).parameters() if p.ndim == 2} - routers
    assert weights == matrices
    assert all(model.get_submodule(name) is module for name, module in found.items())
    assert model.get_output_embeddings() not in found.values()
