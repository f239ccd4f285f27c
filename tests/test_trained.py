"""Trained gates are taken by the models they were trained between, and by no others."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import BadInput
from stages.trained import read_trained, write_trained
from tests import grafts

GATE = {"0.gate.read.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    target = grafts.target(tmp_path_factory.mktemp("models") / "target")
    donor = target.with_name("donor")
    shutil.copytree(target, donor)
    weights = {name: value + 0.5 for name, value in load_file(donor / "model.safetensors").items()}
    save_file(weights, donor / "model.safetensors", {"format": "pt"})
    return target, donor


def test_what_was_written_is_read_wherever_the_models_lie(models, tmp_path):
    gate = tmp_path / "gate.safetensors"
    write_trained(gate, GATE, *models)
    elsewhere = [shutil.copytree(path, tmp_path / path.name) for path in models]
    assert torch.equal(read_trained(gate, elsewhere)["0.gate.read.weight"], GATE["0.gate.read.weight"])
    write_trained(tmp_path / "again.safetensors", GATE, *elsewhere)
    assert gate.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["target", "donor"])
def test_gates_of_another_model_are_refused_by_name(models, tmp_path, name):
    gate = tmp_path / "gate.safetensors"
    write_trained(gate, GATE, *models)
    target, donor = models
    given = (donor, donor) if name == "target" else (target, target)
    with pytest.raises(BadInput, match=f"trained with the {name} .*in {gate}, got those of another model"):
        read_trained(gate, given)


@pytest.mark.parametrize("there", ["nothing", "half", "text"])
def test_a_file_that_is_no_gate_is_named(models, tmp_path, there):
    gate = tmp_path / "gate.safetensors"
    if there == "half":
        write_trained(gate, GATE, *models)
        gate.write_bytes(gate.read_bytes()[:-8])
    elif there == "text":
        gate.write_text("not a gate, and longer than eight bytes")
    with pytest.raises(BadInput, match=f"Expected trained gates in {gate}, got none that can be read") as caught:
        read_trained(gate, models)
    assert "\n" not in str(caught.value)


def test_gates_that_say_nothing_of_their_models_are_read(models, tmp_path):
    save_file(GATE, tmp_path / "gate.safetensors")
    assert read_trained(tmp_path / "gate.safetensors", models).keys() == GATE.keys()
