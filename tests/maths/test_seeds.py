"""Several seeds of a recipe: what is said of their mean holds for other items and other seeds."""

import numpy as np
import pytest
import scipy.stats

from stages.maths.seeds import Pooled, over_seeds
from stages.maths.statistics import Bootstrap, Estimate, Undefined, draw, mean


def pooled(draws, values):
    found = over_seeds(draws, values, np.ones(len(draws.members)), (-1.0, 1.0))
    assert isinstance(found, Pooled)
    return found


def test_the_interval_of_a_mean_over_three_seeds_covers_what_other_seeds_would_give():
    covered = of_items = 0
    for trial in range(300):
        luck = np.random.default_rng(trial)
        seeds = 0.6 + 0.05 * luck.standard_normal(3)  # what training makes of it
        ease = luck.random(200)
        right = ease < seeds[:, None]  # the same items for all, hard and easy alike
        draws = draw(range(200), Bootstrap(resamples=400, seed=trial))
        found, alone = pooled(draws, right).estimate, mean(draws, right.mean(0))
        assert isinstance(alone, Estimate)
        covered += found.low <= 0.6 <= found.high
        of_items += alone.low <= 0.6 <= alone.high
    assert 0.92 < covered / 300 <= 1
    assert of_items < covered - 10  # an interval over items alone is too short


def test_where_items_agree_it_is_the_t_interval_of_the_seeds():
    draws = draw(range(50), Bootstrap(resamples=20_000))
    figures = [0.2, 0.25, 0.4]
    found = pooled(draws, [np.full(50, each) for each in figures])
    wanted = scipy.stats.t.interval(0.95, 2, np.mean(figures), scipy.stats.sem(figures))
    assert [found.estimate.low, found.estimate.high] == pytest.approx(wanted, abs=2e-3)
    assert found.spread == pytest.approx(np.std(figures, ddof=1))


def test_where_seeds_agree_it_is_the_bootstrap_over_items():
    right = np.random.default_rng(0).random(80) < 0.7
    draws = draw(range(80), Bootstrap())
    found = pooled(draws, [right, right, right])
    assert found.estimate == mean(draws, right, (-1.0, 1.0))
    assert found.spread == 0


def test_the_order_of_seeds_does_not_matter():
    right = np.random.default_rng(1).random((3, 80)) < 0.7
    draws = draw(range(80), Bootstrap(resamples=300))
    one, other = (pooled(draws, list(each)).estimate for each in (right, right[::-1]))
    assert [one.low, one.high] == pytest.approx([other.low, other.high])


def test_one_seed_says_nothing_of_others():
    assert isinstance(over_seeds(draw(range(9), Bootstrap()), [np.ones(9)], np.ones(9)), Undefined)
