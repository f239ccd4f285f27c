"""Regression from moments against scikit-learn, numpy and the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge

from stages.errors import BadInput
from stages.maths.regression import least_squares, low_rank, ridge
from tests.maths.rows import normal, rotation, seen


def test_ridge_is_scikit_learn_s():
    x, y = normal(0, 60, 5) + 3, normal(1, 60, 8) - 1
    penalty = 0.1 * ((x - x.mean(0)) ** 2).sum(0).mean().item()
    oracle = Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    fitted = ridge(seen(x, y), strength=0.1)
    torch.testing.assert_close(fitted.weight, torch.from_numpy(oracle.coef_.T))
    torch.testing.assert_close(fitted.bias, torch.from_numpy(oracle.intercept_))


def test_ridge_without_intercept_is_scikit_learn_s():
    x, y = normal(0, 60, 5) + 3, normal(1, 60, 8) - 1
    penalty = 0.1 * (x**2).sum(0).mean().item()
    oracle = Ridge(alpha=penalty, fit_intercept=False).fit(x.numpy(), y.numpy())
    fitted = ridge(seen(x, y), strength=0.1, intercept=False)
    torch.testing.assert_close(fitted.weight, torch.from_numpy(oracle.coef_.T))
    assert not fitted.bias.any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_rotating_or_scaling_the_source_changes_no_ridge_prediction(seed, scale):
    x, y, turn = normal(seed, 30, 6), normal(seed + 1, 30, 4), rotation(seed, 6)
    turned = x @ turn * scale + 2
    plain = ridge(seen(x, y), 0.05)(x)
    torch.testing.assert_close(ridge(seen(turned, y), 0.05)(turned), plain, rtol=1e-6, atol=1e-6)


def test_ridge_recovers_an_affine_map_exactly_without_penalty():
    x, weight = normal(0, 60, 5), normal(1, 5, 8)
    fitted = ridge(seen(x, x @ weight + 4), strength=0.0)
    torch.testing.assert_close(fitted.weight, weight)
    torch.testing.assert_close(fitted.bias, torch.full((8,), 4.0, dtype=torch.float64))


def test_fewer_rows_than_columns_need_a_penalty():
    with pytest.raises(BadInput, match="got 4 rows of 9 columns with strength 0.0; raise the strength"):
        ridge(seen(normal(0, 4, 9), normal(1, 4, 2)), strength=0.0)


@pytest.mark.parametrize("rows", [60, 6])
def test_least_squares_is_scikit_learn_s_of_least_norm_with_few_rows_too(rows):
    x, y = normal(0, rows, 9) + 1, normal(1, rows, 4)
    oracle = LinearRegression().fit(x.numpy(), y.numpy())
    fitted = least_squares(seen(x, y))
    torch.testing.assert_close(fitted.weight, torch.from_numpy(oracle.coef_.T), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(fitted.bias, torch.from_numpy(oracle.intercept_), rtol=1e-6, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 4), strength=st.sampled_from([0.0, 0.1, 2.0]))
def test_a_low_rank_map_is_the_truncated_svd_of_the_augmented_fit(seed, rank, strength):
    """Stacking √λ·1 under X and 0 under Y makes ridge plain least squares, whose best map of a rank is known."""
    x, y = normal(seed, 40, 6), normal(seed + 1, 40, 5)
    centred_x, centred_y = (x - x.mean(0)).numpy(), (y - y.mean(0)).numpy()
    penalty = strength * (centred_x**2).sum(0).mean()
    stacked = np.vstack([centred_x, np.sqrt(penalty) * np.eye(6)])
    whole = np.linalg.lstsq(stacked, np.vstack([centred_y, np.zeros((6, 5))]), rcond=None)[0]
    _, _, directions = np.linalg.svd(stacked @ whole, full_matrices=False)
    oracle = whole @ directions[:rank].T @ directions[:rank]
    fitted = low_rank(seen(x, y), rank, strength)
    torch.testing.assert_close(fitted.weight, torch.from_numpy(oracle), rtol=1e-6, atol=1e-8)
    assert torch.linalg.matrix_rank(fitted.weight, rtol=1e-9) == rank


def test_a_rank_of_the_whole_width_is_ridge():
    known = seen(normal(0, 40, 6) + 2, normal(1, 40, 5))
    for rank in (5, 50):
        torch.testing.assert_close(low_rank(known, rank, 0.1).weight, ridge(known, 0.1).weight)


def test_a_map_of_low_rank_is_recovered():
    x, weight = normal(0, 60, 6), normal(1, 6, 2) @ normal(2, 2, 8)
    fitted = low_rank(seen(x, x @ weight - 1), 2, 0.0)
    torch.testing.assert_close(fitted.weight, weight)
    torch.testing.assert_close(fitted(x), x @ weight - 1)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(BadInput, match="rank of 1 or more, got 0"):
        low_rank(seen(normal(0, 9, 3), normal(1, 9, 3)), 0)
