import json

from flows.results import PAGE, SUMMARY, results, table


def figure(value, low=None, high=None, n=None):
    return {"value": value, "low": low, "high": high, "n": n}


PILOT = {
    "target": {"capability": figure(0.0, 0.0, 0.007, 500), "perplexity_ratio": figure(1.0)},
    "donors": {
        "sums": {"capability": figure(0.978, 0.961, 0.988, 500), "recovery": None, "perplexity_ratio": figure(1.829)}
    },
    "variants": {
        "blade": {"capability": figure(0.974, 0.956, 0.985, 500), "recovery": figure(0.996, 0.98, 1.01, 500)},
        "null": {"capability": figure(0.0, 0.0, 0.015, 250), "recovery": figure(-0.002, -0.01, 0.004, 500)},
    },
}


def test_the_table_is_aligned_and_every_figure_has_its_interval():
    assert table(PILOT).splitlines() == [
        "                            capability        recovery (n=500)  perplexity ratio",
        "──────────  ──────────────────────────  ──────────────────────  ────────────────",
        "target      0.000 [0.000, 0.007] n=500                       –             1.000",
        "donor sums  0.978 [0.961, 0.988] n=500                       –             1.829",
        "blade       0.974 [0.956, 0.985] n=500    0.996 [0.980, 1.010]                 –",
        "null        0.000 [0.000, 0.015] n=250  -0.002 [-0.010, 0.004]                 –",
    ]


def test_a_measure_that_nothing_has_is_left_out():
    assert "KL to target" not in table(PILOT)
    assert "KL to target" in table({"target": {"kl_to_target": figure(0.0)}})


def test_without_a_report_there_is_nothing_to_show(tmp_path):
    assert results(tmp_path) == ""


def test_the_table_comes_first_and_the_reports_path_last(tmp_path):
    (tmp_path / SUMMARY).parent.mkdir(parents=True)
    (tmp_path / SUMMARY).write_text(json.dumps(PILOT))
    (tmp_path / PAGE).write_text("")
    assert results(tmp_path) == table(PILOT) + "\n\nreport: data/report/index.html"
