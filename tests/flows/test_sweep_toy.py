"""A sweep over the gates of the toy experiment's blade."""

import json
from pathlib import Path

import pytest
import toy

from flows.dag import read_dag
from flows.git import git
from flows.runner import run
from flows.sweep import LOGS, main
from stages import specialize


@pytest.mark.timeout(1200)
def test_gates_of_a_blade_are_swept_and_what_they_share_is_made_once(tmp_path: Path):
    root = toy.experiment(tmp_path / "toy")
    run(read_dag(root, ["fetch@target"]))
    donor = "data/donors/sibling"
    specialize.main("sibling", root / "data/models/target", root / donor, root / "params.yaml")
    toy.commit(root, "specialize@sibling")
    for command in ("config user.name t", "config user.email t@t", "add -A", "commit -qm c"):
        git(root, *command.split())

    assert (
        main(["--root", str(root), "--grid", "inject.blade.gate=token,scalar", "--targets", "train_gates@blade"]) == 0
    )
    table = json.loads((root / "data/sweep/sweep.json").read_text())
    assert table["factors"] == {"inject.blade.gate": ["token", "scalar"]}
    first, second = ((root / LOGS / f"{row['name']}.log").read_text() for row in table["points"])
    assert "adopt@sibling: ran" in first and "adopt@sibling: ran" not in second
    assert "train_gates@blade: ran" in first and "train_gates@blade: ran" in second
    gates = {
        git(root, "rev-parse", f"{ref}:dvc.lock")
        for ref in git(root, "for-each-ref", "--format=%(refname)", "refs/exps/*/*/inject*").splitlines()
    }
    assert len(gates) == 2
