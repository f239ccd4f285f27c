"""What one machine made, another on the same commit has without running a stage, over each kind of remote."""

from pathlib import Path

import pytest
import toy
from conftest import TARGETS, Remote, dvc, git
from servers import SECRET

from flows.dag import read_dag
from flows.runner import run
from flows.transfer import TransferFailed, transfer

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("quickly"),
]  # the first one waits for the build


def outcomes(root: Path) -> dict[str, str]:
    return {stage: result.outcome for stage, result in run(read_dag(root, TARGETS)).items()}


def test_a_second_machine_runs_only_what_its_change_asks_for(first, second, remote: Remote):
    transfer("pull", second)
    assert set(outcomes(second).values()) == {"unchanged"}

    toy.configure(second, {"inject.blade.alpha": 0.5})
    ran = {stage for stage, outcome in outcomes(second).items() if outcome == "ran"}
    assert ran == {"train_gates@blade", "inject@blade"}

    if remote.writes:
        with pytest.raises(TransferFailed, match="can be read only; push to the server's directory"):
            transfer("push", second)
    else:  # and what the second made, the first has for the asking
        transfer("push", second)
        toy.configure(first, {"inject.blade.alpha": 0.5})
        told = dvc(first, "repro", "--pull", *TARGETS)
        assert {name for name in ran if f"Stage '{name}' is cached - skipping run" in told} == ran
        assert "Running stage" not in told


def test_secrets_stay_in_one_file_that_git_ignores(first, second, remote: Remote):
    transfer("pull", second)
    for root in (first, second):
        holding = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
        own = root / ".dvc" / "config.local"
        assert holding == ([own] if remote.environment else [])
        if own.exists():
            assert own.stat().st_mode & 0o777 == 0o600
            assert git(root, "check-ignore", ".dvc/config.local")
        assert "config.local" not in git(root, "ls-files", ".dvc")
        assert SECRET not in git(root, "log", "--all", "--patch")
    stored = [path for path in remote.directory.rglob("*") if path.is_file()]
    assert stored
    assert not any(SECRET.encode() in path.read_bytes() for path in stored)
