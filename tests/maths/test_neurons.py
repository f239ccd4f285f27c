"""Activity of an MLP's neurons."""

import math

import pytest
import torch

from stages.maths.neurons import active_share, gini, top_overlap


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_quarter_of_equally_active_neurons_is_a_quarter():
    rows = torch.zeros(6, 40)
    for row in rows:
        row[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:10]] = -2.0
    assert active_share(rows) == pytest.approx(0.25)
    assert gini(rows) == pytest.approx(0.75)


def test_gaussian_values_have_the_share_of_their_distribution():
    assert active_share(normal(0, 50, 4000)) == pytest.approx(2 / math.pi, abs=0.005)


def test_gini_is_the_mean_difference_of_pairs():
    rows = normal(1, 4, 30).double()
    pairs = (rows.abs()[:, :, None] - rows.abs()[:, None]).abs().mean((1, 2)) / (2 * rows.abs().mean(1))
    assert gini(rows) == pytest.approx(pairs.mean().item())
    assert gini(torch.eye(5)) == pytest.approx(0.8)
    assert gini(torch.ones(3, 7)) == pytest.approx(0)


def test_scale_and_the_order_of_neurons_change_nothing():
    rows, order = normal(2, 5, 20), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for figure in (active_share, gini):
        assert figure(30 * rows[:, order]) == pytest.approx(figure(rows))


def test_silent_rows_count_as_nothing_active():
    assert (active_share(torch.zeros(2, 4)), gini(torch.zeros(2, 4))) == (0, 0)


def test_overlap_is_that_of_the_most_active_neurons():
    one = torch.arange(40.0).expand(3, 40)
    assert top_overlap(one, -one, 0.1) == 1
    assert top_overlap(one, one.flip(1), 0.1) == 0
    assert top_overlap(one, torch.where(one > 37, one, 0) + torch.where(one < 2, 30, 0), 0.1) == 0.5
