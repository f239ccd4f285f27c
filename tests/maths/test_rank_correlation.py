"""Spearman's correlation against scipy's, drawn items and all."""

import numpy as np
import pytest
import scipy.stats

from stages.maths.statistics import Bootstrap, Estimate, Undefined, draw, rank_correlation


@pytest.mark.parametrize("ties", [False, True])
def test_the_value_is_scipy_s(ties):
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    b = a + b
    if ties:
        a, b = a.round(), b.round()
    found = rank_correlation(draw(range(30), Bootstrap(300)), a, b)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert -1 <= found.low < found.value < found.high <= 1


def test_drawn_items_count_as_ties():
    a, b = np.random.default_rng(1).normal(size=(2, 12))
    draws = draw(range(12), Bootstrap(50))
    seen = []

    class Spy:
        members, counts, confidence = draws.members, draws.counts, draws.confidence

        def resampled(self):
            return draws.resampled()

        def left_out(self):
            return draws.left_out()

    found = rank_correlation(Spy(), a, b)
    for counts in draws.counts:
        seen.append(scipy.stats.spearmanr(np.repeat(a, counts), np.repeat(b, counts)).statistic)
    assert min(seen) <= found.low <= found.high <= max(seen)


def test_the_interval_covers_and_monotone_maps_change_nothing():
    a, b = np.random.default_rng(2).normal(size=(2, 25))
    draws = draw(range(25), Bootstrap(300))
    assert rank_correlation(draws, a, b) == rank_correlation(draws, np.exp(a), b**3)
    assert rank_correlation(draws, a, -b).value == pytest.approx(-rank_correlation(draws, a, b).value)


def test_a_constant_has_no_ranks():
    found = rank_correlation(draw(range(9), Bootstrap(50)), np.ones(9), np.arange(9))
    assert isinstance(found, Undefined)
