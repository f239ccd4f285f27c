import numpy as np
import pytest

from stages.maths.contrasts import consistent, departures, effects, specificity, specificity_change
from stages.maths.statistics import Bootstrap, Estimate, Undefined, draw

MOVES = np.array([True, True, True, False, False])
ODDS = np.array([[2.0, 3.0], [-1.0, 4.0], [-2.0, -0.5], [5.0, 4.0], [1.0, -1.0]])
DRAWS = draw([0, 1, 1, 0, 1], Bootstrap(500))


def many(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that should move, by some 3 nats, and others that move by less."""
    rng = np.random.default_rng(seed)
    moves = np.arange(80) % 2 == 0
    base = rng.normal(4, 1, 80)
    odds = np.stack([base, np.where(moves, base, base + rng.normal(0, 1, 80))], axis=1)
    return moves, odds


def test_effects_by_hand():
    assert effects(MOVES, ODDS).tolist() == [5.0, 3.0, -2.5, 1.0, 2.0]


def test_consistency_by_hand():
    assert consistent(MOVES, ODDS).tolist() == [True, False, False, True, False]
    assert not consistent(np.array([True]), np.zeros((1, 2))).any()  # even odds are not right


def test_departures_by_hand():
    assert departures(ODDS, ODDS).tolist() == [0.0] * 5
    assert departures(ODDS, np.zeros((5, 2))).tolist() == [2.5, 2.5, 1.25, 4.5, 1.0]


def test_specificity_by_hand():
    found = specificity(DRAWS, MOVES, ODDS)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(1 - (3 / 2) / (10.5 / 3))
    assert found.n == 5


def test_what_makes_a_continuation_likelier_everywhere_changes_no_effect():
    moves, odds = many()
    bias = np.random.default_rng(1).normal(0, 20, len(odds))
    biased = odds + np.stack([bias, np.where(moves, -bias, bias)], axis=1)
    np.testing.assert_allclose(effects(moves, biased), effects(moves, odds), atol=1e-12)
    assert (consistent(moves, biased) != consistent(moves, odds))[moves].any()


def test_which_prompt_comes_first_does_not_matter():
    moves, odds = many()
    for figure in (effects, consistent):
        np.testing.assert_array_equal(figure(moves, odds[:, ::-1]), figure(moves, odds))


def test_specificity_is_that_of_a_scale_and_of_a_bootstrap_of_its_own():
    moves, odds = many()
    draws = draw(np.arange(80), Bootstrap(2000))
    found, scaled = specificity(draws, moves, odds), specificity(draws, moves, 7 * odds)
    assert isinstance(found, Estimate) and isinstance(scaled, Estimate)
    assert (found.value, found.low, found.high) == pytest.approx((scaled.value, scaled.low, scaled.high))
    rng, size = np.random.default_rng(5), np.abs(effects(moves, odds))
    drawn = []
    for _ in range(2000):
        rows = rng.integers(80, size=80)
        m, s = moves[rows], size[rows]
        drawn.append(1 - s[~m].mean() / s[m].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.03)


def test_a_model_is_as_specific_as_itself_and_less_than_one_that_stays_where_it_should():
    moves, odds = many()
    draws = draw(np.arange(80), Bootstrap(500))
    same = specificity_change(draws, moves, odds, odds)
    assert isinstance(same, Estimate) and (same.value, same.low, same.high) == (0, 0, 0)
    steady = np.where(moves[:, None], odds, odds[:, :1])
    better = specificity_change(draws, moves, steady, odds)
    found = specificity(draws, moves, odds)
    assert isinstance(better, Estimate) and isinstance(found, Estimate)
    assert better.value == pytest.approx(1 - found.value)
    assert better.low > 0


@pytest.mark.parametrize("moves", [True, False])
def test_specificity_needs_pairs_of_both_kinds(moves):
    assert isinstance(specificity(DRAWS, np.full(5, moves), ODDS), Undefined)


def test_a_model_that_nothing_moves_has_no_specificity():
    assert isinstance(specificity(DRAWS, MOVES, np.zeros((5, 2))), Undefined)
