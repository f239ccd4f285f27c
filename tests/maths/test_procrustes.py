"""Rotations and ridge regression against scipy and scikit-learn."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from stages.errors import BadInput
from stages.maths.procrustes import agreement, orthogonal, ridge


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.atleast_2d(scipy.stats.ortho_group.rvs(width, random_state=seed)))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(2, 12))
def test_a_rotation_is_recovered_in_the_right_direction(seed, width):
    x, turn = normal(seed, 40, width), rotation(seed, width)
    bridge = orthogonal(x, x @ turn)
    torch.testing.assert_close(bridge.weight, turn, rtol=0, atol=1e-5)
    assert agreement(bridge(x), x @ turn).cosine == pytest.approx(1)


def test_a_rotation_of_ill_conditioned_float32_states_is_recovered():
    x = (normal(0, 500, 64) * torch.logspace(0, -3, 64)).float()
    turn = rotation(1, 64)
    recovered = orthogonal(x, (x.double() @ turn).float()).weight
    torch.testing.assert_close(recovered, turn.float(), rtol=0, atol=1e-3)


def test_the_rotation_of_noisy_rows_is_scipy_s():
    x, y = normal(0, 50, 7), normal(1, 50, 7)
    oracle, _ = scipy.linalg.orthogonal_procrustes(x.numpy(), y.numpy())
    torch.testing.assert_close(orthogonal(x, y).weight, torch.from_numpy(oracle))


def test_bridge_of_identical_models_is_identity():
    x = normal(0, 50, 7)
    torch.testing.assert_close(orthogonal(x, x).weight, torch.eye(7, dtype=torch.float64))


def test_a_rotation_between_unequal_widths_is_refused():
    with pytest.raises(BadInput, match="equal widths for a rotation, got 7 and 5"):
        orthogonal(normal(0, 50, 7), normal(1, 50, 5))


def test_ridge_is_scikit_learn_s():
    x, y = normal(0, 60, 5) + 3, normal(1, 60, 8) - 1
    penalty = 0.1 * ((x - x.mean(0)) ** 2).sum(0).mean().item()
    oracle = Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    fitted = ridge(x, y, strength=0.1)
    torch.testing.assert_close(fitted.weight, torch.from_numpy(oracle.coef_.T))
    torch.testing.assert_close(fitted.bias, torch.from_numpy(oracle.intercept_))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_rotating_or_scaling_the_source_changes_no_ridge_prediction(seed, scale):
    x, y, turn = normal(seed, 30, 6), normal(seed + 1, 30, 4), rotation(seed, 6)
    plain, turned = ridge(x, y, 0.05), ridge(x @ turn * scale + 2, y, 0.05)
    torch.testing.assert_close(turned(x @ turn * scale + 2), plain(x), rtol=1e-6, atol=1e-6)


def test_ridge_recovers_an_affine_map_exactly_without_penalty():
    x, weight = normal(0, 60, 5), normal(1, 5, 8)
    fitted = ridge(x, x @ weight + 4, strength=0.0)
    torch.testing.assert_close(fitted.weight, weight)
    torch.testing.assert_close(fitted.bias, torch.full((8,), 4.0, dtype=torch.float64))


def test_agreement_is_scikit_learn_s_variance_weighted_r2():
    x, y = normal(0, 50, 7), normal(1, 50, 7) * torch.arange(1, 8)
    judged = agreement(x, y)
    assert judged.r2 == pytest.approx(r2_score(y, x, multioutput="variance_weighted"))
    assert judged.mse == pytest.approx(((x - y) ** 2).mean().item())
