import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from flows import gpus
from flows.git import git
from flows.points import Plan, combined, plan_sweep, read_plan
from flows.sweep import Hands, locally, main, reason
from stages.errors import BadInput

ROOT = Path(__file__).parents[2]
STAGES = {
    "gain": {
        "cmd": "echo ${a} ${b} $CUDA_VISIBLE_DEVICES >> $LOG; sleep ${pause}; test ${a} != 3 && "
        'echo "{\\"gain\\": $((${a} * ${b}))}" > gain.json',
        "params": ["a", "b", "pause"],
        "outs": ["gain.json"],
    },
    "kept": {
        "cmd": 'mkdir -p kept && echo "{\\"accuracy\\": {\\"retention\\": 0.${a}}, '
        '\\"items\\": {\\"retention\\": 10}}" > kept/metrics.json',
        "params": ["a"],
        "outs": ["kept"],
    },
}


@pytest.fixture(scope="module")
def origin_of(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A repository whose figures are arithmetic on its params; look, but do not touch."""
    root = tmp_path_factory.mktemp("sweep") / "repository"
    shutil.copytree(request.getfixturevalue("empty"), root)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES, "metrics": ["gain.json"]}))
    (root / "params.yaml").write_text("a: 1  # kept as it is\nb: 1\npause: 0\n")
    (root / ".gitignore").write_text("/data/sweep/\n")
    for command in ("config user.name t", "config user.email t@t", "add -A", "commit -qm c"):
        git(root, *command.split())
    return root


@pytest.fixture
def root(origin_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and a log of what its stages were run with."""
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return shutil.copytree(origin_of, tmp_path / "repository")


def ran(root: Path) -> list[str]:
    """The params of every run of stage `gain`, and the GPU that it had."""
    return sorted(line.strip() for line in (root.parent / "log").read_text().splitlines())


def test_a_grid_becomes_experiments_a_page_and_a_table_and_a_failing_point_stops_no_other(root, capfd):
    before = (root / "params.yaml").read_bytes()
    asked = ["--root", str(root), "--grid", "a=2,3", "b=1,2", "--jobs", "2"]
    assert main(asked) == 1
    said = capfd.readouterr()
    assert "4 points, 0 known, 4 to run" in said.out and "2 of 4 points failed" in said.err
    assert ran(root) == ["2 1", "2 2", "3 1", "3 2"]
    assert (root / "params.yaml").read_bytes() == before and git(root, "status", "--porcelain") == ""

    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    shown = json.loads(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
    (commit,) = [each for each in shown if each["rev"] == git(root, "rev-parse", "HEAD")]
    rows = {row["revs"][0]["name"]: row["revs"][0]["data"] for row in commit["experiments"]}
    assert {name: row["metrics"]["gain.json"]["data"] for name, row in rows.items()} == {
        "a-2-b-1": {"gain": 2}, "a-2-b-2": {"gain": 4},
    }  # fmt: skip
    assert rows["a-2-b-2"]["params"]["params.yaml"]["data"] == {"a": 2, "b": 2, "pause": 0}

    out = root / "data" / "sweep"
    points = {row["name"]: row for row in json.loads((out / "sweep.json").read_text())["points"]}
    assert points["a-2-b-2"]["figures"] == {"gain.gain": 4, "kept.accuracy.retention": 0.2, "kept.items.retention": 10}
    assert points["a-3-b-1"]["failure"].startswith("Stage 'gain' failed: ")
    assert "failed: Stage 'gain' failed" in (out / "points.md").read_text()
    assert (out / "points.csv").read_text().splitlines()[2] == "a-2-b-2,2,2,4,0.2,10,"

    # what is known is not run again, what failed is; the page is the same, byte for byte
    pages = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(asked) == 1
    assert "4 points, 2 known, 2 to run" in capfd.readouterr().out
    assert ran(root) == ["2 1", "2 2", "3 1", "3 1", "3 2", "3 2"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == pages


def test_an_interrupted_sweep_leaves_nothing_running_and_goes_on_where_it_was(root):
    asked = ["--root", str(root), "--grid", "b=2,5", "pause=0,300", "--targets", "gain"]
    with subprocess.Popen([sys.executable, "-m", "flows.sweep", *asked], cwd=ROOT) as sweep:
        until = time.monotonic() + 200
        while len(ran(root)) < 2:  # the second one is at work
            assert time.monotonic() < until
            time.sleep(0.1)
        sweep.send_signal(signal.SIGTERM)
    assert sweep.returncode == 128 + signal.SIGTERM
    while any(
        str(root.parent) in " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    ):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert ran(root) == ["1 2", "1 2"]

    asked[3:5] = ["b=2,5", "pause=0"]
    assert main(asked) == 0
    assert ran(root) == ["1 2", "1 2", "1 5"]


def test_what_someone_pushed_is_known_to_everyone(root, tmp_path, capfd):
    git(tmp_path, "init", "--quiet", "--bare", "git")
    git(root, "remote", "add", "origin", str(tmp_path / "git"))
    dvc = [sys.executable, "-m", "dvc", "remote", "add", "--default", "shared", str(tmp_path / "dvc")]
    subprocess.run(dvc, cwd=root, check=True)
    git(root, "commit", "--quiet", "--all", "--message", "remote")
    git(root, "push", "--quiet", "origin", "HEAD")
    assert main(["--root", str(root), "--point", "b=4", "--push"]) == 0

    git(tmp_path, "clone", "--quiet", "git", "colleague")
    asked = ["--root", str(tmp_path / "colleague"), "--point", "b=4"]
    assert main(asked) == 0
    assert "1 points, 1 known, 0 to run" in capfd.readouterr().out
    assert ran(root) == ["1 4"]
    shown = json.loads((tmp_path / "colleague/data/sweep/sweep.json").read_text())
    assert shown["points"][0]["figures"]["gain.gain"] == 4

    (tmp_path / "git").rename(tmp_path / "away")
    assert main(asked) == 0
    assert "What others have run is unknown" in capfd.readouterr().err


def test_each_job_has_a_gpu_to_itself_and_more_jobs_share_them(root, monkeypatch):
    monkeypatch.setattr(gpus, "devices", lambda: ["0", "1"])
    assert gpus.dealt(3) == ["0", "1", "0"]
    sweep = plan_sweep(root, Plan(targets=["gain"]), ["b=1,2"])
    assert locally(sweep, str(root), Hands(jobs=2), sweep.points) == {}
    assert [line.split()[2] for line in ran(root)] == ["0", "1"]  # one after the other: nothing of the commit had run


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "Expected a grid or a list of points, got none"),
        (["--grid", "c=1,2"], "no 'c' there; valid are: a, b, pause"),
        (["--grid", "a=1,["], "quote values that hold commas"),
        (["--grid", "a=1,2", "--point", "a=3"], "Expected each key once in a point, got 'a' twice"),
        (["--grid", "a=1,2", "--targets", "gian"], "did you mean 'gain'?"),
        (["--grid", "a=1,2", "--goals", "gain"], "Expected a goal as max:FIGURE or min:FIGURE, got 'gain'"),
        (["--grid", "a=1,2", "--push"], "Expected a default DVC remote"),
        (["nowhere.yaml"], "Expected a sweep's YAML at nowhere.yaml"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(root, capfd, asked, said):
    assert main([*asked, "--root", str(root)]) == 1
    told = capfd.readouterr().err
    assert said in told and told.count("\n") == 1
    assert ran(root) == []


def test_a_sweep_does_not_stand_on_uncommitted_edits(root):
    (root / "params.yaml").write_text("a: 7\nb: 1\npause: 0\n")
    with pytest.raises(BadInput, match="got edits of params.yaml; commit them first"):
        plan_sweep(root, Plan(), ["b=1,2"])


def test_a_file_says_the_same_as_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("grid: {a.b: [n-5, 0.001, [1, 2], 'x, y']}\npoints: [{c: true}, {c: null}]\ntargets: [t]\n")
    plan = read_plan(path)
    assert plan.targets == ["t"]
    path.write_text("gird: {a: [1]}\n")
    with pytest.raises(BadInput, match="did you mean 'grid'"):
        read_plan(path)
    path.write_text("grid: {a: 1}\n")
    with pytest.raises(BadInput, match="got trouble at grid.a: Input should be a valid list"):
        read_plan(path)


def test_points_are_all_combinations_and_their_names_tell_targets_apart():
    points = combined(["a.b=n-5,[1,2]", "~gone", "+new=range(0,2)"], [["c=1"], ["c=2"]], ["x", "y"])
    assert len(points) == 2 * 2 * 2 == len({point.name for point in points})
    assert points[0].overrides == ("a.b=n-5", "+new=0", "c=1", "~gone")
    assert points[0].values == {"a.b": "n-5", "new": "0", "c": "1", "gone": ""}
    (same,) = combined(["c=1", "a.b=n-5"], [], ["y", "x"])
    (again,) = combined(["a.b=n-5", "c=1"], [], ["x", "y"])
    (other,) = combined(["a.b=n-5", "c=1"], [], ["x"])
    (plain,) = combined(["a.b=n-5", "c=1"], [], [])
    assert same.name == again.name and len({same.name, other.name, plain.name}) == 3
    assert plain.name == "a.b-n-5-c-1"


def test_a_reason_is_the_headline_and_the_last_line():
    text = "x: line\nStage 'a' failed; its last lines:\n    Traceback\n    ValueError: no\n\n"
    assert reason(text) == "Stage 'a' failed: ValueError: no"
    assert reason("") == "" and len(reason("y" * 5000)) < 310
