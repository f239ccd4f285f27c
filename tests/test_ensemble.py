"""Several seeds as one model, on items made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from stages import ensemble as stage
from stages.ensemble import Ensemble, ensemble
from stages.errors import BadInput

SETTINGS = Ensemble(members=("a", "b"), resamples=200)


def free(answers: list[str], confidence: list[float], expected: list[str]) -> pd.DataFrame:
    right = [a == e for a, e in zip(answers, expected, strict=True)]
    ids = [f"i{n}" for n in range(len(answers))]
    return pd.DataFrame({"task": "capability", "id": ids, "cluster": ids, "right": right, "confidence": confidence,
                         "answered": answers, "loglikelihood": -1.0, "choices": None})  # fmt: skip


def questions(logits: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    ids = [f"q{n}" for n in range(len(gold))]
    return pd.DataFrame({"task": "retention", "id": ids, "cluster": ids, "right": logits.argmax(1) == gold,
                         "confidence": 0.5, "answered": "x", "loglikelihood": logits[np.arange(len(gold)), gold],
                         "choices": logits.tolist()})  # fmt: skip


def test_the_surest_answer_by_the_mean_is_the_ensembles():
    expected = ["1", "2", "3", "4"]
    one = free(["1", "9", "3", "9"], [0.9, 0.3, 0.8, 0.9], expected)
    other = free([" 1.", "2", "9", "4"], [0.7, 0.8, 0.4, 0.2], expected)
    other["right"] = [True, True, False, True]
    found = ensemble({"a": one, "b": other}, SETTINGS)["capability"]
    assert found["accuracy"]["value"] == 0.75  # 1, 2 and 3; of the fourth the surer one is wrong
    assert (found["members"]["a"]["value"], found["members"]["b"]["value"]) == (0.5, 0.75)
    told = stage._free({"a": one, "b": other})
    np.testing.assert_allclose(told["ensemble_mean"], [0.8, 0.4, 0.4, 0.45])
    np.testing.assert_allclose(told["ensemble_disagreement"], [0, 0.5, 0.5, 0.5])


def test_over_choices_the_disagreement_is_what_the_mean_is_less_sure_by():
    rng = np.random.default_rng(0)
    gold = rng.integers(0, 4, 30)
    logits = [rng.normal(0, 2, (30, 4)) for _ in range(3)]
    rows = {name: questions(each, gold) for name, each in zip("abc", logits, strict=True)}
    told = stage._chosen(rows)
    shares = np.array([np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in logits])
    expected = entropy(shares.mean(0), axis=1) - np.mean([entropy(p, axis=1) for p in shares], axis=0)
    np.testing.assert_allclose(told["ensemble_disagreement"], expected, atol=1e-9)
    assert (told["right"] == (shares.mean(0).argmax(1) == gold)).all()


def test_copies_of_one_member_are_that_member_and_do_not_disagree():
    rng = np.random.default_rng(1)
    gold = rng.integers(0, 3, 40)
    rows = questions(rng.normal(0, 1, (40, 3)), gold)
    found = ensemble({"a": rows, "b": rows}, SETTINGS)["retention"]
    assert found["accuracy"] == found["members"]["a"]
    assert found["scores"]["ensemble_disagreement"]["undefined"]["auroc"] == "it is the same for every item"


def test_disagreement_of_members_that_err_apart_tells_errors():
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 4, 300)
    known = rng.random(300) < 0.6
    logits = [np.where(known[:, None], 4.0 * (np.arange(4) == gold[:, None]), 3 * rng.normal(0, 1, (300, 4)))
              for _ in range(3)]  # fmt: skip
    rows = {name: questions(each, gold) for name, each in zip("abc", logits, strict=True)}
    settings = Ensemble(members=("a", "b", "c"), resamples=200)
    assert ensemble(rows, settings)["retention"]["scores"]["ensemble_disagreement"]["auroc"]["low"] > 0.8


def test_answers_that_are_not_known_leave_the_ensemble_undefined():
    rows = free(["1", "2"], [0.5, 0.6], ["1", "3"]).drop(columns="answered")
    found = ensemble({"a": rows, "b": rows}, SETTINGS)["capability"]
    assert found["accuracy"] is None
    assert found["undefined"] == {"accuracy": "the members' own answers are not known"}
    assert found["members"]["a"]["value"] == 0.5


def test_members_of_other_items_are_refused():
    rows = free(["1", "2"], [0.5, 0.6], ["1", "3"])
    with pytest.raises(BadInput, match="Expected b judged on the items of a"):
        ensemble({"a": rows, "b": rows.assign(id=["i0", "i9"])}, SETTINGS)
    with pytest.raises(BadInput, match="with a column cluster"):
        ensemble({"a": rows, "b": rows.drop(columns="cluster")}, SETTINGS)


def test_the_command_writes_what_params_names(tmp_path):
    (tmp_path / "params.yaml").write_text("ensembles: {seeds: {members: [a, b], resamples: 100}}")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        free(["1", "2"], [0.5, 0.6], ["1", "3"]).to_parquet(tmp_path / name / "items.parquet")
    stage.main("seeds", tmp_path, tmp_path / "out.json", tmp_path / "params.yaml")
    assert json.loads((tmp_path / "out.json").read_text())["capability"]["n"] == 2
    (tmp_path / "params.yaml").write_text("ensembles: {seeds: {members: [a]}}")
    with pytest.raises(BadInput, match="at least 2 items"):
        stage.main("seeds", tmp_path, tmp_path / "out.json", tmp_path / "params.yaml")
