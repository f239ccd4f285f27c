import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import softmax
from synthetic import items

from stages import uncertainty as stage
from stages.errors import BadInput
from stages.fallback import Routing
from stages.uncertainty import Uncertainty, uncertainty

SETTINGS = Uncertainty(resamples=200, splits=40, routing=Routing(splits=40))


def whole(name: str, seed: int = 0) -> pd.DataFrame:
    """A model's items with every column that evaluate gives: a third of the capability's are for calibration, and
    questions have four choices."""
    rows, rng = items(name).reset_index(drop=True), np.random.default_rng(seed)
    asked, number = rows.task == "retention", np.arange(len(rows))
    logits = rng.normal(0, 1.5, (len(rows), 4))
    gold = np.where(rows.right.fillna(False), logits.argmax(1), (logits.argmax(1) + 1 + number % 3) % 4)
    likely = logits - 6.0
    chosen = softmax(likely, axis=1).max(1).round(6)
    ours = {
        "choices": [each.round(6).tolist() if is_one else None for each, is_one in zip(likely, asked, strict=True)],
        "loglikelihood": np.where(asked, likely[number, gold].round(6), rows.loglikelihood),
        "confidence": np.where(asked, chosen, rows.confidence),
        "role": rows.task,
        "split": np.where((rows.task == "capability") & (number % 3 == 0), "calibration", "test"),
        "answered": np.where(rows.task == "text", None, "x"),
        "entropy": rng.random(len(rows)),
        "margin": rng.random(len(rows)),
        "mean_loglikelihood": -rng.random(len(rows)),
    }
    rows = rows.assign(**ours)
    return rows.assign(cluster=rows.split + " " + rows.cluster)


def signals(rows: pd.DataFrame) -> pd.DataFrame:
    """Of every second item, a gate that opens where the answer is right."""
    some = rows[rows.task.isin(["capability", "retention"])].iloc[::2]
    gate = some.right.astype(float).to_numpy() * 0.5 + 0.2
    few = some[["task", "id", "split"]].assign(gate=gate, divergence=0.3, shift=1 - gate)
    return few.assign(agreement_of_samples=np.nan)


@pytest.fixture(scope="module")
def measured():
    return uncertainty(items("blade"), SETTINGS)


@pytest.fixture(scope="module")
def told():
    rows = whole("transplant")
    return uncertainty(rows, SETTINGS, whole("target", seed=1), signals(rows))


def test_both_tasks_are_measured_with_intervals(measured):
    assert set(measured) == {"capability", "retention", "routing"}
    for name in ("capability", "retention"):
        task = measured[name]
        assert task["measured_with"] == {"bins": 15, "resamples": 200, "confidence": 0.95}
        assert {"n", "ece_if_calibrated", "bins", "curve", "undefined"} < set(task)
        for figure in ("accuracy", "ece", "adaptive_ece", "brier", "aurc", "excess_aurc", "auroc"):
            assert task[figure]["low"] <= task[figure]["value"] <= task[figure]["high"]
            assert task[figure]["n"] == task["n"]


def test_the_bins_hold_every_item_and_give_the_error(measured):
    task = measured["capability"]
    assert sum(b["n"] for b in task["bins"]) == task["n"]
    error = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in task["bins"]) / task["n"]
    assert task["adaptive_ece"]["value"] == pytest.approx(error, abs=1e-5)


def test_columns_that_are_missing_leave_figures_undefined_with_the_reason(measured):
    scores = measured["capability"]["scores"]
    assert scores["max_probability"]["auroc"] == measured["capability"]["auroc"]
    for name in ("entropy", "gate", "agreement_of_samples"):
        assert scores[name]["auroc"] is None
        assert "was not measured" in scores[name]["undefined"]["auroc"]
    assert measured["retention"]["conformal"]["lac"]["undefined"]["coverage"] == "the items have no choices"
    assert measured["routing"]["chosen"] is None
    assert measured["routing"]["undefined"]["chosen"] == "the target's items were not given"


def test_a_signal_of_some_items_is_judged_on_these(told):
    scores, count = told["capability"]["scores"], told["capability"]["n"]
    assert scores["gate"]["auroc"]["value"] == 1
    assert scores["gate"]["auroc"]["n"] < count == scores["entropy"]["auroc"]["n"]
    assert scores["divergence"]["undefined"]["auroc"] == "it is the same for every item"
    assert scores["shift"]["auroc"]["value"] == 1  # less of it is surer


def test_only_test_items_are_judged(told):
    rows = whole("transplant")
    capability = rows[(rows.task == "capability") & (rows.split == "test")]
    assert told["capability"]["n"] == len(capability) == 200
    assert told["capability"]["accuracy"]["value"] == pytest.approx(capability.right.mean(), abs=1e-6)


def test_scaling_is_fitted_on_calibration_items_or_across_folds(told):
    ours, asked = told["capability"]["calibration"], told["retention"]["calibration"]
    assert (ours["temperature"]["fitted_on"], ours["temperature"]["fitted_items"]) == ("calibration", 100)
    assert (asked["isotonic"]["fitted_on"], asked["isotonic"]["fitted_items"]) == ("folds", 120)
    for task in ("capability", "retention"):
        methods = told[task]["calibration"]
        assert methods["raw"]["ece"] == told[task]["ece"]
        assert methods["raw"]["adaptive_ece"] == told[task]["adaptive_ece"]
        assert methods["raw"]["bins"] == told[task]["bins"]
        for method in methods.values():
            assert sum(b["n"] for b in method["bins"]) == told[task]["n"]
            assert method["nll"]["low"] <= method["nll"]["value"] <= method["nll"]["high"]


def test_scaling_across_folds_never_sees_the_cluster_that_it_is_judged_on():
    """Right and wrong at random: a map that had seen the answers would sort them."""
    rows = whole("blade")
    rng = np.random.default_rng(0)
    rows = rows[rows.task == "retention"].assign(choices=None)
    rows = pd.concat([rows.assign(id=rows.id + str(n)) for n in range(3)], ignore_index=True)
    labels = {cluster: bool(rng.random() < 0.5) for cluster in sorted(set(rows.cluster))}
    place = {cluster: 0.3 + 0.6 * number / len(labels) for number, cluster in enumerate(labels)}
    rows = rows.assign(right=rows.cluster.map(labels), confidence=rows.cluster.map(place))
    found = uncertainty(rows, SETTINGS)["retention"]["calibration"]["isotonic"]
    assert found["brier"]["value"] > 0.22


def test_sets_hold_the_right_choice_at_the_rate_and_by_group(told):
    for found in told["retention"]["conformal"].values():
        assert found["coverage"]["low"] < 0.91
        assert found["coverage"]["high"] > 0.89
        assert 1 <= found["size"]["value"] <= 4
        assert sum(part["n"] for part in found["by"]) == found["coverage"]["n"] == 120
        mean = sum(part["n"] * part["coverage"]["value"] for part in found["by"]) / 120
        assert mean == pytest.approx(found["coverage"]["value"], abs=1e-5)


def test_routing_keeps_its_stated_mixture_and_bound(told):
    route = told["routing"]
    chosen, kinds = route["chosen"], route["chosen"]["mixture"]
    assert kinds["capability"] == {"share": 0.5, "n": 200, "fitted": 60, "fitted_on": "calibration"}
    assert kinds["retention"] == {"share": 0.5, "n": 60, "fitted": 60, "fitted_on": "half of the test"}
    assert chosen["regressed"]["value"] <= chosen["graft_regressed"]["value"]
    assert 0 < chosen["coverage"]["value"] <= 1
    assert chosen["cost"] == pytest.approx(2 - chosen["coverage"]["value"], abs=1e-5)
    three = route["three_way"]
    assert three["graft"]["value"] + three["target"]["value"] + three["abstain"]["value"] == pytest.approx(1, abs=1e-5)
    assert three["wrong"]["value"] <= three["wrong_without"]["value"]
    assert route["splits"]["n"] == 40
    assert route["splits"]["broken_in_pool"]["low"] <= route["splits"]["delta"]
    assert route["undefined"] == {}


def test_the_curve_of_routing_ends_with_the_graft_everywhere(told):
    last = told["routing"]["curve"][-1]
    accuracy = np.mean([told[task]["accuracy"]["value"] for task in ("capability", "retention")])
    assert last["coverage"] == pytest.approx(1)
    assert last["accuracy"] == pytest.approx(accuracy, abs=1e-5)


def test_where_no_threshold_is_safe_the_target_answers_all():
    rows, target = whole("transplant"), whole("target", seed=1)
    strict = SETTINGS.model_copy(update={"routing": Routing(splits=5, epsilon=0.001)})
    found = uncertainty(rows, strict, target)["routing"]
    assert found["chosen"]["threshold"] is None
    assert found["chosen"]["coverage"]["value"] == 0
    assert found["chosen"]["accuracy"] == found["chosen"]["target_accuracy"]
    assert found["splits"]["never_used"] == 1


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_few_items_alike_give_what_they_can_without_a_warning(right, count):
    rows, target = (frame.groupby(["task", "split"]).head(count) for frame in (whole("blade"), whole("target", seed=1)))
    alike = rows.assign(right=pd.array([right] * len(rows), "boolean"), choices=None, loglikelihood=-1.0)
    found = uncertainty(alike, SETTINGS, target, signals(alike))
    assert found["capability"]["accuracy"]["value"] == right
    assert found["capability"]["scores"]["entropy"]["auroc"] is None
    assert found["routing"]["chosen"]["threshold"] is None
    if count < 5:
        assert found["retention"]["calibration"]["isotonic"]["undefined"]["ece"] == "fewer than 5 clusters to fit on"


def test_the_capability_can_be_routed_without_questions():
    rows, target = (frame[frame.task == "capability"] for frame in (whole("blade"), whole("target", seed=1)))
    found = uncertainty(rows, SETTINGS, target)["routing"]
    assert set(found["chosen"]["mixture"]) == {"capability"}
    assert found["curve"][-1]["coverage"] == pytest.approx(1)


def test_another_task_is_measured_by_its_role():
    rows = whole("blade")
    more = rows[rows.task == "retention"].assign(task="hellaswag", role="retention")
    text = rows[rows.task == "text"]
    found = uncertainty(pd.concat([rows[rows.task == "capability"], more, text]), SETTINGS)
    assert set(found) == {"capability", "hellaswag", "routing"}


def test_a_task_without_confidence_tells_its_accuracy_alone():
    rows = whole("blade")
    more = rows[rows.task == "retention"].assign(task="gsm8k", role="capability", confidence=np.nan, choices=None)
    found = uncertainty(pd.concat([rows, more]), SETTINGS)["gsm8k"]
    assert found["accuracy"]["n"] == found["n"] == 120
    assert found["ece"] is None
    assert found["undefined"]["ece"] == "the items have no confidence"
    assert found["scores"]["entropy"]["auroc"]["n"] == 120


def test_the_curve_is_short_and_ends_with_the_error_rate(measured):
    curve = measured["capability"]["curve"]
    assert len(curve) <= 101
    assert curve[-1] == {
        "coverage": 1.0,
        "risk": pytest.approx(1 - measured["capability"]["accuracy"]["value"], abs=1e-5),
    }


def test_a_figure_that_the_items_cannot_give_is_null_with_the_reason():
    rows = items("blade")
    found = uncertainty(rows.assign(right=rows.right.where(rows.task != "capability", True)), SETTINGS)["capability"]
    assert found["auroc"] is None
    assert found["undefined"] == {"auroc": "not defined on these items"}
    assert found["accuracy"]["value"] == found["accuracy"]["high"] == 1 > found["accuracy"]["low"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns="confidence"), "none called confidence"),
        (lambda rows: rows.assign(confidence=1.5), "between 0 and 1"),
        (lambda rows: rows.assign(confidence=rows.confidence.where(rows.index > 5)), "between 0 and 1"),
        (lambda rows: rows[rows.task == "text"], "got none"),
    ],
)
def test_items_that_cannot_be_used_are_refused_in_a_sentence(change, said):
    with pytest.raises(BadInput, match=said):
        uncertainty(change(items("blade")), SETTINGS)


def test_choices_without_the_right_one_are_refused():
    rows = whole("blade")
    with pytest.raises(BadInput, match="Expected among the choices of q000"):
        uncertainty(rows.assign(loglikelihood=0.5), SETTINGS)


def test_a_target_judged_on_other_items_is_refused():
    rows = whole("blade")
    with pytest.raises(BadInput, match="Expected the target judged on the graft's 300 items of capability, got 299"):
        uncertainty(rows, SETTINGS, rows[rows.id != "test-00003"])


@pytest.mark.parametrize(
    ("given", "said"),
    [({"scores": ["entropie"]}, "no score 'entropie'"), ({"routing": {"score": "margins"}}, "no score 'margins'")],
)
def test_a_score_that_there_is_not_is_said(given, said, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"uncertainty": given}))
    with pytest.raises(BadInput, match=said):
        stage.main(tmp_path / "items.parquet", tmp_path / "out.json", tmp_path / "params.yaml")


def test_the_command_writes_the_same_bytes_each_time(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"uncertainty": {"resamples": 200, "splits": 10}}))
    rows = whole("blade")
    tables = {"items": rows, "target": whole("target", seed=1), "signals": signals(rows)}
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    paths = [tmp_path / f"{name}.parquet" for name in tables]
    for out in ("a.json", "b.json"):
        stage.main(paths[0], tmp_path / out, tmp_path / "params.yaml", *paths[1:])
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["capability"]["n"] == 200


def test_the_order_of_rows_changes_no_figure_but_by_the_draws(told):
    rows, other = whole("transplant"), whole("target", seed=1)
    turned = uncertainty(rows.iloc[::-1], SETTINGS, other.sample(frac=1, random_state=0), signals(rows))
    for task in ("capability", "retention"):
        assert turned[task]["bins"] == told[task]["bins"]
        assert turned[task]["auroc"]["value"] == told[task]["auroc"]["value"]
    assert turned["routing"]["curve"] == told["routing"]["curve"]


def test_items_that_are_not_there_or_not_parquet_are_said_in_a_sentence(tmp_path):
    with pytest.raises(BadInput, match="Expected a table"):
        stage.main(tmp_path / "items.parquet", tmp_path / "out.json")
    (tmp_path / "items.parquet").write_bytes(b"half a file")
    (tmp_path / "params.yaml").write_text("uncertainty: {}")
    with pytest.raises(BadInput, match="cannot be read as parquet"):
        stage.main(tmp_path / "items.parquet", tmp_path / "out.json", tmp_path / "params.yaml")


def test_no_model_library_is_imported():
    code = "import sys, stages.uncertainty, stages.report; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
