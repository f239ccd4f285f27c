import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.maths import statistics
from stages.maths.statistics import Bootstrap, Estimate, Undefined, draw

MANY = Bootstrap(resamples=20_000)


def rng(seed=0):
    return np.random.default_rng(seed)


def scipy_interval(data, statistic):
    found = scipy.stats.bootstrap(
        data, statistic, n_resamples=20_000, paired=True, vectorized=False, method="BCa", rng=rng(5)
    ).confidence_interval
    return pytest.approx([found.low, found.high], abs=1 / 140)  # an item more or less


def ends(estimate):
    assert isinstance(estimate, Estimate)
    return [estimate.low, estimate.high]


def test_the_interval_of_a_share_is_that_of_scipy():
    right = rng().random(150) < 0.9
    assert ends(statistics.accuracy(draw(range(150), MANY), right)) == scipy_interval((right,), np.mean)


def test_the_interval_of_a_paired_difference_is_that_of_scipy():
    luck = rng().random(150)
    graft, target = luck < 0.8, luck < 0.3
    found = statistics.difference(draw(range(150), MANY), graft, target)
    assert ends(found) == scipy_interval((graft, target), lambda g, t: g.mean() - t.mean())


def test_the_interval_of_recovery_is_that_of_scipy():
    luck = rng().random((3, 150))
    graft, donor, target = luck[0] < 0.7, luck[1] < 0.9, luck[2] < 0.2
    found = statistics.recovery(draw(range(150), MANY), graft, donor, target)
    wanted = scipy_interval((graft, donor, target), lambda g, d, t: (g.mean() - t.mean()) / (d.mean() - t.mean()))
    assert ends(found) == wanted


def test_the_interval_of_the_perplexity_ratio_is_that_of_scipy():
    tokens = rng().integers(50, 200, 60)
    target = -3.0 * tokens + rng(1).normal(0, 5, 60)
    graft = target - 0.05 * tokens + rng(2).normal(0, 4, 60)
    found = statistics.perplexity_ratio(draw(range(60), MANY), graft, target, tokens)
    assert ends(found) == scipy_interval(
        (graft, target, tokens), lambda g, t, n: np.exp(-(g.sum() - t.sum()) / n.sum())
    )


@pytest.mark.parametrize("right", [0, 1])
def test_items_that_all_agree_get_the_exact_binomial_bound(right):
    found = statistics.accuracy(draw(range(40), Bootstrap()), np.full(40, right))
    exact = scipy.stats.binomtest(40 * right, 40).proportion_ci(method="exact")
    assert ends(found) == pytest.approx([exact.low, exact.high])


def test_copies_of_an_item_in_its_cluster_are_no_evidence():
    right = rng().random(100) < 0.7
    once = statistics.accuracy(draw(range(100), Bootstrap()), right)
    thrice = statistics.accuracy(draw(np.repeat(range(100), 3), Bootstrap()), np.repeat(right, 3))
    assert ends(thrice) == pytest.approx(ends(once))
    assert isinstance(thrice, Estimate)
    assert thrice.n == 300


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(30)))
def test_the_order_of_items_does_not_matter(order):
    right, clusters = rng().random(30) < 0.6, np.array([f"c{i % 11}" for i in range(30)])
    order = np.array(order)
    bootstrap = Bootstrap(resamples=200)
    found = statistics.accuracy(draw(clusters[order], bootstrap), right[order])
    assert ends(found) == pytest.approx(ends(statistics.accuracy(draw(clusters, bootstrap), right)))


def test_pairing_narrows_the_difference_of_models_that_agree():
    luck = rng().random(400)
    graft, target, stranger = luck < 0.55, luck < 0.5, rng(9).random(400) < 0.5
    draws = draw(range(400), Bootstrap())
    paired, unpaired = (ends(statistics.difference(draws, graft, other)) for other in (target, stranger))
    assert paired[1] - paired[0] < 0.5 * (unpaired[1] - unpaired[0])


def test_a_donor_recovers_all_of_itself_and_the_target_nothing():
    luck = rng().random(200)
    donor, target = luck < 0.9, luck < 0.1
    draws = draw(range(200), Bootstrap())
    whole, nothing = (statistics.recovery(draws, model, donor, target) for model in (donor, target))
    assert isinstance(whole, Estimate)
    assert isinstance(nothing, Estimate)
    assert (whole.value, nothing.value) == (1, 0)
    assert whole.low < 1 <= whole.high
    assert nothing.low < 0 < nothing.high


@pytest.mark.parametrize("ahead", [0.0, 0.01, -0.5])
def test_there_is_no_recovery_where_the_donor_is_not_surely_ahead(ahead):
    luck = rng().random(200)
    found = statistics.recovery(draw(range(200), Bootstrap()), luck < 0.9, luck < 0.5 + ahead, luck < 0.5)
    assert isinstance(found, Undefined)
    assert "no gain to recover" in found.reason


def test_a_ratio_to_nearly_nothing_is_undefined_instead_of_huge():
    second = np.zeros(100)
    second[:2] = 1
    found = statistics.ratio(draw(range(100), Bootstrap()), np.ones(100), second)
    assert isinstance(found, Undefined)


def test_the_perplexity_ratio_by_hand():
    found = statistics.perplexity_ratio(draw(range(2), Bootstrap()), [-22.0, -44.0], [-20.0, -40.0], [10, 20])
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(np.exp(6 / 30))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_binomial_test_of_the_discordant_items(pairs):
    first, second = np.array(pairs).T
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    wanted = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert statistics.mcnemar(first, second) == pytest.approx(wanted)


def test_intervals_cover_the_truth_as_often_as_they_say():
    hits = np.zeros(3)
    for trial in range(300):
        luck, bootstrap = rng(trial).random((3, 120)), Bootstrap(resamples=300, seed=trial)
        draws = draw(range(120), bootstrap)
        graft, donor, target = luck[0] < 0.7, luck[1] < 0.9, luck[2] < 0.1
        clusters = np.repeat(np.arange(30), 4)
        alike = rng(trial).random(120) < rng(1000 + trial).beta(2, 2, 30)[clusters]
        found = [
            (statistics.accuracy(draws, graft), 0.7),
            (statistics.recovery(draws, graft, donor, target), 0.6 / 0.8),
            (statistics.accuracy(draw(clusters, bootstrap), alike), 0.5),
        ]
        hits += [isinstance(e, Estimate) and e.low <= truth <= e.high for e, truth in found]
    assert (hits / 300 > 0.91).all()


def test_many_items_are_resampled_in_parts_with_the_same_result(monkeypatch):
    right, bootstrap = rng().random(120) < 0.8, Bootstrap(resamples=300)
    whole = statistics.accuracy(draw(range(120), bootstrap), right)
    monkeypatch.setattr(statistics, "_CELLS", 1000)
    assert statistics.accuracy(draw(range(120), bootstrap), right) == whole


def test_nothing_to_resample_is_said_in_a_sentence():
    with pytest.raises(BadInput, match="at least one item"):
        draw([], Bootstrap())
