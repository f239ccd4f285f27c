import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from stages.maths import risk


@pytest.mark.parametrize(("items", "share", "doubt"), [(200, 0.02, 0.1), (500, 0.1, 0.05), (1000, 0.02, 0.01)])
def test_one_loss_more_than_allowed_would_not_refute_the_risk(items, share, doubt):
    most = risk.allowed(items, share, doubt)
    assert binom.cdf(most, items, share) <= doubt < binom.cdf(most + 1, items, share)


def test_too_few_items_allow_nothing():
    assert risk.allowed(113, 0.02, 0.1) == -1  # 0.98 ** 114 < 0.1
    assert risk.allowed(114, 0.02, 0.1) == 0
    assert risk.threshold(np.zeros(113), np.zeros(113, dtype=bool), 0.02, 0.1) == -np.inf


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 500), st.floats(0.1, 0.4))
def test_the_threshold_is_the_laxest_that_loses_on_few_enough(seed, share):
    rng = np.random.default_rng(seed)
    doubt, lost = rng.random(120).round(1), rng.random(120) < 0.3
    found, most = risk.threshold(doubt, lost, share, 0.1), risk.allowed(120, share, 0.1)
    safe = [t for t in np.unique(doubt) if lost[doubt <= t].sum() <= most]
    assert found == (max(safe) if safe and most >= 0 else -np.inf)


@pytest.mark.parametrize("by_kind", [False, True])
def test_the_bound_is_broken_no_more_often_than_promised(by_kind):
    """Losses whose share rises with τ; by kind, half the items are of one that loses five times as much."""
    rng = np.random.default_rng(0)
    share, doubt, count, draws = 0.1, 0.1, 200, 3000
    rate = np.where(np.arange(count) % 2, 0.5, 0.1) if by_kind else np.full(count, 0.3)
    broken = 0
    for _ in range(draws):
        u = rng.random(count)
        tau = risk.threshold(u, rng.random(count) < rate, share, doubt)
        broken += max(tau, 0) * 0.3 > share
    assert broken / draws < doubt + 3 * np.sqrt(doubt * (1 - doubt) / draws)
    assert broken > 0  # and the promise is not empty


@pytest.mark.parametrize(("count", "of"), [(0, 20), (3, 20), (20, 20)])
def test_the_interval_of_a_share_is_that_of_scipy(count, of):
    found, expected = risk.proportion(count, of, 0.95), binomtest(count, of).proportion_ci(0.95, method="exact")
    assert (found.low, found.high, found.value, found.n) == pytest.approx((*expected, count / of, of))
