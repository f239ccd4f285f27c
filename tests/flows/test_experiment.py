import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.dag import DagError, read_dag
from flows.experiment import changed_clone, slug
from flows.origin import origin
from flows.outcome import RemoteFailed, may_pass
from flows.request import Request, reproduce
from flows.runner import run

ROOT = Path(__file__).parents[2]


def carry_out(root: Path, *overrides: str, **options) -> dict[str, str]:
    """What became of each stage."""
    request = Request(root=root, overrides=overrides, **options)
    finished = reproduce(request, lambda dag, _: run(dag, options=request.options), lambda name, work: work(print))
    return {stage: result.outcome for stage, result in finished.ended.items()}


def files(root: Path) -> dict[str, bytes]:
    """The workspace, without what git and DVC keep for themselves."""
    kept = (path for path in root.rglob("*") if path.is_file() and not {".git", ".dvc"} & set(path.parts))
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def experiments(root: Path) -> dict[str, dict]:
    """Params by experiment, as DVC shows them."""
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"], cwd=root, check=True, capture_output=True, text=True
    )
    commit = next(each for each in json.loads(shown.stdout) if each["rev"] != "workspace")
    each = [row for group in commit["experiments"] or [] for row in group["revs"]]
    return {row["name"]: row["data"]["params"]["params.yaml"]["data"] for row in each}


def test_an_override_makes_an_experiment_and_leaves_the_workspace_as_it_was(committed):
    before = files(committed)
    assert carry_out(committed, "high=5") == {"low": "unchanged", "high": "ran", "both": "ran"}
    assert files(committed) == before
    assert experiments(committed) == {"high-5": {"low": 1, "high": 5}}
    assert not any((committed / ".dvc" / "tmp" / "clones").iterdir())

    subprocess.run([sys.executable, "-m", "dvc", "exp", "apply", "high-5"], cwd=committed, check=True)
    assert (committed / "both.txt").read_text() == "bothlow: 1   # kept as it is\nhigh: 5\n"
    assert not read_dag(committed).changed


def test_the_same_override_runs_nothing_twice_and_stays_one_experiment(committed):
    carry_out(committed, "high=5")
    assert "ran" not in carry_out(committed, "high=5").values()
    assert list(experiments(committed)) == ["high-5"]


def test_an_experiment_stands_on_uncommitted_edits_and_its_origin_names_them(committed):
    (committed / "params.yaml").write_text("low: 7\nhigh: 2\n")
    before = files(committed)
    with changed_clone(committed, ["high=5"]) as clone:
        found = origin(clone)
        assert (clone / "params.yaml").read_text() == "low: 7\nhigh: 5\n"
    assert found.params == {"low": (1, 7), "high": (2, 5)}
    assert found.edited == ("params.yaml",)
    assert found.commit and str(found) == f"{found.commit}+"
    assert files(committed) == before


def test_a_target_that_leaves_other_stages_out_is_kept_as_well(committed):
    (committed / "both.txt").unlink()
    assert carry_out(committed, "low=9", targets=("low",)) == {"low": "ran"}
    assert experiments(committed)["low-9"] == {"low": 9, "high": 2}


def test_force_runs_what_is_known(committed):
    assert set(carry_out(committed).values()) == {"unchanged"}
    assert set(carry_out(committed, force=True).values()) == {"ran"}


@pytest.mark.parametrize(
    ("override", "said"),
    [("hihg=5", "no 'hihg' there; did you mean 'high'?"), ("high=[", "Invalid"), ("high", "Invalid")],
)
def test_a_bad_override_is_one_sentence_and_leaves_nothing(committed, override, said):
    with pytest.raises(DagError, match="Expected overrides of params.yaml as KEY=VALUE") as caught:
        carry_out(committed, override)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not any((committed / ".dvc" / "tmp" / "clones").iterdir())


def test_without_a_commit_one_sentence_says_so(diamond):
    with pytest.raises(DagError, match="Expected a git commit in .*; commit first"):
        carry_out(diamond, "x=1")


def test_a_killed_experiment_harms_nothing_and_its_clone_goes_with_the_next(committed, gone):
    slow = {"cmd": "echo $$ > ../pid; sleep 60"}
    method = (committed / "dvc.yaml").read_text() + f"  slow: {json.dumps(slow)}\n"
    (committed / "dvc.yaml").write_text(method)
    before = files(committed)
    command = [sys.executable, "-m", "flows.runner", "--root", str(committed), "-S", "high=5", "slow"]
    shelf = committed / ".dvc" / "tmp" / "clones"
    with subprocess.Popen(command, cwd=ROOT) as runner:
        until = time.monotonic() + 60
        while not (shelf / "pid").exists() or not (shelf / "pid").read_text():
            assert time.monotonic() < until, "the stage does not start"
            time.sleep(0.05)
        assert any(path.is_dir() for path in shelf.iterdir())
        runner.send_signal(signal.SIGKILL)
    assert gone(int((shelf / "pid").read_text()))
    assert files(committed) == before
    assert any(path.is_dir() for path in shelf.iterdir())
    carry_out(committed, "high=5", targets=("high",))
    assert os.listdir(shelf) == ["pid"]


def test_names_are_what_git_accepts_and_tell_long_lists_apart():
    assert slug(["a.b=0.5", "+c=[1,2]"]) == "+c-1-2-a.b-0.5"
    assert slug(["x=1", "y=2"]) == slug(["y=2", "x=1"])
    long = [f"section.key{number}=0.123" for number in range(20)]
    assert slug(long) != slug([*long[:-1], "section.key19=0.124"]) and len(slug(long)) <= 80


@pytest.mark.parametrize("asked", ["pull", "push"])
def test_without_a_remote_one_sentence_says_so(committed, asked):
    with pytest.raises(DagError, match=r"Expected a default DVC remote .*; name one by `dvc remote add --default"):
        carry_out(committed, **{asked: True})


def test_a_remote_that_cannot_be_reached_fails_by_name_and_may_be_better_later(committed):
    dvc = [sys.executable, "-m", "dvc", "remote", "add", "--default", "gone", "ssh://127.0.0.1:9/cache"]
    subprocess.run(dvc, cwd=committed, check=True)
    with pytest.raises(RemoteFailed) as caught:
        carry_out(committed, pull=True)
    assert caught.value.headline == "dvc pull failed" and may_pass(caught.value)


def test_what_was_pushed_is_pulled_and_nothing_runs_elsewhere(committed, tmp_path):
    dvc = [sys.executable, "-m", "dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote")]
    subprocess.run(dvc, cwd=committed, check=True)
    subprocess.run(["git", "commit", "-qam", "remote"], cwd=committed, check=True)
    carry_out(committed, push=True)
    carry_out(committed, "high=5", push=True)  # from the clone, whose remote is the same

    elsewhere = tmp_path / "elsewhere"
    subprocess.run(["git", "clone", "--quiet", committed, elsewhere], check=True)
    assert set(carry_out(elsewhere, pull=True, targets=("both",)).values()) == {"unchanged"}
    assert (elsewhere / "both.txt").read_text() == (committed / "both.txt").read_text()
    assert "ran" not in carry_out(elsewhere, "high=5", pull=True).values()
