"""Linear modules have one name in all architectures."""

import pytest
import torch

from stages.anatomy.blocks import linear_modules
from stages.anatomy.modules import linear_paths
from stages.anatomy.restart import exchanged
from tests.families import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_module_has_a_canonical_name_of_its_own(family):
    model = tiny(family)
    paths = linear_paths(model)
    assert list(paths.values()) == list(linear_modules(model))
    assert all(name.startswith("layers.") for name in paths)


@pytest.mark.parametrize(
    ("family", "name", "path"),
    [
        ("llama", "layers.2.self_attn.q_proj", "model.layers.2.self_attn.q_proj"),
        ("gpt2", "layers.2.self_attn.c_attn", "transformer.h.2.attn.c_attn"),
        ("gpt_neox", "layers.0.self_attn.query_key_value", "gpt_neox.layers.0.attention.query_key_value"),
        ("bloom", "layers.3.mlp.dense_4h_to_h", "transformer.h.3.mlp.dense_4h_to_h"),
        ("opt", "layers.1.fc1", "model.decoder.layers.1.fc1"),
    ],
)
def test_names_are_canonical(family, name, path):
    assert linear_paths(tiny(family))[name] == path


def test_an_exchanged_module_stands_only_inside_the_block():
    model, donor = tiny("llama"), tiny("llama", seed=1)
    path = "model.layers.1.mlp.up_proj"
    own, other = model.get_submodule(path), donor.get_submodule(path)
    with pytest.raises(KeyError), exchanged(model, path, other):
        assert model.get_submodule(path) is other
        raise KeyError("inside")
    assert model.get_submodule(path) is own and isinstance(own, torch.nn.Linear)
