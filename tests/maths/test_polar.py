"""The polar factor against the singular value decomposition's."""

import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.maths.polar import polar_factor
from tests.maths.rows import normal, rotation


def conditioned(seed: int, width: int, condition: float) -> torch.Tensor:
    values = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), width, dtype=torch.float64)
    return rotation(seed, width) * values @ rotation(seed + 1, width) * 1000


def by_svd(matrix: torch.Tensor) -> torch.Tensor:
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("condition", [1, 1e3, 1e6, 1e9])
def test_it_is_the_svd_s_to_1e_6_up_to_a_condition_of_1e9(condition, monkeypatch):
    matrix = conditioned(0, 60, condition)
    expected = by_svd(matrix)
    monkeypatch.setattr(torch.linalg, "svd", None)  # so the iteration has to make it
    found = polar_factor(matrix)
    assert (found - expected).abs().max() < 1e-6
    torch.testing.assert_close(found.T @ found, torch.eye(60, dtype=torch.float64), rtol=0, atol=1e-13)


def test_it_is_scipy_s():
    matrix = normal(0, 9, 9)
    torch.testing.assert_close(polar_factor(matrix), torch.from_numpy(scipy.linalg.polar(matrix.numpy())[0]))


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_a_matrix_without_full_rank_goes_to_the_svd(rank):
    matrix = normal(0, 8, rank) @ normal(1, rank, 8)
    found = polar_factor(matrix)
    assert torch.equal(found, by_svd(matrix))
    torch.testing.assert_close(found.T @ found, torch.eye(8, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 9), columns=st.integers(1, 9), scale=st.floats(1e-12, 1e12))
def test_any_shape_and_scale_gives_the_svd_s(seed, rows, columns, scale):
    matrix = normal(seed, rows, columns)
    torch.testing.assert_close(polar_factor(matrix * scale), by_svd(matrix), rtol=0, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_turning_the_matrix_turns_its_factor(seed):
    matrix, left, right = normal(seed, 6, 6), rotation(seed, 6), rotation(seed + 1, 6)
    torch.testing.assert_close(polar_factor(left @ matrix @ right), left @ polar_factor(matrix) @ right)
