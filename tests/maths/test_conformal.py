import numpy as np
import pytest
from scipy.special import softmax

from stages.maths import conformal

LEVELS = (0.05, 0.1, 0.3)


def questions(count: int, seed: int = 0, choices: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure, and right choices."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, choices))
    gold = (rng.random(count)[:, None] > softmax(logits, axis=1).cumsum(1)).sum(1).clip(0, choices - 1)
    return softmax(2 * logits, axis=1), gold


def own(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    return scores[np.arange(len(gold)), gold]


def test_the_threshold_is_the_ceiling_quantile_and_lets_all_in_where_items_are_few():
    scores = np.arange(1, 20) / 20
    assert conformal.threshold(scores, 0.1) == scores[17]  # ⌈20 · 0.9⌉ = 18th of 19
    assert conformal.threshold(scores, 0.05) == scores[18]
    assert conformal.threshold(scores[:-1], 0.05) == np.inf


@pytest.mark.parametrize("name", conformal.SCORES)
@pytest.mark.parametrize("alpha", LEVELS)
def test_coverage_over_draws_is_what_is_promised_and_not_much_more(name, alpha):
    rng = np.random.default_rng(1)
    found = []
    for seed in range(400):
        probabilities, gold = questions(100, seed)
        scores = conformal.SCORES[name](probabilities, rng.random(100))
        held = conformal.sets(scores[50:], conformal.threshold(own(scores, gold)[:50], alpha))
        found.append(own(held, gold[50:]).mean())
    spread = np.std(found) / 20
    assert 1 - alpha - 3 * spread < np.mean(found) < 1 - alpha + 1 / 51 + 3 * spread


def test_the_adaptive_score_by_hand():
    probabilities = np.array([[0.5, 0.1, 0.4], [0.2, 0.8, np.nan]])
    whole = conformal.aps(probabilities, np.ones(2))
    np.testing.assert_allclose(whole, [[0.5, 1.0, 0.9], [1.0, 0.8, np.nan]])
    np.testing.assert_allclose(conformal.aps(probabilities, np.zeros(2)), [[0, 0.9, 0.5], [0.8, 0, np.nan]])
    assert conformal.sets(whole, np.inf).tolist() == [[True, True, True], [True, True, False]]


def test_the_order_of_choices_does_not_matter():
    probabilities, _ = questions(50)
    turned = np.random.default_rng(0).permutation(4)
    drawn = np.random.default_rng(1).random(50)
    for score in conformal.SCORES.values():
        np.testing.assert_allclose(score(probabilities, drawn)[:, turned], score(probabilities[:, turned], drawn))


@pytest.mark.parametrize("alpha", LEVELS)
@pytest.mark.parametrize("name", conformal.SCORES)
def test_sets_are_those_of_mapie(name, alpha):
    pytest.importorskip("mapie")
    from mapie.classification import SplitConformalClassifier
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = (x @ rng.normal(size=(3, 4)) + rng.gumbel(size=(400, 4))).argmax(1)
    model = LogisticRegression().fit(x[:100], y[:100])
    theirs = SplitConformalClassifier(
        model, confidence_level=1 - alpha, conformity_score=name, prefit=True, random_state=5
    )
    theirs.conformalize(x[100:250], y[100:250])
    given = {"include_last_label": "randomized"} if name == "aps" else {}
    _, expected = theirs.predict_set(x[250:], conformity_score_params=given)
    drawn = 1 - np.random.RandomState(5).uniform(size=150)  # which MAPIE draws alike for either part
    fitted, asked = (
        conformal.SCORES[name](model.predict_proba(x[part]), drawn) for part in (slice(100, 250), slice(250, 400))
    )
    held = conformal.sets(asked, conformal.threshold(own(fitted, y[100:250]), alpha))
    np.testing.assert_array_equal(held, expected[:, :, 0])
    assert 0 < held.mean() < 1
