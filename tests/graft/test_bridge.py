"""What a bridge makes of a donor's states."""

import pytest
import torch

from stages.graft.bridge import Bridge

STATES = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(0))


def test_identity_is_the_states_themselves_and_learns_nothing():
    bridge = Bridge("identity", 24, 24)
    assert bridge(STATES) is STATES
    assert not bridge.state_dict()


def test_linear_is_an_affine_map_of_the_normed_states():
    bridge = Bridge("linear", 24, 32)
    normed = (STATES - STATES.mean(-1, keepdim=True)) / (STATES.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(bridge(STATES), normed @ bridge.map.weight.T + bridge.map.bias, atol=1e-5)
    assert bridge(STATES).shape == (2, 5, 32)


def test_linear_does_not_mind_the_size_of_the_donors_states():
    bridge = Bridge("linear", 24, 32)
    assert torch.allclose(bridge(1000 * STATES), bridge(STATES), atol=1e-4)


def test_residual_starts_as_the_identity_bit_for_bit_and_can_leave_it():
    bridge = Bridge("residual", 24, 24)
    assert torch.equal(bridge(STATES), STATES)
    bridge(STATES).square().sum().backward()
    assert bridge.map.weight.grad is not None
    assert bridge.map.weight.grad.abs().sum() > 0
    torch.nn.init.normal_(bridge.map.weight)
    expected = STATES + bridge.map(bridge.norm(STATES))
    assert torch.equal(bridge(STATES), expected)
    assert not torch.allclose(expected, STATES, atol=0.1)


@pytest.mark.parametrize("kind", ["identity", "residual"])
def test_another_width_needs_a_linear_bridge(kind):
    with pytest.raises(
        ValueError, match=f"width 24 and the target 32, which '{kind}' cannot bridge; set bridge: linear"
    ):
        Bridge(kind, 24, 32)


def test_an_unknown_kind_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="identity, linear, residual, mixture, got 'procrustes'"):
        Bridge("procrustes", 24, 24)


def test_a_mixture_is_the_mean_of_its_bridges_weighted_by_shares_that_start_equal():
    bridge = Bridge("mixture", 24, 32, 3)
    normed = bridge.norm(STATES)
    weights, biases = bridge.map.weight.unflatten(0, (3, 32)), bridge.map.bias.unflatten(0, (3, 32))
    each = torch.stack([normed @ weight.T + bias for weight, bias in zip(weights, biases, strict=True)])
    assert torch.allclose(bridge(STATES), each.mean(0), atol=1e-5)
    torch.nn.init.normal_(bridge.share.weight)
    shares = bridge.share(normed).softmax(-1)
    assert torch.allclose(bridge(STATES), torch.einsum("kbtw,btk->btw", each, shares), atol=1e-5)


def test_a_mixture_of_one_is_a_linear_bridge():
    mixture, linear = Bridge("mixture", 24, 32, 1), Bridge("linear", 24, 32)
    linear.load_state_dict({name: value for name, value in mixture.state_dict().items() if "share" not in name})
    assert torch.allclose(mixture(STATES), linear(STATES), atol=1e-6)


def test_every_bridge_of_a_mixture_and_its_shares_learn():
    bridge = Bridge("mixture", 24, 32, 3)
    (bridge(STATES) * torch.randn(32, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert bridge.share.weight.grad is not None and bridge.share.weight.grad.any(-1).all()
    assert bridge.map.weight.grad is not None and bridge.map.weight.grad.any(-1).all()
