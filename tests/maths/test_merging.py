"""Merges against hand computations, PEFT's own functions and their symmetries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from stages.errors import BadInput
from stages.maths.merging import (
    conflicts,
    dare,
    dare_ties,
    disjoint_mean,
    dropped,
    elected,
    linear,
    random,
    slerp,
    task_arithmetic,
    ties,
    trimmed,
)
from tests.maths.rows import normal

WEIGHTS = torch.tensor([0.7, 0.2, -0.4])


def vectors(seed: int = 0, donors: int = 3, *shape: int) -> torch.Tensor:
    return normal(seed, donors, *(shape or (6, 5))).float()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_mean_has_the_shares_that_are_given_and_the_target_the_rest():
    target, donors = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [5.0, 10.0]])
    torch.testing.assert_close(linear(target, donors, torch.tensor([0.5, 0.25])), torch.tensor([3.0, 3.0]))
    assert torch.equal(linear(target, donors, torch.zeros(2)), target)
    torch.testing.assert_close(linear(target, donors, torch.tensor([0.0, 1.0])), donors[1])
    for wrong in ([0.8, 0.3], [-0.1, 0.5]):
        with pytest.raises(BadInput, match="Expected shares of a mean.*use task arithmetic"):
            linear(target, donors, torch.tensor(wrong))


def test_a_mean_is_the_target_plus_task_arithmetic():
    target, donors = vectors(1, 1)[0], vectors()
    weights = WEIGHTS.abs() / 2
    torch.testing.assert_close(linear(target, donors, weights), target + task_arithmetic(donors - target, weights))


def test_task_arithmetic_is_peft_s():
    found = task_arithmetic(vectors(), WEIGHTS)
    torch.testing.assert_close(found, merge_utils.task_arithmetic(list(vectors()), WEIGHTS))
    torch.testing.assert_close(
        found[1, 2], 0.7 * vectors()[0, 1, 2] + 0.2 * vectors()[1, 1, 2] - 0.4 * vectors()[2, 1, 2]
    )


def test_between_orthogonal_units_the_arc_is_the_circle():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for share in (0.0, 0.25, 0.5, 1.0):
        angle = share * math.pi / 2
        expected = torch.tensor([math.cos(angle), math.sin(angle)])
        torch.testing.assert_close(slerp(one, other, share), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), size=st.floats(1e-6, 3.0))
def test_on_a_sphere_the_arc_stays_on_it_at_constant_speed(seed, share, size):
    one = torch.nn.functional.normalize(normal(seed, 7), dim=0)
    across = normal(seed + 1, 7)
    across = torch.nn.functional.normalize(across - (across @ one) * one, dim=0)
    other = math.cos(size) * one + math.sin(size) * across
    expected = math.cos(share * size) * one + math.sin(share * size) * across
    torch.testing.assert_close(slerp(one, other, share), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("other", [2.0, 1.0, -1.0, 0.0])
def test_where_there_is_no_arc_the_line_is_taken(other):
    one = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    torch.testing.assert_close(slerp(one, other * one, 0.25), (0.75 + 0.25 * other) * one)
    torch.testing.assert_close(slerp(0 * one, one, 0.25), 0.25 * one)
    found = slerp(one.bfloat16(), one.bfloat16(), 0.3)
    assert found.dtype == torch.bfloat16 and torch.equal(found, one.bfloat16())


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_trimming_keeps_what_peft_keeps(density):
    vector = vectors(3, 1, 11, 7)[0]
    assert torch.equal(trimmed(vector, density), merge_utils.magnitude_based_pruning(vector, density))


def test_of_equal_magnitudes_the_first_are_kept():
    vector = torch.tensor([[1.0, -2.0, 2.0], [2.0, 0.5, -2.0]])
    assert torch.equal(trimmed(vector, 0.5), torch.tensor([[0.0, -2.0, 2.0], [2.0, 0.0, 0.0]]))
    assert torch.equal(trimmed(torch.zeros(4), 0.5), torch.zeros(4))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0, 0.999), donors=st.integers(1, 4))
def test_ties_is_peft_s(seed, density, donors):
    given_, weights = vectors(seed, donors), normal(seed, donors).float()
    torch.testing.assert_close(ties(given_, weights, density), merge_utils.ties(list(given_), weights, density))


def test_a_disjoint_mean_by_hand():
    """Entry 0: plus wins 3 to 2; 1: all agree; 2: a tie, so nobody; 3: minus, one donor is silent; 4: nobody speaks."""
    given_ = torch.tensor([[3.0, 1.0, 2.0, -4.0, 0.0], [-2.0, 2.0, -2.0, 0.0, 0.0]])
    assert elected(given_).tolist() == [1, 1, 0, -1, 0]
    assert int(conflicts(given_)) == 2
    assert disjoint_mean(given_, torch.tensor([1.0, 1.0])).tolist() == [3, 1.5, 0, -4, 0]
    assert disjoint_mean(given_, torch.tensor([0.5, 1.0])).tolist() == [1.5, 1.25, 0, -2, 0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.floats(0, 1))
def test_the_order_of_donors_does_not_matter_and_opposite_vectors_merge_to_the_opposite(seed, density):
    given_, weights = vectors(seed), normal(seed, 3).float()
    given_[0, 0] = -given_[1, 0]
    turn = torch.tensor([2, 0, 1])
    torch.testing.assert_close(ties(given_[turn], weights[turn], density), ties(given_, weights, density))
    torch.testing.assert_close(ties(-given_, weights, density), -ties(given_, weights, density))


def test_dropping_keeps_the_expectation_and_rescales():
    vector = vectors(0, 1, 400, 400)[0].abs() + 1
    found = dropped(vector, 0.2, seeded())
    kept = found != 0
    assert abs(float(kept.float().mean()) - 0.2) < 0.005
    torch.testing.assert_close(found[kept], vector[kept] / 0.2)
    assert float(found.mean()) == pytest.approx(float(vector.mean()), rel=0.02)
    assert torch.equal(dropped(vector, 0.2, seeded()), found)
    assert not torch.equal(dropped(vector, 0.2, seeded(1)), found)


def test_dare_is_task_arithmetic_and_ties_of_what_chance_left():
    left = torch.stack([dropped(vector, 0.4, g) for g in [seeded()] for vector in vectors()])
    torch.testing.assert_close(dare(vectors(), WEIGHTS, 0.4, seeded()), task_arithmetic(left, WEIGHTS))
    torch.testing.assert_close(dare_ties(vectors(), WEIGHTS, 0.4, seeded()), disjoint_mean(left, WEIGHTS))
    mask = merge_utils.calculate_majority_sign_mask(left)
    expected = merge_utils.disjoint_merge(left * WEIGHTS[:, None, None], mask & (left != 0))
    torch.testing.assert_close(dare_ties(vectors(), WEIGHTS, 0.4, seeded()), expected)


def test_nothing_is_dropped_at_density_one_and_everything_at_zero():
    whole = task_arithmetic(vectors(), WEIGHTS)
    for merged in (dare(vectors(), WEIGHTS, 1.0, seeded()), trimmed(whole, 1.0)):
        torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(dare_ties(vectors(), WEIGHTS, 1.0, seeded()), ties(vectors(), WEIGHTS, 1.0))
    for nothing in (dare(vectors(), WEIGHTS, 0.0, seeded()), dare_ties(vectors(), WEIGHTS, 0.0, seeded()),
                    ties(vectors(), WEIGHTS, 0.0)):  # fmt: skip
        assert torch.equal(nothing, torch.zeros(6, 5))
    for density in (-0.1, 1.01, math.nan):
        with pytest.raises(BadInput, match="Expected a density from 0 to 1"):
            ties(vectors(), WEIGHTS, density)


def test_a_random_vector_is_as_long_as_the_donors_and_has_none_of_their_direction():
    given_ = vectors(0, 1, 100, 80)
    found = random(given_, torch.tensor([0.5]), seeded())
    assert float(found.norm()) == pytest.approx(0.5 * float(given_.norm()), rel=1e-5)
    assert abs(float(torch.cosine_similarity(found.flatten(), given_.flatten(), dim=0))) < 0.05
    assert torch.equal(random(0 * given_, torch.tensor([0.5]), seeded()), torch.zeros(100, 80))
