"""Experts taken out of one mixture, or dense MLPs, and put into another."""

import pytest
import torch

from stages.anatomy.experts import implanted, taken
from stages.anatomy.hooks import reading
from stages.anatomy.routing import biased, raised
from stages.errors import BadInput
from tests.families import MIXTURES, tiny, token_ids

SITE, OTHER = "layers.1.mlp.experts.2", "layers.3.mlp.experts.0"


def logits(model) -> torch.Tensor:
    return model(input_ids=token_ids(), use_cache=False).logits


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_put_back_into_its_place_changes_no_bit(family):
    model = tiny(family)
    before = logits(model)
    with implanted(model, {SITE: taken(model, SITE)}):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_donors_expert_computes_in_the_target_what_it_computes_in_the_donor(family):
    target, donor = tiny(family), tiny(family, seed=1)
    before, given = weights(target), taken(donor, OTHER)
    with implanted(target, {SITE: given}):
        changed = {name for name, value in target.state_dict().items() if not torch.equal(value, before[name])}
        states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
        ours, theirs = (model.base_model.layers[i].mlp.experts for model, i in ((target, 1), (donor, 3)))
        told = [stack(states, torch.full((5, 1), index), torch.ones(5, 1)) for stack, index in ((ours, 2), (theirs, 0))]
        assert torch.allclose(*told, atol=1e-6)
    assert changed == {f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")}


@pytest.mark.parametrize("family", MIXTURES)
def test_the_target_is_as_before_on_the_exception_path_too(family):
    target, donor = tiny(family), tiny(family, seed=1)
    before = weights(target)
    with pytest.raises(KeyError), implanted(target, {SITE: taken(donor, SITE)}):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_that_change_places_with_their_routers_rows_change_no_logit(family):
    model = tiny(family)
    before = logits(model)
    router = model.base_model.layers[1].mlp.router if family == "phimoe" else model.base_model.layers[1].mlp.gate
    one, other = "layers.1.mlp.experts.0", "layers.1.mlp.experts.2"
    rows = router.weight[[2, 1, 0, 3]].clone()
    with implanted(model, {one: taken(model, other), other: taken(model, one)}):
        assert not torch.allclose(logits(model), before, atol=1e-3)
        router.weight.copy_(rows)
        assert torch.allclose(logits(model), before, atol=1e-5)


@pytest.mark.parametrize("dense", ["llama", "qwen2", "phi3"])
def test_a_dense_donors_mlp_computes_as_an_expert_what_it_computes_there(dense):
    """Also with fewer neurons than the expert has, which is filled up; where all tokens pass it, it is the mixture."""
    target, donor = tiny("mixtral"), tiny(dense, seed=1, intermediate_size=40)
    given = dict.fromkeys((f"layers.1.mlp.experts.{i}" for i in (0, 1)), taken(donor, "layers.2.mlp"))
    with (
        implanted(target, given),
        biased(target, raised(torch.tensor([[0, 1]] * 4), 4, 100.0)),
        reading(target, ["layers.1.mlp"]) as states,
    ):
        entering = []
        handle = target.base_model.layers[1].mlp.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
        logits(target)
        handle.remove()
    assert torch.allclose(states["layers.1.mlp"], donor.base_model.layers[2].mlp(entering[0]), atol=1e-4)


REFUSED = {
    "width": (tiny("mixtral", hidden_size=16), SITE, "of width 32 .*, got one of width 16; take a donor of the"),
    "neurons": (tiny("mixtral", intermediate_size=96), SITE, "at most 64 neurons .*, got 96; project it to 64 neurons"),
    "activation": (tiny("gemma"), "layers.0.mlp", "activation silu .*, got gelu_pytorch_tanh; take a donor with"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_expert_that_does_not_fit_is_refused_before_anything_is_changed(why):
    donor, site, match = REFUSED[why]
    target = tiny("mixtral")
    before = weights(target)
    with (
        pytest.raises(BadInput, match=match),
        implanted(target, {OTHER: taken(target, SITE), SITE: taken(donor, site)}),
    ):
        raise AssertionError
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_a_place_without_an_expert_is_refused_in_one_sentence():
    given = taken(tiny("llama"), "layers.1.mlp")
    with pytest.raises(BadInput, match=r"got 'layers\.1\.mlp\.experts\.2'"), implanted(tiny("llama"), {SITE: given}):
        raise AssertionError
    with (
        pytest.raises(BadInput, match="name an expert of a Mixtral, Qwen-MoE, OLMoE or Phi-MoE"),
        implanted(tiny("mixtral"), {"layers.1.mlp": given}),
    ):
        raise AssertionError
    with pytest.raises(BadInput, match="take an MLP of Llama's kind"):
        taken(tiny("gpt2"), "layers.1.mlp")
