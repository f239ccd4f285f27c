import os
from pathlib import Path

import pytest
import yaml

from flows.dag import DagError, read_dag


def edit(root: Path, **stage: dict) -> None:
    """Merge the given keys into stages of dvc.yaml."""
    method = yaml.safe_load((root / "dvc.yaml").read_text())
    for name, keys in stage.items():
        method["stages"][name] |= keys
    (root / "dvc.yaml").write_text(yaml.safe_dump(method))


def test_each_stage_comes_after_its_upstreams_and_equals_come_by_name(diamond):
    dag = read_dag(diamond)
    assert dag.stages == ("first", "left", "right", "last")
    assert dag.upstreams["last"] == ("left", "right")
    assert dag.upstreams["first"] == ()


def test_nothing_is_changed_after_a_run(diamond):
    assert read_dag(diamond).changed == frozenset()


def test_a_changed_input_changes_what_is_downstream_and_nothing_else(diamond):
    (diamond / "right.in").write_text("edited")
    assert read_dag(diamond).changed == {"right", "last"}


def test_a_target_brings_its_upstreams_along(diamond):
    assert read_dag(diamond, ["left"]).stages == ("first", "left")


def test_a_foreach_group_is_a_target(repository):
    group = {"foreach": ["x", "y"], "do": {"cmd": "cp in.txt ${item}.txt", "deps": ["in.txt"], "outs": ["${item}.txt"]}}
    root = repository({"copy": group, "other": {"cmd": "true", "deps": ["in.txt"]}})
    assert read_dag(root, ["copy"]).stages == ("copy@x", "copy@y")
    assert set(read_dag(root).stages) == {"copy@x", "copy@y", "other"}


def test_a_frozen_stage_waits_for_nothing_and_stops_the_change(diamond):
    edit(diamond, right={"frozen": True})
    (diamond / "right.in").write_text("edited")
    dag = read_dag(diamond)
    assert dag.upstreams["right"] == ()
    assert dag.changed == frozenset()


def test_the_graph_is_the_same_from_any_working_directory(diamond, tmp_path, monkeypatch):
    here = read_dag(diamond)
    monkeypatch.chdir(tmp_path)
    assert read_dag(diamond.name) == here
    assert os.getcwd() == str(tmp_path)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("lefd", "No stage is called 'lefd'; did you mean 'left'?"),
        ("%", "No stage is called '%'; known are first, last, left, right."),
    ],
)
def test_an_unknown_target_names_the_nearest(diamond, target, sentence):
    with pytest.raises(DagError) as caught:
        read_dag(diamond, [target])
    assert str(caught.value) == sentence


def test_outside_a_repository_one_sentence_says_so(tmp_path):
    with pytest.raises(DagError, match=r"^Expected a DVC repository at .*, found none there or above; .*\.$"):
        read_dag(tmp_path)


def test_a_dvc_yaml_that_dvc_refuses_is_one_line(diamond):
    edit(diamond, right={"outs": ["left.txt"]})
    with pytest.raises(DagError, match="DVC cannot read the pipeline") as caught:
        read_dag(diamond)
    assert "\n" not in str(caught.value)


def test_without_a_dvc_yaml_one_sentence_says_so(empty):
    with pytest.raises(DagError, match=r"^Expected a dvc.yaml in .*, found none; name the targets\.$"):
        read_dag(empty)
