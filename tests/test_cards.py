"""A model card has the summary's figures and no others, and nothing in it acts."""

import json
import re
from typing import Any

import pytest
import synthetic
import yaml
from huggingface_hub import ModelCard

from stages import cards, metrics
from stages.errors import BadInput
from stages.maths.statistics import Bootstrap
from stages.pages import words
from stages.pages.card import FIGURES, Known, card
from stages.pages.roles import read_roles
from stages.pages.summary import summarize
from stages.pages.verdict import Rules
from stages.storage import read_json, write_json

COST = {
    "parameters": 261950977, "added_parameters": 127435969, "bytes": 523965442, "flops_per_token": 475700000,
    "target_flops_per_token": 273400000, "ms_per_token": 81, "target_ms_per_token": 43.5, "peak_bytes": 1100000000,
}  # fmt: skip
KNOWN = Known(license="apache-2.0", base_models=("ORG/TARGET",), language=("en",), capability="sums of numbers")


def data_of(made: str) -> Any:
    """The metadata as the hub's own reader finds it."""
    return ModelCard(made).data


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    root = tmp_path_factory.mktemp("experiment")
    params = synthetic.params(root, cards={"license": "apache-2.0"})
    roles = read_roles(params)
    items = {name: synthetic.items(name) for name in synthetic.MODELS}
    return root, roles, summarize(items, roles, Bootstrap(200, 0.95, 0), Rules())


@pytest.fixture(scope="module")
def told(experiment):
    _, roles, summary = experiment
    return {name: card(name, summary, roles, KNOWN, COST) for name in roles.variants}


def test_the_metadata_has_the_summarys_figures(told, experiment):
    for name, entry in experiment[2]["variants"].items():
        data = data_of(told[name])
        results = {result.metric_name: result.metric_value for result in data.eval_results}
        assert results == {words: entry[key]["value"] for key, words in FIGURES.items() if entry[key]}
        assert (data.license, data.base_model, data.language) == ("apache-2.0", ["ORG/TARGET"], ["en"])
        assert data.model_name == name and "graftline" in data.tags


def test_the_table_has_the_summarys_figures_and_intervals(told, experiment):
    _, roles, summary = experiment
    for name, role in roles.variants.items():
        rows = dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", told[name], flags=re.M))
        entries = [summary["target"], summary["donors"][role.donor], summary["variants"][name]]
        for key, label in FIGURES.items():
            n = entries[-1][key]["n"] if entries[-1][key] else "–"
            assert rows[label].split(" | ") == [*(words.figure(entry, key) for entry in entries), str(n)]


def test_the_verdict_the_controls_and_the_cost_are_told(told, experiment):
    variants = experiment[2]["variants"]
    assert f"Verdict: **{variants['blade']['verdict']}**" in told["blade"]
    assert f"- closed\\_gate: gain {words.figure(variants['closed_gate'], 'gain')}, control" in told["blade"]
    assert "None of its own" in told["published_blade"]
    assert "It is a control for blade, made to fail." in told["closed_gate"]
    for value in COST.values():
        assert f"{value:,}" in told["blade"]


def test_what_was_not_measured_is_called_that(experiment):
    _, roles, summary = experiment
    entry = dict.fromkeys(summary["variants"]["blade"]) | {
        "undefined": {"gain": "not measured"},
        "verdict": "not measured",
    }
    bare = card("blade", summary | {"variants": summary["variants"] | {"blade": entry}}, roles, Known(), None)
    data = yaml.safe_load(bare.split("---")[1])
    assert "model-index" not in data and "license" not in data and "base_model" not in data
    assert "Not measured." in bare and "gain over the target: not measured" in bare
    assert f"Not measured or not defined: {', '.join(FIGURES.values())}." in bare


def test_further_tasks_stand_in_the_metadata(experiment):
    _, roles, summary = experiment
    entry = summary["variants"]["blade"] | {
        "tasks": {"hellaswag": {"role": "retention", "accuracy": {"value": 0.41, "low": 0.4, "high": 0.42, "n": 9}}}
    }
    data = data_of(card("blade", summary | {"variants": {**summary["variants"], "blade": entry}}, roles, KNOWN, None))
    (result,) = [result for result in data.eval_results if result.dataset_type == "hellaswag"]
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.41)


def test_only_grafts_with_code_ask_for_trust(told):
    assert "trust_remote_code=True" in told["blade"]
    assert "trust_remote_code" not in told["transplant"]


HOSTILE = "x](http://evil) <script>alert(1)</script>\n---\nlicense: mit\n# *b* | \u202e"


def test_hostile_names_are_inert(tmp_path, experiment):
    _, _, summary = experiment
    donors = {HOSTILE: {"trained": "x"}}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"adopt": donors, "inject": {HOSTILE: {"donor": HOSTILE, "note": HOSTILE}}}))
    entry = summary["variants"]["blade"] | {"reasons": [HOSTILE], "undefined": {"tir": HOSTILE}}
    found = summary | {"variants": {HOSTILE: entry}, "donors": {HOSTILE: summary["donors"]["sibling"]}}
    made = card(HOSTILE, found, read_roles(params), Known(HOSTILE, (HOSTILE,), capability=HOSTILE), None)
    body = made.split("\n---\n", 1)[1]
    assert "<script" not in body and "](" not in body.replace("\\]\\(", "")
    assert not re.search(r"^license: mit", body, flags=re.M)
    data = data_of(made)
    assert data.license == HOSTILE and data.model_name == HOSTILE and data.base_model == [HOSTILE]


def test_the_stage_writes_a_card_for_every_variant_the_same_every_time(experiment, tmp_path):
    root, roles, summary = experiment
    write_json(tmp_path / "summary.json", summary)
    write_json(tmp_path / "cost" / "blade.json", COST)
    for name in ("one", "two"):
        cards.main(tmp_path / "summary.json", tmp_path / "cost", tmp_path / name, root / "params.yaml")
    assert {path.stem for path in (tmp_path / "one").iterdir()} == set(roles.variants)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert "81 ms a token" in (tmp_path / "one" / "blade.md").read_text()
    assert "Not measured." in (tmp_path / "one" / "transplant.md").read_text()


def test_a_variant_without_figures_is_refused(experiment, tmp_path):
    root, _, summary = experiment
    write_json(tmp_path / "summary.json", summary | {"variants": {}})
    with pytest.raises(BadInput, match=r"Expected figures of blade, .* got none; run `dvc repro report`"):
        cards.main(tmp_path / "summary.json", tmp_path, tmp_path / "out", root / "params.yaml")


def test_the_metrics_are_the_summarys(experiment, tmp_path):
    summary = experiment[2]
    write_json(tmp_path / "summary.json", summary)
    metrics.main(tmp_path / "summary.json", tmp_path / "metrics")
    assert {path.stem for path in (tmp_path / "metrics").iterdir()} == set(summary["variants"])
    for name, entry in summary["variants"].items():
        found = read_json(tmp_path / "metrics" / f"{name}.json")
        assert found["verdict"] == entry["verdict"]
        for figure, short in metrics.FIGURES.items():
            ends = {"": "value", "_low": "low", "_high": "high"}
            assert {end: found.get(f"{short}{end}") for end in ends} == {
                end: entry[figure] and entry[figure][key] for end, key in ends.items()
            }
        assert all(isinstance(value, float | str) for value in found.values()), json.dumps(found)
