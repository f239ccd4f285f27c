"""A sweep over the gates of the toy experiment's blade."""

import json
from pathlib import Path

import pytest
import toy

from flows.git import git
from flows.sweep import LOGS, main


@pytest.mark.timeout(1200)
def test_gates_of_a_blade_are_swept_and_what_they_share_is_made_once(tmp_path: Path):
    root = toy.experiment(tmp_path / "toy")
    toy.configure(root, {"inject.blade.donor": "target"})  # which no stage has to train first
    for command in ("config user.name t", "config user.email t@t", "add -A", "commit -qm c"):
        git(root, *command.split())

    asked = ["--grid", "inject.blade.gate=token,scalar", "--targets", "train_gates@blade", "--jobs", "2"]
    assert main(["--root", str(root), *asked]) == 0
    table = json.loads((root / "data/sweep/sweep.json").read_text())
    assert table["factors"] == {"inject.blade.gate": ["token", "scalar"]}
    first, second = ((root / LOGS / f"{row['name']}.log").read_text() for row in table["points"])
    assert all(f"{stage}: ran" in first for stage in ("fetch@target", "prompts", "train_gates@blade"))
    assert next(line for line in second.splitlines() if ": ran in" in line).startswith("train_gates@blade: ran")
    refs = git(root, "for-each-ref", "--format=%(refname)", "refs/exps/*/*/inject*").splitlines()
    assert len({git(root, "rev-parse", f"{ref}:dvc.lock") for ref in refs}) == 2
