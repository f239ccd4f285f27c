"""Where a mixture sends its tokens, and a bias that moves it, on every family of mixtures."""

import pytest
import torch

from stages.anatomy.hooks import reading
from stages.anatomy.routing import biased, experts_of, preferred, raised, routed, routers_of, share
from stages.errors import BadInput
from tests.families import MIXTURES, tiny, token_ids

LAYERS, EXPERTS = 4, 4
CHOSEN = torch.tensor([[0, 3], [1, 2], [0, 1], [2, 3]])


def logits(model, ids=None) -> torch.Tensor:
    return model(input_ids=token_ids() if ids is None else ids, use_cache=False).logits


def hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", MIXTURES)
def test_a_bias_of_zero_changes_no_bit_and_the_model_is_as_before(family):
    model = tiny(family)
    before, hooked = logits(model), hooks(model)
    with biased(model, torch.zeros(LAYERS, EXPERTS)):
        assert torch.equal(logits(model), before)
    with pytest.raises(KeyError), biased(model, raised(CHOSEN, EXPERTS, 5.0)):
        assert not torch.allclose(logits(model), before, atol=1e-3)
        raise KeyError
    assert torch.equal(logits(model), before)
    assert hooks(model) == hooked


@pytest.mark.parametrize("family", MIXTURES)
def test_a_bias_is_added_to_the_routers_logits(family):
    model, site = tiny(family), "layers.0.mlp.router"
    bias = torch.randn(LAYERS, EXPERTS, generator=torch.Generator().manual_seed(0))
    with reading(model, [site]) as plain:
        logits(model)
    with biased(model, bias), reading(model, [site]) as moved:
        logits(model)
    assert torch.allclose(moved[site], plain[site] + bias[0], atol=1e-5)


@pytest.mark.parametrize("family", [family for family in MIXTURES if family != "phimoe"])
def test_the_best_biased_experts_are_chosen_with_the_weights_of_the_biased_logits(family):
    model, layer = tiny(family), 2
    router = model.get_submodule(routers_of(model)[layer])
    states = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    bias = raised(CHOSEN, EXPERTS, 1.5)
    with biased(model, bias):
        _, weights, indices = router(states)
    expected = (states @ router.weight.T + bias[layer]).softmax(-1).topk(2, -1)
    assert torch.equal(indices, expected.indices)
    normalized = expected.values / expected.values.sum(-1, keepdim=True)
    assert torch.allclose(weights / weights.sum(-1, keepdim=True), normalized, atol=1e-6)


@pytest.mark.parametrize("family", MIXTURES)
def test_at_the_strongest_every_token_passes_the_chosen_experts(family):
    model, rows = tiny(family), token_ids().tolist()
    shares = []
    for strength in (0.0, 2.0, 200.0):
        with biased(model, raised(CHOSEN, EXPERTS, strength)):
            shares.append(float(share(routed(model, rows), CHOSEN).mean()) / len(rows[0]))
    assert shares[0] < shares[1] < 0.99 and shares[2] == pytest.approx(1)


@pytest.mark.parametrize("family", MIXTURES)
def test_no_weights_of_a_router_do_what_a_bias_does(family):
    """An odd map stays odd, whatever its weights."""
    model = tiny(family)
    router = model.get_submodule(routers_of(model)[0])
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    states = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        router.weight.normal_()
    assert torch.allclose(router(states)[0], -router(-states)[0])
    with biased(model, raised(CHOSEN, EXPERTS, 2.0)):
        assert not torch.allclose(router(states)[0], -router(-states)[0])


@pytest.mark.parametrize("family", MIXTURES)
def test_mass_is_the_mean_of_the_weights_that_experts_outputs_are_summed_with(family):
    model, ids = tiny(family), token_ids(1)
    seen = []
    experts = model.base_model.layers[1].mlp.experts
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args[1:]))
    logits(model, ids)
    handle.remove()
    indices, weights = seen[0]
    expected = torch.zeros(EXPERTS)
    for chosen, given in zip(indices, weights, strict=True):
        for expert, weight in zip(chosen, given / given.sum(), strict=True):
            expected[expert] += weight / ids.shape[1]
    assert torch.allclose(routed(model, ids.tolist()).mean()[1].float(), expected, atol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_routing_does_not_depend_on_what_stands_in_the_same_batch(family):
    model = tiny(family)
    rows = [row[:length] for row, length in zip(token_ids(4).tolist(), (11, 3, 7, 11), strict=True)]
    together = routed(model, rows)
    alone = torch.cat([routed(model, [row]).mass for row in rows])
    assert torch.allclose(together.mass, alone, atol=1e-5)
    assert torch.allclose(together.mass.sum(2), together.tokens[:, None].expand(-1, LAYERS))


def test_preferred_experts_are_those_with_more_mass_inside_than_outside():
    model = tiny("mixtral")
    inside, outside = routed(model, token_ids(4, seed=1).tolist()), routed(model, token_ids(4, seed=2).tolist())
    difference = inside.mean() - outside.mean()
    for layer, experts in enumerate(preferred(inside, outside, 1)):
        assert difference[layer, experts[0]] == difference[layer].max()
    both = torch.cat([preferred(inside, outside, 2), preferred(outside, inside, 2)], dim=1)
    assert both.sort(1).values.tolist() == [list(range(EXPERTS))] * LAYERS
    for count in (0, EXPERTS):
        with pytest.raises(BadInput, match=f"Expected 1 to 3 experts a mixture to prefer, got {count}"):
            preferred(inside, outside, count)


def test_a_dense_model_has_no_router_and_says_so_in_one_sentence():
    for ask in (routers_of, experts_of, lambda m: routed(m, [[3, 4]])):
        with pytest.raises(BadInput, match="Expected a mixture of experts, got LlamaForCausalLM, whose MLPs are dense"):
            ask(tiny("llama"))


def test_layers_that_are_dense_are_left_out():
    model = tiny("qwen2_moe", mlp_only_layers=[1])
    assert list(routers_of(model)) == [0, 2, 3]
    assert routed(model, token_ids().tolist()).mass.shape == (3, 3, EXPERTS)
