"""The polar factor, in both ways that it is found, against scipy's."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.maths.polar import newton, polar_factor
from tests.maths.rows import normal, rotation


def conditioned(seed: int, width: int, condition: float) -> torch.Tensor:
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), width, dtype=torch.float64)
    return rotation(seed, width) * values @ rotation(seed + 1, width) * 1000


@pytest.mark.parametrize("condition", [1, 1e3, 1e6, 1e9])
def test_newton_s_is_the_svd_s_to_1e_6_up_to_a_condition_of_1e9(condition):
    matrix = conditioned(0, 60, condition)
    found = newton(matrix)
    assert (found - polar_factor(matrix)).abs().max() < 1e-6
    torch.testing.assert_close(found.T @ found, torch.eye(60, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("way", [polar_factor, newton])
def test_it_is_scipy_s(way):
    matrix = normal(0, 9, 9)
    torch.testing.assert_close(way(matrix), torch.from_numpy(scipy.linalg.polar(matrix.numpy())[0]))


@pytest.mark.parametrize("columns", [8, 5])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_newton_leaves_a_matrix_without_full_rank_to_the_svd(rank, columns):
    matrix = normal(0, 8, rank) @ normal(1, rank, columns)
    assert newton(matrix) is None and newton(matrix.T) is None
    found = polar_factor(matrix)
    torch.testing.assert_close(found.T @ found, torch.eye(columns, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(1, 9), scale=st.floats(1e-12, 1e12))
def test_any_shape_and_scale_gives_the_same_in_both_ways(seed, rows, columns, scale):
    matrix = normal(seed, rows, columns)
    torch.testing.assert_close(newton(matrix * scale), polar_factor(matrix), rtol=0, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_turning_the_matrix_turns_its_factor(seed):
    matrix, left, right = normal(seed, 6, 6), rotation(seed, 6), rotation(seed + 1, 6)
    torch.testing.assert_close(polar_factor(left @ matrix @ right), left @ polar_factor(matrix) @ right)
