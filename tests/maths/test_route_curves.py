import numpy as np
import pytest

from stages.maths import routing
from stages.maths.calibration import once
from stages.maths.routing import Bound, Pool, mixed

HALVES = np.array([0.5, 0.5])


def pool(sizes=(60, 20), seed: int = 0, clustered: int = 1, loss: float = 0.2) -> Pool:
    """A graft that is unsure where it loses; items of a cluster are alike."""
    rng = np.random.default_rng(seed)
    kind = np.repeat([0, 1], sizes)
    cluster = np.concatenate([[f"{k} {i // clustered}" for i in range(n)] for k, n in enumerate(sizes)])
    place = np.unique(cluster, return_inverse=True)[1]
    doubt = rng.random(place.max() + 1)[place]
    lost = rng.random(place.max() + 1)[place] < 2 * loss * doubt
    target = lost | (rng.random(len(kind)) < 0.3)
    graft = ~lost & (rng.random(len(kind)) < 0.9)
    return Pool(kind, cluster, graft, target, doubt, rng.random(len(kind)))


def test_a_mixture_is_the_mean_of_the_kinds_means_whatever_their_numbers():
    values = np.array([1.0, 0, 0, 0, 1, 1])
    kind = np.array([0, 0, 0, 0, 1, 1])
    found = mixed(kind, HALVES, values)
    assert found(once(6))[0] == pytest.approx(0.5 * 0.25 + 0.5)
    weights = np.array([[2.0, 1, 1, 0, 1, 0]])
    assert found(weights)[0] == pytest.approx(0.5 * 2 / 4 + 0.5)
    among = mixed(kind, HALVES, values, np.array([True, True, False, False, True, False]))
    assert among(once(6))[0] == pytest.approx((0.5 * 1 / 4 + 0.5 * 1 / 2) / (0.5 * 2 / 4 + 0.5 / 2))


def test_calibration_items_are_one_a_cluster_in_the_stated_shares():
    made = pool((90, 30), clustered=3)
    places = routing.one_a_cluster(made, np.random.default_rng(0), 2)
    assert [len(own) for own in places] == [30, 10]
    assert len(set(made.cluster[np.concatenate(places)])) == 40
    drawn = routing.in_shares(places, np.array([0.6, 0.4]))
    assert np.bincount(made.kind[drawn]).tolist() == [15, 10]


def test_the_curve_begins_near_the_target_and_ends_with_the_graft():
    made = pool()
    points = routing.curve(made, HALVES, graft_cost=1.5)
    one = {"cost": pytest.approx(1.5), "coverage": pytest.approx(1.0)}
    graft = np.mean([made.graft[made.kind == k].mean() for k in (0, 1)])
    assert points[-1] | one == points[-1]
    assert points[-1]["accuracy"] == pytest.approx(graft)
    assert points[0]["coverage"] < 0.05
    for name in ("threshold", "coverage", "regressed"):
        assert np.all(np.diff([point[name] for point in points]) >= 0), name
    some = points[len(points) // 2]
    used = made.doubt <= some["threshold"]
    by_hand = [np.where(used, made.graft, made.target)[made.kind == k].mean() for k in (0, 1)]
    assert some["accuracy"] == pytest.approx(np.mean(by_hand))
    assert some["cost"] == pytest.approx(1.5 + 1 - some["coverage"])


def test_the_bound_holds_where_the_pool_is_the_population_and_graft_is_used_as_far_as_it_allows():
    made = routing.splits(pool((800, 400)), HALVES, Bound(0.1, 0.1), count=400, seed=0)
    assert (made.risk_in_pool > 0.1).mean() <= 0.1 + 3 * np.sqrt(0.09 / 400)
    assert made.items == 400
    assert 0.3 < made.coverage.mean() < 1
    assert 0.05 < made.risk.mean() < 0.1
    assert not made.never.any()


def test_a_threshold_is_chosen_on_one_item_of_each_of_half_the_clusters(monkeypatch):
    made, seen = pool((90, 30), clustered=3), []
    monkeypatch.setattr(routing, "chosen", lambda some, _bound: seen.append(some.cluster.tolist()) or np.inf)
    found = routing.splits(made, HALVES, Bound(0.3, 0.2), count=20, seed=0)
    assert {(len(each), len(set(each))) for each in seen[::2]} == {(10, 10)}  # half of 10 clusters, and as many of 30
    np.testing.assert_allclose(found.coverage, 1)


def test_where_too_few_items_can_tell_the_graft_is_never_used():
    found = routing.splits(pool((20, 20)), HALVES, Bound(0.02, 0.1), count=5, seed=0)
    assert found.never.all()
    assert not found.coverage.any()
    assert found.losses == -1


def test_the_surer_model_answers():
    made = Pool(*(np.array(v) for v in ([0, 0], ["a", "b"], [True, True], [False, False], [0.1, 0.9], [0.2, 0.3])))
    first, doubt, right = routing.surer(made)
    assert (first.tolist(), doubt.tolist(), right.tolist()) == ([True, False], [0.1, 0.3], [True, False])
