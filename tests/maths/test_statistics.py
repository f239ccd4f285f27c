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


def test_sums_taken_together_give_the_figures_of_weights_and_of_one_by_one():
    luck, clusters = rng().random((3, 90)), np.arange(90) // 4
    graft, donor, target = luck[0] < 0.7, luck[1] < 0.9, luck[2] < 0.2
    draws = draw(clusters, Bootstrap(resamples=300))
    g, d, t = draws.totals(np.stack([graft, donor, target], axis=-1).astype(float))
    assert statistics.recovery(draws, g, d, t) == statistics.recovery(draws, graft, donor, target)
    assert statistics.ratio(draws, g, t) == statistics.ratio(draws, graft, target)
    by_weights = statistics.estimate(draws, lambda w: (w @ graft - w @ target) / w.sum(-1), (-1.0, 1.0))
    assert ends(statistics.difference(draws, g, t)) == pytest.approx(ends(by_weights), abs=1e-12)


COVERED = 0.95


def coverage(drawn, replications=400):
    """The share of replications in which each of the figures that `drawn(seed)` gives with its truth was covered."""
    found = np.array([[e.low <= truth <= e.high for e, truth in drawn(seed)] for seed in range(replications)])
    return found.mean(0)


def honest(share, replications=400, under=0.025):
    """Within simulation error (three deviations) of 95 %; the bootstrap may fall short of it by `under` more."""
    noise = 3 * (COVERED * (1 - COVERED) / replications) ** 0.5
    return (share > COVERED - noise - under).all() and (share < COVERED + noise + 0.02).all()


def test_intervals_of_single_items_cover_the_truth_as_often_as_they_say():
    def drawn(seed):
        luck = rng(seed).random((4, 150))
        # a graft right where the donor is, or by luck, and a target right by less of the same luck: paired
        donor, target = luck[1] < 0.9, luck[0] < 0.2
        graft = (luck[0] < 0.2) | (luck[2] < 0.6)
        draws = draw(range(150), Bootstrap(resamples=400, seed=seed))
        half = luck[3] < 0.5
        return [
            (statistics.accuracy(draws, donor), 0.9),
            (statistics.difference(draws, graft, target), 0.8 * 0.6),
            (statistics.recovery(draws, graft, donor, target), 0.8 * 0.6 / 0.7),
            (statistics.ratio(draws, graft, half), (0.2 + 0.8 * 0.6) / 0.5),
        ]

    assert honest(coverage(drawn))


def test_intervals_of_clustered_items_cover_the_truth_and_those_that_ignore_clusters_do_not():
    members = np.repeat(np.arange(40), 5)

    def drawn(seed):
        ease, luck = rng(1000 + seed).beta(2, 2, 40)[members], rng(seed).random((3, 200))
        # the whole cluster is easy or hard, for the graft more than for the target
        graft, target = luck[0] < ease, luck[1] < ease**2
        truth = 0.5 - 0.3  # E[beta] − E[beta²] of Beta(2, 2)
        bootstrap = Bootstrap(resamples=400, seed=seed)
        by_cluster, by_item = draw(members, bootstrap), draw(range(200), bootstrap)
        return [
            (statistics.accuracy(by_cluster, graft), 0.5),
            (statistics.difference(by_cluster, graft, target), truth),
            (statistics.accuracy(by_item, graft), 0.5),
        ]

    share = coverage(drawn)
    assert honest(share[:2])
    assert share[2] < 0.9


def test_the_interval_of_the_perplexity_ratio_covers_the_truth():
    def drawn(seed):
        tokens = rng(seed).integers(50, 200, 60)
        lost = rng(500 + seed).gamma(1, 0.04, 60) * tokens  # nats, skewed
        draws = draw(range(60), Bootstrap(resamples=400, seed=seed))
        return [(statistics.perplexity_ratio(draws, -3.0 * tokens - lost, -3.0 * tokens, tokens), np.exp(0.04))]

    assert honest(coverage(drawn))


def test_many_items_are_resampled_in_parts_with_the_same_result(monkeypatch):
    right, bootstrap = rng().random(120) < 0.8, Bootstrap(resamples=300)
    whole = statistics.accuracy(draw(range(120), bootstrap), right)
    monkeypatch.setattr(statistics, "_CELLS", 1000)
    monkeypatch.setattr(statistics, "_PICKS", 500)
    assert statistics.accuracy(draw(range(120), bootstrap), right) == whole


def test_nothing_to_resample_is_said_in_a_sentence():
    with pytest.raises(BadInput, match="at least one item"):
        draw([], Bootstrap())
