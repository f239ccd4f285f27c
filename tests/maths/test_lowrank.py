"""Factored matrices against numpy's singular values and the matrices themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.maths.lowrank import LowRank, drawn_like, factored, total
from tests.maths.rows import normal


def low(seed: int, out: int = 9, rank: int = 3, width: int = 7) -> LowRank:
    return LowRank(normal(seed, out, rank), normal(seed + 1, rank, width))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 12), keep=st.integers(1, 12))
def test_truncation_is_numpy_s(seed, rank, keep):
    matrix = low(seed, rank=rank)
    u, values, vt = np.linalg.svd(matrix.dense.numpy())
    best = torch.from_numpy(u[:, :7][:, :keep] @ (values[:keep, None] * vt[:keep]))
    cut = matrix.truncated(keep)
    torch.testing.assert_close(cut.dense, best, rtol=0, atol=1e-9)
    assert cut.rank == min(keep, rank, 7)
    torch.testing.assert_close(matrix.singular()[1][:7], torch.from_numpy(values)[:rank], rtol=0, atol=1e-9)
    torch.testing.assert_close(factored(matrix.dense, keep).dense, best, rtol=0, atol=1e-9)
    torch.testing.assert_close(factored(matrix.dense.T, keep).dense, best.T, rtol=0, atol=1e-9)


def test_energy_is_the_sum_of_squares():
    matrix = low(0)
    assert matrix.energy == pytest.approx(float(matrix.dense.square().sum()))
    assert matrix.scaled(-0.5).energy == pytest.approx(matrix.energy / 4)
    assert LowRank(torch.zeros(3, 2), torch.ones(2, 4)).energy == 0


def test_a_sum_is_exact_and_has_no_cross_terms():
    one, two = low(0), low(5, rank=2)
    both = total([one, two.scaled(-2)])
    assert both.rank == 5
    torch.testing.assert_close(both.dense, one.dense - 2 * two.dense)
    torch.testing.assert_close(both.truncated(7).dense, both.dense)


def test_a_random_matrix_is_as_long_and_not_alike():
    matrix = low(0, out=60, width=50)
    drawn = drawn_like(matrix, torch.Generator().manual_seed(0))
    assert drawn.energy == pytest.approx(matrix.energy, rel=1e-5)
    assert abs(float(torch.cosine_similarity(drawn.dense.flatten(), matrix.dense.float().flatten(), 0))) < 0.1
    nothing = drawn_like(matrix.scaled(0.0), torch.Generator().manual_seed(0))
    assert nothing.energy == 0 and bool(nothing.dense.isfinite().all())


def test_no_rank_at_all_is_refused():
    with pytest.raises(BadInput, match="Expected a rank of 1 or more, got 0"):
        low(0).truncated(0)
