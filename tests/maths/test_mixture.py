"""Mixtures of maps where the truth is one, and where it is not."""

import pytest
import torch

from stages.errors import BadInput
from stages.maths.agreement import agreement
from stages.maths.mixture import Mixture, mixture
from stages.maths.regression import ridge
from tests.maths.rows import chunks, normal, seen


def two_clusters(seed: int, count: int, distance: float, width: int = 8, target: int = 6) -> tuple:
    """Rows of two clusters `distance` standard deviations apart, each with a map of its own."""
    side = torch.arange(count) % 2
    x = normal(seed, count, width)
    x[:, 0] += distance * (side - 0.5)
    maps = normal(100, 2, width, target)
    maps[:, 0] = 0  # what tells the clusters apart says nothing by itself
    return x, torch.einsum("ns,nst->nt", x, maps[side]) + normal(101, 2, target)[side]


def r2(bridge, x: torch.Tensor, y: torch.Tensor) -> float:
    return agreement({"it": bridge}, chunks(x, y, 300))["it"].r2


@pytest.mark.parametrize("distance", [8, 12])
def test_two_maps_on_two_clusters_are_found_where_one_map_explains_little(distance):
    x, y = two_clusters(0, 2000, distance)
    unseen = two_clusters(1, 1000, distance)
    known = seen(x, y)
    found = mixture(chunks(x, y, 300), known, 2)
    assert r2(found, *unseen) > 0.99
    assert r2(ridge(known), *unseen) < 0.7


def test_maps_that_a_hidden_direction_chooses_are_found_by_their_errors():
    """No cluster shows: the sign of one column among sixteen says which map holds."""
    x, maps = normal(0, 4000, 16), normal(1, 2, 16, 6)
    side = (x[:, 3] > 0).long()
    y = torch.einsum("ns,nst->nt", x, maps[side])
    found, single = mixture(chunks(x, y, 500), seen(x, y), 2, epochs=20, learning_rate=3e-3), ridge(seen(x, y))
    other = normal(2, 2000, 16)
    truth = torch.einsum("ns,nst->nt", other, maps[(other[:, 3] > 0).long()])
    assert r2(found, other, truth) > 0.9 > 0.7 > r2(single, other, truth)


def test_where_one_map_is_the_truth_the_mixture_is_no_worse():
    x, weight = normal(0, 600, 8) + 3, normal(1, 8, 6)
    other = normal(2, 300, 8) + 3
    assert r2(mixture(chunks(x, x @ weight, 100), seen(x, x @ weight), 3), other, other @ weight) > 0.999


def test_the_same_seed_gives_the_same_mixture_bit_for_bit():
    x, y = two_clusters(0, 400, 8)
    one, other = (mixture(chunks(x, y, 100), seen(x, y), 3, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_alike_rows_leave_maps_without_rows_that_are_the_one_map():
    x, y = torch.ones(40, 3, dtype=torch.float64), torch.full((40, 2), 7.0, dtype=torch.float64)
    x[0] = 2
    y[0] = 9
    assert torch.isfinite(mixture(chunks(x, y, 10), seen(x, y), 4)(x)).all()


def test_a_mixture_is_the_gated_sum_of_its_maps():
    parts = normal(0, 3, 4, 5), normal(1, 3, 5), normal(2, 4, 3), normal(3, 3)
    x = normal(4, 7, 4)
    shares = (x @ parts[2] + parts[3]).softmax(1)
    by_hand = sum(shares[:, [j]] * (x @ parts[0][j] + parts[1][j]) for j in range(3))
    torch.testing.assert_close(Mixture(*parts)(x), by_hand)


def test_one_bridge_is_no_mixture():
    with pytest.raises(BadInput, match="two bridges or more, got 1"):
        mixture([], seen(normal(0, 9, 3), normal(1, 9, 3)), 1)
