import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from stages.maths import calibration
from stages.maths.calibration import once

answers = st.lists(
    st.tuples(st.sampled_from([0.1, 0.3, 0.5, 0.8, 0.95, 1.0]), st.booleans(), st.integers(0, 3)),
    min_size=2,
    max_size=40,
).filter(lambda rows: len({right for _, right, weight in rows if weight}) == 2)


def columns(rows):
    confidence, right, weight = (np.array(column) for column in zip(*rows, strict=True))
    return confidence, right, weight[None].astype(float)


@settings(max_examples=60, deadline=None)
@given(answers)
def test_auroc_and_brier_are_those_of_sklearn_with_ties_and_weights(rows):
    confidence, right, weight = columns(rows)
    auroc = roc_auc_score(right, confidence, sample_weight=weight[0])
    brier = brier_score_loss(right, confidence, sample_weight=weight[0])
    assert calibration.auroc(confidence, right)(weight)[0] == pytest.approx(auroc)
    assert calibration.brier(confidence, right)(weight)[0] == pytest.approx(brier)


def test_auroc_is_not_a_number_where_all_are_right():
    assert np.isnan(calibration.auroc(np.array([0.5, 0.9]), np.array([True, True]))(once(2))[0])


def test_the_error_by_hand():
    confidence = np.array([0.2, 0.4, 0.8, 1.0])
    right = np.array([False, True, True, True])
    low, high = calibration.reliability(confidence, right, bins=2)
    assert (low.low, low.high, low.confidence, low.accuracy, low.n) == (0.2, 0.4, pytest.approx(0.3), 0.5, 2)
    assert (high.confidence, high.accuracy) == (pytest.approx(0.9), 1.0)
    assert calibration.ece(confidence, right, bins=2)(once(4))[0] == pytest.approx((0.2 + 0.1) / 2)


@pytest.mark.parametrize(("measure", "strategy"), [("ece", "uniform"), ("adaptive_ece", "quantile")])
def test_both_errors_are_the_gaps_of_sklearns_curve(measure, strategy):
    rng = np.random.default_rng(2)
    confidence = rng.beta(5, 1, 600)
    right = rng.random(600) < confidence**2
    accuracy, told = calibration_curve(right, confidence, n_bins=12, strategy=strategy)
    if strategy == "uniform":
        counts = np.histogram(confidence, np.linspace(0, 1, 13))[0]
        counts = counts[counts > 0]
    else:
        counts = np.full(12, 50)
    found = getattr(calibration, measure)(confidence, right, 12)(once(600))[0]
    assert found == pytest.approx((counts * np.abs(accuracy - told)).sum() / 600, abs=1e-9)


def test_bins_of_equal_width_hold_their_upper_ends():
    assert calibration.assign_by_width(np.array([0.0, 0.1, 0.5, 0.51, 1.0]), 2).tolist() == [0, 0, 0, 1, 1]
    assert calibration.assign_by_width(np.array([0.05, 0.95]), 10).tolist() == [0, 1]  # empty ones have no number


@settings(max_examples=30, deadline=None)
@given(answers)
def test_the_negative_log_likelihood_is_that_of_sklearn(rows):
    confidence, right, weight = columns(rows)
    confidence = confidence.clip(1e-6, 1 - 1e-6)
    expected = log_loss(right, confidence, sample_weight=weight[0], labels=[False, True])
    assert calibration.nll(confidence, right)(weight)[0] == pytest.approx(expected)


def test_a_chance_of_nothing_counts_as_the_least():
    assert calibration.nll(np.array([0.0]), np.array([True]))(once(1))[0] == pytest.approx(6 * np.log(10))


def test_bins_hold_like_numbers_of_items_and_never_part_equals():
    confidence = np.random.default_rng(0).random(300)
    assert set(np.bincount(calibration.assign(confidence, 15))) == {20}
    tied = np.repeat([0.2, 1.0], [10, 290])
    assert list(np.bincount(calibration.assign(tied, 15))) == [10, 290]


def test_a_calibrated_model_stays_below_the_error_by_chance():
    rng = np.random.default_rng(0)
    confidence = rng.beta(4, 1, 400)
    bound = np.quantile(calibration.ece_by_chance(confidence, 15, 1000, seed=1), 0.95)
    found = [calibration.ece(confidence, rng.random(400) < confidence, 15)(once(400))[0] for _ in range(200)]
    assert 0.9 < np.mean(found < bound) < 0.99


def risk_area(right_in_order):
    wrong = 1 - np.array(right_in_order, dtype=float)
    return (np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean()


def test_the_area_under_the_risk_by_hand():
    confidence, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert calibration.aurc(confidence, right)(once(4))[0] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_equal_confidences_count_as_the_mean_over_their_orders():
    confidence, right = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([True, False, True, True, False])
    orders = [risk_area([True, *middle, False]) for middle in itertools.permutations(right[1:4])]
    assert calibration.aurc(confidence, right)(once(5))[0] == pytest.approx(np.mean(orders))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_items_does_not_matter(order):
    rng = np.random.default_rng(3)
    confidence, right = rng.random(12).round(1), rng.random(12) < 0.6
    for measure in (calibration.aurc, calibration.excess_aurc, calibration.auroc):
        found = measure(confidence[list(order)], right[list(order)])(once(12))[0]
        assert found == pytest.approx(measure(confidence, right)(once(12))[0])


def test_a_confidence_that_knows_its_errors_has_no_excess():
    right = np.random.default_rng(0).random(100) < 0.7
    assert calibration.excess_aurc(np.where(right, 0.9, 0.1), right)(once(100))[0] == pytest.approx(0)
    assert calibration.excess_aurc(np.where(right, 0.1, 0.9), right)(once(100))[0] > 0.3


def test_an_item_drawn_twice_counts_about_as_two_items():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(200), rng.random(200) < 0.8
    weight = rng.integers(0, 4, 200)
    found = calibration.aurc(confidence, right)(weight[None].astype(float))[0]
    copies = calibration.aurc(np.repeat(confidence, weight), np.repeat(right, weight))
    assert found == pytest.approx(copies(once(int(weight.sum())))[0], abs=2e-3)


def test_the_curve_ends_with_all_items_and_their_error_rate():
    rng = np.random.default_rng(0)
    confidence, right = rng.random(1000), rng.random(1000) < 0.8
    curve = calibration.risk_coverage(confidence, right)
    assert len(curve) == 101
    assert curve[-1].coverage == 1
    assert curve[-1].risk == pytest.approx(1 - right.mean())
    assert all(a.coverage < b.coverage for a, b in itertools.pairwise(curve))
