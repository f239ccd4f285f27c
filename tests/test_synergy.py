"""What specialists are worth together, on items made by hand and by simulation."""

import numpy as np
import pandas as pd
import pytest

from stages.errors import BadInput
from stages.storage import read_json
from stages.synergy import Synergy, main, synergy

TWO = Synergy(together="both", singles={"arithmetic": "adder", "units": "converter"}, resamples=200)


def rows(likely: dict[str, list], right: dict[str, list], clusters: int = 10**6) -> pd.DataFrame:
    """Items by task; every `clusters` items begin the clusters anew."""
    parts = [
        pd.DataFrame({"task": task, "id": [f"i{n:04d}" for n in range(len(told))],
                      "cluster": [f"c{n % clusters}" for n in range(len(told))],
                      "right": pd.array(told, "boolean"), "loglikelihood": likely[task]})
        for task, told in right.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def model(capability: list, units: list, likely: float = -1.0, **more) -> pd.DataFrame:
    right = {"capability": capability, "units": units}
    return rows({task: [likely] * len(told) for task, told in right.items()}, right, **more)


def share(count: int, of: int = 40) -> list[bool]:
    """The first `count` of `of` are right."""
    return [n < count for n in range(of)]


def drawn(rng: np.random.Generator, count: int, capability: float, units: float) -> pd.DataFrame:
    """Right at these rates, each item by itself."""
    right = {"capability": (rng.random(count) < capability).tolist(), "units": (rng.random(count) < units).tolist()}
    return rows({task: (rng.normal(-3, 1, count)).tolist() for task in right}, right)


def compared(target, both, adder, converter, settings: Synergy = TWO) -> dict:
    return synergy(settings, target, both, {"arithmetic": adder, "units": converter})


def test_figures_are_those_of_the_definitions():
    made = compared(
        model(share(4), share(2), -5.0), model(share(32), share(26), -2.0),
        model(share(36), share(6), -1.0), model(share(8), share(30), -3.5),
    )["domains"]  # fmt: skip
    told = made["arithmetic"]["accuracy"]
    assert told["target"]["value"] == 0.1
    assert told["together"]["value"] == pytest.approx(28 / 40)
    assert {name: each["value"] for name, each in told["singles"].items()} == {"arithmetic": 0.8, "units": 0.1}
    assert told["synergy"]["value"] == pytest.approx(0.7 - 0.8 - 0.1)
    assert made["arithmetic"]["kept"]["value"] == pytest.approx(28 / 32, abs=1e-6)
    assert made["units"]["kept"]["value"] == pytest.approx(24 / 28, abs=1e-6)
    assert made["units"]["accuracy"]["synergy"]["value"] == pytest.approx((26 - 6 - 30 + 2) / 40)
    likely = made["arithmetic"]["loglikelihood"]
    assert (likely["together"]["value"], likely["synergy"]["value"]) == (3.0, 3.0 - 4.0 - 1.5)
    assert (made["units"]["n"], made["units"]["clusters"], made["units"]["undefined"]) == (40, 40, {})


def test_kept_is_the_ratio_of_the_recoveries_whatever_the_donor():
    target, single, both, donor = 0.1, 0.9, 0.7, 0.95
    found = compared(*(model(share(round(40 * a)), share(20)) for a in (target, both, single, 0.1)))
    recoveries = [(each - target) / (donor - target) for each in (both, single)]
    assert found["domains"]["arithmetic"]["kept"]["value"] == pytest.approx(recoveries[0] / recoveries[1], abs=1e-6)


def test_specialists_that_do_not_meet_have_no_synergy_and_keep_everything():
    target, adder, converter = model(share(0), share(0)), model(share(40), share(0)), model(share(0), share(30))
    found = compared(target, model(share(40), share(30)), adder, converter)["domains"]
    for domain in ("arithmetic", "units"):
        told = found[domain]["accuracy"]
        assert told["synergy"]["value"] == 0 and told["p"] == told["q"] == 1
        assert found[domain]["kept"]["value"] == 1
        # of items that were all alike, others can have been missed
        assert told["synergy"]["low"] < 0 < told["synergy"]["high"]


def test_a_domain_whose_specialist_gains_nothing_has_no_share_to_keep():
    weak = model(share(4), share(2))
    found = compared(weak, model(share(4), share(30)), weak, model(share(4), share(30)))["domains"]
    assert found["arithmetic"]["kept"] is None
    assert "not surely better than the target" in found["arithmetic"]["undefined"]["kept"]
    assert found["units"]["kept"]["value"] == 1 and not found["units"]["undefined"]


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(2)
    frames = [drawn(rng, 60, a, b) for a, b in ((0.1, 0.1), (0.8, 0.7), (0.9, 0.2), (0.1, 0.8))]
    shuffled = [frames[0], *(frame.sample(frac=1, random_state=n) for n, frame in enumerate(frames[1:]))]
    assert compared(*frames) == compared(*shuffled)


def test_interference_is_found_and_its_absence_is_not():
    """In 15 experiments without synergy few are said to have any; where half is lost, all are."""
    rng = np.random.default_rng(0)
    called, covered, lost = 0, 0, 0
    for _ in range(15):
        alone = [drawn(rng, 60, *rates) for rates in ((0.05, 0.05), (0.85, 0.05), (0.05, 0.85))]
        for rate in (0.85, 0.35):
            told = compared(alone[0], drawn(rng, 60, rate, 0.85), *alone[1:])["domains"]["arithmetic"]["accuracy"]
            if rate < 0.85:
                lost += told["q"] <= 0.05 and told["synergy"]["high"] < 0
            else:
                called += told["p"] <= 0.05
                covered += told["synergy"]["low"] <= 0 <= told["synergy"]["high"]
    assert called <= 3 and covered >= 12
    assert lost == 15


def test_items_of_one_cluster_count_as_one():
    """Each item twenty times over: as sure as of the few, not as of the many."""
    rng = np.random.default_rng(4)
    told = [(rng.random(12) < rate).tolist() for rate in (0.1, 0.5, 0.9, 0.1)]
    few, many = (
        compared(*(model(each * times, share(20), clusters=12) for each in told))["domains"]["arithmetic"]
        for times in (1, 20)
    )
    assert many["clusters"] == few["clusters"] == 12 and many["n"] == 240
    assert many["accuracy"]["p"] == few["accuracy"]["p"]
    for end in ("value", "low", "high"):
        assert many["accuracy"]["synergy"][end] == pytest.approx(few["accuracy"]["synergy"][end], abs=1e-6)


def test_q_is_over_the_domains():
    rng = np.random.default_rng(1)
    frames = [drawn(rng, 100, a, b) for a, b in ((0.1, 0.1), (0.6, 0.7), (0.9, 0.1), (0.1, 0.8))]
    told = compared(*frames)["domains"]
    for measure in ("accuracy", "loglikelihood"):
        p, q = ([told[d][measure][key] for d in ("arithmetic", "units")] for key in ("p", "q"))
        assert q == pytest.approx([min(2 * p[i], max(p)) if p[i] == min(p) else max(p) for i in (0, 1)], abs=1e-6)


def test_more_than_two_specialists_are_summed():
    settings = TWO.model_copy(update={"singles": {"arithmetic": "a", "units": "b", "letters": "c"}})
    target, both, *alone = (
        model(share(n), share(20)).pipe(lambda f: pd.concat([f, f[f.task == "units"].assign(task="letters")]))
        for n in (4, 30, 32, 6, 2)
    )
    made = synergy(settings, target, both, dict(zip(settings.singles, alone, strict=True)))["domains"]
    assert list(made) == ["arithmetic", "letters", "units"]
    assert made["arithmetic"]["accuracy"]["synergy"]["value"] == pytest.approx((26 - 28 - 2 + 2) / 40)


def test_other_items_than_the_targets_are_refused():
    good = model(share(4), share(2))
    with pytest.raises(BadInput, match="Expected adder judged on the target's 40 items of capability, got 30 that are"):
        compared(good, good, model(share(4, 30), share(2)), good)
    with pytest.raises(BadInput, match="Expected items of units to compare grafts on, got none; name it in the tasks"):
        compared(good[good.task == "capability"], good, good, good)
    with pytest.raises(BadInput, match="Expected items of both with .*, got no cluster; rerun evaluate"):
        compared(good, good.drop(columns="cluster"), good, good)


def test_the_stage_reads_each_graft_where_it_was_judged(tmp_path):
    frames = {"target": model(share(4), share(2)), "both": model(share(30), share(30)),
              "adder": model(share(36), share(2)), "converter": model(share(4), share(35))}  # fmt: skip
    for name, frame in frames.items():
        (tmp_path / name).mkdir()
        frame.assign(split="test").to_parquet(tmp_path / name / "items.parquet")
    (tmp_path / "params.yaml").write_text(
        "synergy: {pair: {together: both, singles: {units: converter, arithmetic: adder}, resamples: 200}}"
    )
    for name in ("one", "again"):
        main("pair", tmp_path, tmp_path / f"{name}.json", tmp_path / "params.yaml")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert read_json(tmp_path / "one.json") == compared(*frames.values())
    (tmp_path / "params.yaml").write_text("synergy: {pair: {together: both, singles: {units: converter}}}")
    with pytest.raises(BadInput, match="at least 2 items"):
        main("pair", tmp_path, tmp_path / "one.json", tmp_path / "params.yaml")
