"""How many directions rows span."""

import math

import pytest
import scipy.stats
import torch

from stages.maths.rank import effective_rank


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rows_spread_evenly_over_k_directions_have_rank_k():
    assert effective_rank(torch.eye(12, 40)[:7] * 3) == pytest.approx(7)
    assert effective_rank(torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 5))) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_it_is_the_entropy_of_the_singular_values(shape):
    rows = normal(0, *shape)
    sizes = torch.linalg.svdvals(rows)
    expected = math.exp(scipy.stats.entropy((sizes / sizes.sum()).numpy()))
    assert effective_rank(rows) == pytest.approx(expected)


def test_scale_rotation_and_the_order_of_rows_change_nothing():
    rows = normal(1, 20, 6)
    turned = rows[torch.arange(19, -1, -1)] @ torch.from_numpy(scipy.stats.ortho_group.rvs(6, random_state=0)) * 50
    assert effective_rank(turned) == pytest.approx(effective_rank(rows))


def test_zero_rows_have_none():
    assert math.isnan(effective_rank(torch.zeros(5, 3)))
