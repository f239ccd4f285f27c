import json
import subprocess
import sys

import pytest
import yaml
from synthetic import items

from stages import uncertainty as stage
from stages.errors import BadInput
from stages.uncertainty import Uncertainty, uncertainty

SETTINGS = Uncertainty(resamples=200)


@pytest.fixture(scope="module")
def measured():
    return uncertainty(items("blade"), SETTINGS)


def test_both_tasks_are_measured_with_intervals(measured):
    assert set(measured) == {"capability", "retention"}
    for task in measured.values():
        assert {"n", "ece_if_calibrated", "bins", "curve", "undefined"} < set(task)
        for name in ("accuracy", "ece", "brier", "aurc", "excess_aurc", "auroc"):
            assert task[name]["low"] <= task[name]["value"] <= task[name]["high"]
            assert task[name]["n"] == task["n"]


def test_the_bins_hold_every_item_and_give_the_error(measured):
    task = measured["capability"]
    assert sum(b["n"] for b in task["bins"]) == task["n"]
    error = sum(b["n"] * abs(b["confidence"] - b["accuracy"]) for b in task["bins"]) / task["n"]
    assert task["ece"]["value"] == pytest.approx(error, abs=1e-5)


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
        (lambda rows: rows.assign(confidence=None), "between 0 and 1"),
        (lambda rows: rows[rows.task == "text"], "got none"),
    ],
)
def test_items_that_cannot_be_used_are_refused_in_a_sentence(change, said):
    with pytest.raises(BadInput, match=said):
        uncertainty(change(items("blade")), SETTINGS)


def test_the_command_writes_the_same_bytes_each_time(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"uncertainty": {"resamples": 200}}))
    items("blade").to_parquet(tmp_path / "items.parquet", index=False)
    for out in ("a.json", "b.json"):
        stage.main(tmp_path / "items.parquet", tmp_path / out, tmp_path / "params.yaml")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["capability"]["n"] == 300


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
