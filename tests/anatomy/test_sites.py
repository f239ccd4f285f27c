"""Site names mean the same in every family."""

import pytest

from stages.anatomy.names import kind_of, layer_of, matching
from stages.anatomy.sites import resolve, sites_of
from stages.errors import BadInput
from tests.families import FAMILIES, MIXTURES, tiny


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_same_sites_in_the_same_order(family):
    mixture = [".mlp.router", *(f".mlp.experts.{i}" for i in range(4))] if family in MIXTURES else []
    wide = 128 if family == "bloom" else 64
    inside = mixture or [f".mlp.neurons.0:{wide}"]
    parts = [*(f".self_attn.heads.{i}" for i in range(4)), ".self_attn", *inside, ".mlp", ""]
    within = [f"layers.{i}{part}" for i in range(4) for part in parts]
    assert list(sites_of(tiny(family))) == ["embed", *within, "norm", "lm_head"]


def test_a_site_resolves_to_the_module_of_the_architecture():
    model = tiny("gpt2")
    assert resolve(model, "layers.2.self_attn").module is model.get_submodule("transformer.h.2.attn")
    assert resolve(model, "layers.2.self_attn.heads.1").module is model.get_submodule("transformer.h.2.attn.c_proj")
    assert resolve(model, "norm").module is model.get_submodule("transformer.ln_f")


def test_a_misspelt_site_names_the_nearest():
    with pytest.raises(BadInput, match=r"got 'layers\.2\.self_attm'; did you mean 'layers\.2\.self_attn'\?$"):
        resolve(tiny("llama"), "layers.2.self_attm")


def test_a_site_beyond_the_last_block_names_the_range():
    with pytest.raises(BadInput, match=r"got 'layers\.4\.mlp'; layers go from 0 to 3"):
        resolve(tiny("llama"), "layers.4.mlp")


def test_kind_and_layer_are_read_from_the_name():
    kinds = {
        "embed": "embed", "layers.12": "block", "layers.3.self_attn": "attention", "layers.3.mlp": "mlp",
        "layers.3.self_attn.heads.12": "head", "layers.3.mlp.router": "router", "layers.3.mlp.experts.0": "expert",
        "layers.3.mlp.neurons.0:64": "neurons",
        "norm": "norm",
    }  # fmt: skip
    assert {name: kind_of(name) for name in kinds} == kinds
    assert [layer_of(name) for name in kinds] == [None, 12, 3, 3, 3, 3, 3, 3, None]


def test_a_star_stands_for_one_part_of_a_name():
    known = list(sites_of(tiny("llama")))
    assert matching(["layers.*"], known) == [f"layers.{i}" for i in range(4)]
    assert matching(["norm", "layers.*.mlp"], known) == [*(f"layers.{i}.mlp" for i in range(4)), "norm"]
    assert matching(["layers.1.self_attn.heads.*"], known) == [f"layers.1.self_attn.heads.{i}" for i in range(4)]


def test_a_pattern_that_means_no_site_is_refused():
    with pytest.raises(BadInput, match=r"got 'layer\.\*', which means none of the model's 35 sites"):
        matching(["layer.*"], sites_of(tiny("llama")))


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layers.*.mpl", r"did you mean 'layers\.\*\.mlp'\?$"),
        ("layers.*.self_attn.head.*", r"did you mean 'layers\.\*\.self_attn\.heads\.\*'\?$"),
        ("layers.4.*", r"layers go from 0 to 3\.$"),
        ("layers.1.mpl", r"did you mean 'layers\.1\.mlp'\?$"),
        ("qqq", r"valid are: embed, layers\.\*, layers\.\*\.mlp, layers\.\*\.mlp\.neurons\.\*, .*, lm_head, norm$"),
    ],
)
def test_a_wrong_pattern_names_the_nearest_that_means_sites(pattern, hint):
    with pytest.raises(BadInput, match=hint):
        matching([pattern], sites_of(tiny("llama")))


def test_neurons_are_listed_in_groups_as_equal_as_can_be_and_any_range_is_resolved():
    model = tiny("llama")
    listed = [site for site in sites_of(model, neuron_groups=5) if site.startswith("layers.2.mlp.neurons")]
    assert [site.rpartition(".")[2] for site in listed] == ["0:12", "12:25", "25:38", "38:51", "51:64"]
    assert resolve(model, "layers.2.mlp.neurons.3:4").module is model.get_submodule("model.layers.2.mlp.down_proj")
    for wrong in ("3:3", "5:4", "60:65"):
        with pytest.raises(BadInput, match=f"Expected neurons from 0 to 64, got 'layers.2.mlp.neurons.{wrong}'"):
            resolve(model, f"layers.2.mlp.neurons.{wrong}")
    with pytest.raises(BadInput, match="Expected 1 to 64 groups of an MLP's 64 neurons, got 65; ask for fewer"):
        sites_of(model, neuron_groups=65)
