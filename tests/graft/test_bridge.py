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
    with pytest.raises(ValueError, match="identity, linear, residual, got 'procrustes'"):
        Bridge("procrustes", 24, 24)
