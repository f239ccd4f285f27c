"""Site names mean the same in every family."""

import pytest

from stages.anatomy.names import kind_of, layer_of, matching
from stages.anatomy.sites import resolve, sites_of
from stages.errors import BadInput
from tests.families import FAMILIES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_same_sites_in_the_same_order(family):
    within = [f"layers.{i}{part}" for i in range(4) for part in (".self_attn", ".mlp", "")]
    assert list(sites_of(tiny(family))) == ["embed", *within, "norm", "lm_head"]


def test_a_site_resolves_to_the_module_of_the_architecture():
    model = tiny("gpt2")
    assert resolve(model, "layers.2.self_attn") is model.get_submodule("transformer.h.2.attn")
    assert resolve(model, "norm") is model.get_submodule("transformer.ln_f")


def test_a_misspelt_site_names_the_nearest():
    with pytest.raises(BadInput, match=r"got 'layers\.2\.self_attm'; did you mean 'layers\.2\.self_attn'\?$"):
        resolve(tiny("llama"), "layers.2.self_attm")


def test_a_site_beyond_the_last_block_names_the_range():
    with pytest.raises(BadInput, match=r"got 'layers\.4\.mlp'; layers go from 0 to 3"):
        resolve(tiny("llama"), "layers.4.mlp")


def test_kind_and_layer_are_read_from_the_name():
    names = ["embed", "layers.12", "layers.3.self_attn", "layers.3.mlp", "norm"]
    assert [kind_of(name) for name in names] == ["embed", "block", "attention", "mlp", "norm"]
    assert [layer_of(name) for name in names] == [None, 12, 3, 3, None]


def test_a_star_stands_for_one_part_of_a_name():
    known = list(sites_of(tiny("llama")))
    assert matching(["layers.*"], known) == [f"layers.{i}" for i in range(4)]
    assert matching(["norm", "layers.*.mlp"], known) == [*(f"layers.{i}.mlp" for i in range(4)), "norm"]


def test_a_pattern_that_means_no_site_is_refused():
    with pytest.raises(BadInput, match=r"got 'layer\.\*', which means none of the model's 15 sites"):
        matching(["layer.*"], sites_of(tiny("llama")))
