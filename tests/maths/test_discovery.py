"""p-values and q-values against scipy's."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.maths.discovery import holm, q_values, sign_flip


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)))
def test_q_values_are_scipy_s(p):
    assert np.allclose(q_values(p), scipy.stats.false_discovery_control(p, method="bh"))


@given(arrays(np.float64, st.integers(1, 6), elements=st.floats(0, 1)))
def test_holm_is_the_closed_test_by_bonferroni(p):
    """Every set of hypotheses that has this one in it must be rejected by Bonferroni's test."""
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), size)]
    closed = [max(min(1, len(s) * p[list(s)].min()) for s in sets if i in s) for i in range(len(p))]
    assert np.allclose(holm(p), closed)


@pytest.mark.parametrize("adjust", [holm, q_values])
@given(arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 1)), st.randoms())
def test_the_order_of_tests_does_not_matter(adjust, p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    assert np.array_equal(adjust(p[order]), adjust(p)[order])


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    return values.mean(axis=axis)


@pytest.mark.parametrize("items", [5, 10])
def test_all_signs_of_few_items_give_scipy_s_exact_p(items):
    values = np.random.default_rng(items).normal(0.4, 1, (items, 3))
    for column, p in zip(values.T, sign_flip(values), strict=True):
        test = scipy.stats.permutation_test(
            (column,), mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        assert p == pytest.approx(test.pvalue)


def test_random_signs_come_close_to_a_t_test_of_many_items():
    values = np.random.default_rng(0).normal(0.2, 1, (60, 4))
    assert np.allclose(sign_flip(values), scipy.stats.ttest_1samp(values, 0).pvalue, atol=0.02)


def test_nothing_is_no_discovery_and_signs_do_not_matter():
    assert (sign_flip(np.zeros((20, 2))) == 1).all() and (sign_flip(np.zeros((4, 2))) == 1).all()
    values = np.random.default_rng(1).normal(0.3, 1, (20, 5))
    assert np.array_equal(sign_flip(values), sign_flip(-values))
    assert np.array_equal(sign_flip(values), sign_flip(values * 1000))


def test_few_false_discoveries_among_many_nulls():
    generator = np.random.default_rng(2)
    false, found = 0, 0
    for _ in range(20):
        real = np.arange(100) < 20
        q = q_values(sign_flip(generator.normal(np.where(real, 1.0, 0.0), 1, (30, 100)), flips=2000))
        false += int((q[~real] < 0.1).sum())
        found += int((q < 0.1).sum())
    assert false / found < 0.13 and found > 20 * 18
