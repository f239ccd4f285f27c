"""Changes between two models' states."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.maths.change import consistency, norm_ratio, own_share, relative_change


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_donor_scaled_by_three_changes_by_two_and_has_three_times_the_norm():
    states = normal(0, 20, 8)
    assert relative_change(states, 3 * states) == pytest.approx(2)
    assert norm_ratio(states, 3 * states) == pytest.approx(3)


def test_one_shift_for_all_prompts_is_wholly_consistent():
    states, prompt = normal(0, 20, 8), torch.arange(20) // 4
    assert consistency(states, states + normal(1, 8), prompt) == pytest.approx(1)


def test_opposite_shifts_of_two_prompts_are_wholly_inconsistent():
    states, prompt = normal(0, 20, 8), torch.arange(20) % 2
    signs = 2.0 * prompt[:, None] - 1
    assert consistency(states, states + signs * normal(1, 8), prompt) == pytest.approx(-1)


def test_independent_changes_of_few_prompts_are_not_consistent():
    prompt = torch.arange(60) // 10
    drawn = [consistency(normal(s, 60, 8), normal(s + 500, 60, 8), prompt) for s in range(100)]
    assert abs(sum(drawn) / len(drawn)) < 0.05


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_order_of_rows_and_the_names_of_prompts_change_nothing(seed):
    target, donor, prompt = normal(seed, 30, 5), normal(seed + 1, 30, 5), torch.arange(30) // 7
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    expected = consistency(target, donor, prompt)
    assert consistency(target[order], donor[order], 9 - prompt[order]) == pytest.approx(expected)
    assert relative_change(target[order], donor[order]) == pytest.approx(relative_change(target, donor))


def test_where_nothing_changes_consistency_is_undefined():
    assert math.isnan(consistency(normal(0, 9, 4), normal(0, 9, 4), torch.arange(9) // 3))


def test_the_own_share_of_a_change_is_the_part_that_points_its_way():
    made, handed_on = normal(0, 20, 8), normal(1, 20, 8)
    handed_on -= (handed_on * made).sum() / made.square().sum() * made
    assert own_share(made, made) == pytest.approx(1)
    assert own_share(made, handed_on) == pytest.approx(0, abs=1e-6)
    assert own_share(2 * made, made + handed_on) == pytest.approx(0.5)
    assert math.isnan(own_share(0 * made, 0 * made))
