import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.isotonic import IsotonicRegression

from stages.maths import calibration, scaling
from stages.maths.calibration import once


def drawn(count: int, choices: int, seed: int = 0, sharper: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and right choices drawn by the chances that logits / `sharper` give."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, choices))
    chances = softmax(logits / sharper, axis=1).cumsum(1)
    return logits, (rng.random(count)[:, None] > chances).sum(1).clip(0, choices - 1)


def test_the_temperature_by_which_answers_were_drawn_is_found():
    logits, gold = drawn(20_000, 4, sharper=2.5)
    assert scaling.temperature(logits, gold) == pytest.approx(2.5, rel=0.05)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.4, 1.0, 3.0]))
def test_no_other_temperature_makes_the_answers_likelier(seed, sharper):
    logits, gold = drawn(60, 3, seed, sharper)

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / np.exp(log_t), axis=1)[np.arange(60), gold].mean())

    best = minimize_scalar(loss, bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-10})
    assert loss(np.log(scaling.temperature(logits, gold))) <= best.fun + 1e-9


def test_a_temperature_of_free_answers_divides_the_logit():
    confidence = np.array([0.2, 0.7, 0.99])
    found = scaling.tempered(scaling.two(confidence), 2.0)[:, 0]
    np.testing.assert_allclose(found, expit(logit(confidence) / 2))


def test_absent_choices_have_no_part_in_it():
    logits, gold = drawn(50, 3)
    wider = np.concatenate([logits, np.full((50, 1), -np.inf)], axis=1)
    assert scaling.temperature(wider, gold) == pytest.approx(scaling.temperature(logits, gold))
    assert not scaling.tempered(wider, 2.0)[:, 3].any()


def test_answers_that_no_temperature_fits_end_at_a_bound():
    logits = np.array([[1.0, 0.0]] * 5)
    assert scaling.temperature(logits, np.zeros(5, dtype=int)) == 0.01
    assert scaling.temperature(logits, np.ones(5, dtype=int)) == 100


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 60))
def test_the_rising_map_is_that_of_sklearn_inside_the_ends(seed, count):
    rng = np.random.default_rng(seed)
    confidence = rng.random(count).round(1)
    right = rng.random(count) < confidence
    own, asked = scaling.isotonic(confidence, right), rng.random(200)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(confidence, right.astype(float)).predict(own.at)
    np.testing.assert_allclose(own(own.at), theirs.clip(1 / (count + 2), (count + 1) / (count + 2)), atol=1e-12)
    assert (np.diff(own(np.sort(asked))) >= 0).all()


@pytest.mark.parametrize("how", ["temperature", "isotonic"])
def test_scaling_mends_a_model_that_is_too_sure(how):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.95, 4000)
    confidence, right = expit(3 * logit(truth)), rng.random(4000) < truth
    fit, test = np.arange(4000) < 2000, np.arange(4000) >= 2000
    if how == "isotonic":
        mended = scaling.isotonic(confidence[fit], right[fit])(confidence[test])
    else:
        heat = scaling.temperature(scaling.two(confidence[fit]), (~right[fit]).astype(int))
        assert heat == pytest.approx(3, rel=0.1)
        mended = scaling.tempered(scaling.two(confidence[test]), heat)[:, 0]
    for measure in (
        calibration.nll(mended, right[test])(once(2000))
        < calibration.nll(confidence[test], right[test])(once(2000)) - 0.1,
        calibration.ece(mended, right[test], 15)(once(2000)) < 0.04,
        calibration.ece(confidence[test], right[test], 15)(once(2000)) > 0.1,
    ):
        assert measure[0]
