"""Two models on the same items: exact tests against enumeration, and the least difference against the exact power."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.maths.paired import design_effect, mcnemar, minimum_detectable

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_mcnemar_is_the_binomial_test_of_the_discordant_items(pairs):
    first, second = np.array(pairs).T
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    wanted = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(first, second) == pytest.approx(wanted)
    assert mcnemar(first, second, np.arange(len(first))) == pytest.approx(wanted)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 7)), min_size=1, max_size=40))
def test_clusters_take_their_signs_together_as_enumeration_has_it(rows):
    first, second, clusters = (np.array(column) for column in zip(*rows, strict=True))
    shares = np.bincount(clusters, first.astype(int) - second.astype(int))
    sums = [abs(np.dot(signs, shares)) for signs in itertools.product((1, -1), repeat=len(shares))]
    wanted = np.mean(np.array(sums) >= abs(shares.sum()) - 1e-9)
    assert mcnemar(first, second, clusters) == pytest.approx(wanted)


def test_copies_in_a_cluster_add_no_evidence():
    first, second = np.random.default_rng(0).random((2, 60)) < [[0.7], [0.4]]
    once = mcnemar(first, second, np.arange(60))
    assert mcnemar(*(np.repeat(each, 3) for each in (first, second)), np.repeat(np.arange(60), 3)) == pytest.approx(
        once
    )
    assert mcnemar(np.repeat(first, 3), np.repeat(second, 3)) < once


def test_a_chance_beyond_the_reach_of_sums_of_floats_is_still_exact():
    assert mcnemar(np.ones(1000), np.zeros(1000)) == pytest.approx(2.0**-999)


def test_many_clusters_by_the_transform_agree_with_the_sum_itself(monkeypatch):
    luck = np.random.default_rng(2)
    clusters = luck.integers(0, 120, 400)
    first, second = luck.random((2, 400)) < [[0.5], [0.42]]
    direct = mcnemar(first, second, clusters)
    monkeypatch.setattr("stages.maths.paired._LONG", 0)
    assert mcnemar(first, second, clusters) == pytest.approx(direct)
    assert 0.001 < direct < 0.5


def test_scores_are_judged_by_random_signs_and_the_normal_limit_agrees(monkeypatch):
    luck = np.random.default_rng(3)
    first = luck.random(400)
    second = np.clip(first - luck.normal(0.012, 0.1, 400), 0, 1)
    drawn = mcnemar(first, second, np.arange(400))
    monkeypatch.setattr("stages.maths.paired._MANY", 1)
    assert mcnemar(first, second, np.arange(400)) == pytest.approx(drawn, abs=0.01)
    wanted = scipy.stats.permutation_test(
        (first, second), lambda a, b, axis: (a - b).mean(axis=axis), permutation_type="samples", n_resamples=2000, rng=0
    )
    assert drawn == pytest.approx(wanted.pvalue, abs=0.02)


def test_models_that_agree_do_not_differ():
    right = np.random.default_rng(4).random(50) < 0.5
    assert mcnemar(right, right) == mcnemar(right, right, np.arange(50) // 5) == 1


def exact_power(n, discordant, delta, level):
    """The chance that McNemar's exact test finds `delta` in n items, by enumeration of both counts."""
    gains, power = (discordant + delta) / 2, 0.0
    for disagreeing in range(n + 1):
        weight = scipy.stats.binom.pmf(disagreeing, n, discordant)
        if weight < 1e-12:
            continue
        up = np.arange(disagreeing + 1)
        p = np.minimum(1, 2 * scipy.stats.binom.cdf(np.minimum(up, disagreeing - up), disagreeing, 0.5))
        power += weight * scipy.stats.binom.pmf(up, disagreeing, gains / discordant)[p <= level].sum()
    return power


@pytest.mark.parametrize(("n", "discordant", "power"), [(200, 0.2, 0.8), (400, 0.1, 0.8), (300, 0.4, 0.9)])
def test_the_least_difference_is_found_about_as_often_as_it_should_be(n, discordant, power):
    first, second = np.zeros(n), np.zeros(n)
    disagreeing = round(n * discordant)
    first[: disagreeing // 2], second[disagreeing // 2 : disagreeing] = 1, 1
    delta = minimum_detectable(first, second, np.arange(n), 0.05, power)
    # the exact test is a little stricter than its level
    assert power - 0.06 < exact_power(n, disagreeing / n, delta, 0.05) < power + 0.02


def test_models_that_agree_on_all_items_leave_room_for_a_difference():
    right = np.ones(100)
    delta = minimum_detectable(right, right, np.arange(100))
    assert 0.05 < delta < 0.15
    assert minimum_detectable(right, right, np.arange(100) // 4) > delta


def test_more_items_show_less_and_more_power_asks_for_more():
    luck = np.random.default_rng(5).random((2, 400)) < [[0.5], [0.45]]
    few, many = (minimum_detectable(*luck[:, :n], np.arange(n)) for n in (100, 400))
    assert many < few
    assert minimum_detectable(*luck, np.arange(400), power=0.95) > many
    assert minimum_detectable(*luck, np.arange(400), level=0.001) > many


def test_a_handful_of_items_cannot_show_anything():
    assert minimum_detectable(np.ones(3), np.zeros(3), np.arange(3)) is None
    assert minimum_detectable(np.ones(0), np.zeros(0), np.arange(0)) is None


def test_the_design_effect_is_one_for_single_items_and_the_size_of_clusters_that_agree():
    values = np.random.default_rng(6).normal(size=2000)
    assert design_effect(values, np.arange(2000)) == pytest.approx(1, abs=1e-9)
    assert design_effect(np.repeat(values, 4), np.repeat(np.arange(2000), 4)) == pytest.approx(4, rel=0.01)
    assert design_effect(values, np.arange(2000) // 4) == pytest.approx(1, abs=0.15)
