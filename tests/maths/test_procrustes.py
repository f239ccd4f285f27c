"""Rotations against scipy, and what they are at unequal widths."""

import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.maths.procrustes import orthogonal
from tests.maths.rows import normal, rotation, seen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(2, 12))
def test_a_rotation_is_recovered_in_the_right_direction(seed, width):
    x, turn = normal(seed, 40, width), rotation(seed, width)
    bridge = orthogonal(seen(x, x @ turn))
    torch.testing.assert_close(bridge.weight, turn, rtol=0, atol=1e-5)
    torch.testing.assert_close(bridge(x), x @ turn)


def test_a_rotation_of_ill_conditioned_float32_states_is_recovered():
    x = (normal(0, 500, 64) * torch.logspace(0, -3, 64)).float()
    turn = rotation(1, 64)
    recovered = orthogonal(seen(x, (x.double() @ turn).float())).weight
    torch.testing.assert_close(recovered, turn, rtol=0, atol=1e-3)


def test_the_rotation_of_noisy_rows_is_scipy_s():
    x, y = normal(0, 50, 7) + 1, normal(1, 50, 7)
    oracle, _ = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
    torch.testing.assert_close(orthogonal(seen(x, y)).weight, torch.from_numpy(oracle))
    torch.testing.assert_close(orthogonal(seen(x, y, cross_only=True)).weight, torch.from_numpy(oracle))


def test_bridge_of_identical_models_is_identity():
    x = normal(0, 50, 7)
    torch.testing.assert_close(orthogonal(seen(x, x)).weight, torch.eye(7, dtype=torch.float64))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_a_similarity_is_recovered_with_scale_and_shift(seed, scale, shift):
    x, turn = normal(seed, 40, 5) + 3, rotation(seed, 5)
    bridge = orthogonal(seen(x, x @ turn * scale + shift), centred=True, scaled=True)
    torch.testing.assert_close(bridge.weight, turn * scale)
    torch.testing.assert_close(bridge.bias, torch.full((5,), shift, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_the_scale_is_the_one_that_errs_least():
    x, y = normal(0, 50, 4), normal(1, 50, 4)
    bridge = orthogonal(seen(x, y), scaled=True)
    errors = [((x @ bridge.weight * factor) - y).square().sum() for factor in (0.99, 1, 1.01)]
    assert errors[1] == min(errors)


def test_into_a_wider_space_it_keeps_lengths_and_errs_least():
    x, y = normal(0, 60, 4), normal(1, 60, 7)
    found = orthogonal(seen(x, y)).weight
    torch.testing.assert_close(found @ found.T, torch.eye(4, dtype=torch.float64))
    error = (x @ found - y).square().sum()
    for seed in range(50):
        near = found + 0.1 * normal(seed + 2, 4, 7)
        other = torch.linalg.qr(near.T)[0].T
        other = other * (other * found).sum(1, keepdim=True).sign()  # qr may turn a direction around
        assert (x @ other - y).square().sum() > error


def test_into_a_narrower_space_it_finds_the_directions_that_were_kept():
    x, kept = torch.linalg.qr(normal(0, 60, 7))[0], rotation(1, 7)[:, :4]
    torch.testing.assert_close(orthogonal(seen(x, x @ kept)).weight, kept)
