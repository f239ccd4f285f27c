"""Bad input ends a stage with one sentence and a non-zero exit, before anything is written."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toy
import yaml

from stages import capture, choose, evaluate, fetch, inject, report, train_gates, transplant
from stages.command import run

pytestmark = pytest.mark.timeout(900)  # the first test may wait for the whole pipeline


@pytest.fixture
def refused(monkeypatch, capsys) -> Callable[..., str]:
    """Calls a stage's command line, which must fail; gives its sentence."""

    def call(main: Callable, **options: str | Path) -> str:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr(sys, "argv", ["stage", *words])
        with pytest.raises(SystemExit) as ended:
            run(main)
        assert ended.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("graftline: ")
        if (out := Path(options["out"])).exists():
            raise AssertionError(f"{out} was written")
        return lines[0].removeprefix("graftline: ")

    return call


@pytest.fixture
def variant(built, tmp_path) -> Callable[..., dict]:
    """Options of train_gates for the toy's `blade` with some of its keys changed."""

    def options(**changes: object) -> dict[str, str | Path]:
        params = tmp_path / "params.yaml"
        params.write_text(yaml.safe_dump({"inject": {"blade": toy.PARAMS["inject"]["blade"] | changes}}))
        data = built.root / "data"
        return {
            "variant": "blade",
            "target": data / "models" / "target",
            "donor": data / "models" / str(changes.get("donor", "sibling")),
            "capability": data / "prompts" / "capability" / "train.jsonl",
            "text": data / "prompts" / "retention" / "train.jsonl",
            "out": tmp_path / "out",
            "params": params,
        }

    return options


@pytest.mark.parametrize("key", ["layer", "donor_layer"])
@pytest.mark.parametrize("layer", [99, -5, "n-5", "last", 1.5])
def test_a_layer_that_does_not_exist(refused, variant, key, layer):
    sentence = refused(train_gates.main, **variant(**{key: layer}))
    assert "Expected a layer from 0 to 3, n-1 to n-4 or a depth such as 0.875" in sentence
    assert f"got {layer!r}" in sentence


def test_a_donor_of_another_width_without_a_bridge(refused, variant):
    sentence = refused(train_gates.main, **variant(donor="calculator", donor_layer=1))
    assert "has width 16 and the target 32" in sentence
    assert sentence.endswith("set bridge: linear.")


def test_a_gate_that_is_none(refused, variant):
    assert "'token'" in refused(train_gates.main, **variant(gate="tokne"))


def test_a_misspelt_key_inside_training(refused, variant):
    sentence = refused(train_gates.main, **variant(training=toy.TRAINING | {"setps": 3}))
    assert "unknown key 'training.setps', did you mean 'steps'?" in sentence


def test_a_variant_that_is_not_in_the_parameters(refused, variant):
    assert "lacks 'balde'; did you mean 'blade'?" in refused(train_gates.main, **variant() | {"variant": "balde"})


def test_a_variant_that_follows_the_plan_of_a_donor_without_one(refused, built, tmp_path):
    toy.configure(tmp_path, {"auto.chosen_blade.donor": "sibilng"})
    plan = built.root / "data" / "plan" / "plan.json"
    options = {"plan": plan, "out": tmp_path / "out", "params": tmp_path / "params.yaml"}
    sentence = refused(choose.main, variant="chosen_blade", **options)
    assert sentence.endswith("name it under evidence.aligned, or did you mean 'sibling'?")


def test_a_gate_trained_for_another_recipe(refused, variant, built):
    options = variant(gate="channel")
    gate = built.root / "data" / "gates" / "blade" / "gate.safetensors"
    kept = {key: options[key] for key in ("variant", "target", "donor", "out", "params")}
    assert "does not hold this recipe's gate" in refused(inject.main, **kept, gate=gate)


def test_weights_of_another_architecture(refused, built, tmp_path):
    models = built.root / "data" / "models"
    options = {"target": models / "target", "donor": models / "calculator", "params": built.root / "params.yaml"}
    prompts = built.root / "data" / "prompts"
    options |= {"capability": prompts / "capability" / "train.jsonl", "text": prompts / "retention" / "train.jsonl"}
    options |= {"selection": built.root / "data" / "selection" / "sibling", "making": tmp_path / "making.json"}
    sentence = refused(transplant.main, variant="transplant", out=tmp_path / "out", **options)
    assert "use a blade with a bridge" in sentence


@pytest.mark.parametrize("there", ["nothing", "an empty directory", "a text file", "a model without weights"])
def test_a_path_that_is_not_a_model(refused, built, tmp_path, there):
    path, params = tmp_path / "model", tmp_path / "params.yaml"
    if there == "an empty directory":
        path.mkdir()
    elif there == "a text file":
        path.write_text("not a model")
    elif there == "a model without weights":
        shutil.copytree(built.root / "data" / "models" / "target", path, ignore=shutil.ignore_patterns("*.safetensors"))
    params.write_text(yaml.safe_dump({"fetch": {"target": {"source": f"path:{path}"}}}))
    assert "model" in refused(fetch.main, model="target", out=tmp_path / "out", params=params)
    if there != "a text file":
        prompts = built.root / "data" / "prompts"
        options = {"capability": prompts / "capability" / "train.jsonl", "text": prompts / "retention" / "train.jsonl"}
        options |= {"params": built.root / "params.yaml", "out": tmp_path / "out"}
        assert str(path) in refused(capture.main, model=path, **options)


def test_weights_cut_short(refused, built, tmp_path):
    model = shutil.copytree(built.root / "data" / "models" / "target", tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    options = {"prompts": built.root / "data" / "prompts", "tasks": built.root / "data" / "tasks"}
    options |= {"params": built.root / "params.yaml"}
    assert str(model) in refused(evaluate.main, model=model, out=tmp_path / "out", **options)


def test_a_donor_that_nobody_adopted(refused, built, tmp_path):
    toy.configure(tmp_path, {"inject.blade.donor": "sibiling"})
    names = ("evaluation", "uncertainty", "catalog", "trace", "bridges", "gates", "models")
    places = {name: built.root / "data" / name for name in names} | {"plan": built.root / "data" / "plan" / "plan.json"}
    sentence = refused(report.main, **places, out=tmp_path / "out", params=tmp_path / "params.yaml")
    assert "blade: the donor 'sibiling' is not under adopt or specialists; did you mean 'sibling'?" in sentence
