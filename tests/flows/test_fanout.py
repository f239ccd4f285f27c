"""A sweep on a real server with two workers, each a machine of its own with clones and a cache of its own."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import gpus
from flows.dag import LOADING
from flows.fanout import point
from flows.git import git
from flows.processes import inherited, supervised
from flows.server import answers, settle
from flows.sweep import main
from flows.workplace import workplace

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]
STAGES = {
    # the first point waits until it is killed; whoever takes it then finds nothing to wait for
    "slow": {
        "cmd": "echo $MACHINE ${high} >> $LOG; if [ ${high} = 1 ] && mkdir $LOG.once; then sleep 600; fi; "
        'echo "{\\"gain\\": ${high}}" > slow.json',
        "params": ["high"],
        "outs": ["slow.json"],
    },
    "other": {"cmd": "test ${high} != 3 && echo ${low} > other.txt", "params": ["low", "high"], "outs": ["other.txt"]},
}


def dvc(root: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True, env=inherited()).stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of a bare git repository, with a DVC remote: what a team has."""
    folder = tmp_path_factory.mktemp("team")
    root = folder / "mine"
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "prefect.toml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / "params.yaml").write_text("low: 0\nhigh: 0\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES, "metrics": ["slow.json"]}))
    git(folder, "init", "--quiet", "--bare", "git")
    git(root, "init", "--quiet")
    dvc(root, "init", "--quiet")
    dvc(root, "remote", "add", "--default", "team", str(folder / "dvc"))
    for key in ("user.name", "user.email"):
        git(root, "config", key, "t")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "c")
    git(root, "remote", "add", "origin", str(folder / "git"))
    git(root, "push", "--quiet", "origin", "HEAD")
    return root


@pytest.fixture(scope="module")
def url(project: Path) -> Iterator[str]:
    """A server with the deployments, and an environment that names it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    ours = {
        "PREFECT_HOME": str(project.parent / "prefect"),
        "PREFECT_API_URL": address,
        "PYTHONPATH": str(ROOT),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "LOG": str(project.parent / "log"),
    }
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in ours.items():
            patch.setenv(name, value)
        out = stack.enter_context((project.parent / "server.log").open("wb"))
        server = supervised([*PREFECT, "server", "start", "--port", str(port)], out, project, inherited())
        stack.callback(server.wait)
        stack.callback(server.terminate)
        until = time.monotonic() + 300
        while not answers(address):
            assert time.monotonic() < until, (project.parent / "server.log").read_text()
            time.sleep(0.2)
        # a worker makes the pool; `prefect work-pool create` would call somebody outside
        for command in (
            ["worker", "start", "--pool", "graftline", "--type", "process", "--run-once"],
            ["deploy", "--all"],
        ):
            done = subprocess.run([*PREFECT, *command], cwd=project, env=inherited(), capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        stack.enter_context(temporary_settings({PREFECT_API_URL: address}))
        yield address


@contextmanager
def worker(project: Path, name: str, queue: str = "points") -> Iterator[subprocess.Popen[bytes]]:
    """A worker for one point at a time, whose clones and cache nobody else sees."""
    own = {"GRAFTLINE_CLONES": str(project.parent / name), "MACHINE": name}
    words = ["worker", "start", "--pool", "graftline", "--work-queue", queue, "--limit", "1", "--name", name]
    with (project.parent / f"{name}.log").open("wb") as log:
        process = supervised([*PREFECT, *words], log, project, inherited() | own)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def wait(told: Callable[[], object], seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_killed_workers_point_is_taken_by_another_and_all_come_back(project, url, capfd):
    log = project.parent / "log"
    log.touch()
    asked = ["--root", str(project), "--grid", "high=1,2,3", "--targets", "slow", "other", "--deployment"]
    command = [sys.executable, "-m", "flows.sweep", *asked, "--lease", "30"]
    with ExitStack() as stack:
        first = stack.enter_context(worker(project, "first"))
        # an interrupted sweep: its orders stand, and the next one takes them over
        with subprocess.Popen(command, cwd=ROOT, env=inherited()) as sweep:
            wait(lambda: "first 1" in log.read_text())
            sweep.send_signal(signal.SIGKILL)
        everything = [first, *psutil.Process(first.pid).children(recursive=True)]
        for process in everything:
            os.kill(process.pid, signal.SIGKILL)
        stack.enter_context(worker(project, "second"))
        assert main([*asked, "--lease", "30"]) == 1

    said = capfd.readouterr()
    assert "its worker is lost: not heard of for 30 s; another takes it" in said.out
    assert "1 of 3 points failed" in said.err
    assert "second 1" in log.read_text()

    (row,) = [row for row in json.loads((project / "data/sweep/sweep.json").read_text())["points"] if row["failure"]]
    assert row["values"] == {"high": "3"} and row["failure"] == "Stage 'other' failed"
    page = re.sub("<script.*?</script>", "", (project / "data/sweep/index.html").read_text(), flags=re.DOTALL)
    assert "highest slow.gain" in re.sub("<wbr>|</?bdi>", "", page)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)

    # the experiments are at the git remote, their outputs and the run-cache at the DVC remote
    listed = dvc(project, "exp", "list", "origin", "--name-only").split()
    assert sorted(name.rpartition("-")[0] for name in listed) == ["high-1", "high-2"]
    shown = json.loads(dvc(project, "exp", "show", "--json"))
    (commit,) = [each for each in shown if each["rev"] == git(project, "rev-parse", "HEAD")]
    found = [row["revs"][0]["data"]["metrics"]["slow.json"]["data"] for row in commit["experiments"]]
    assert sorted(each["gain"] for each in found) == [1, 2]
    assert any((project.parent / "dvc" / "runs").rglob("*"))

    # what the team knows is not asked for again: no worker is there that could do it
    known = [*asked[:3], "high=1,2", *asked[4:]]
    elsewhere = project.parent / "elsewhere"
    git(project, "clone", "--quiet", str(project.parent / "git"), str(elsewhere))
    known[1] = str(elsewhere)
    assert main(known) == 0
    assert "2 points, 2 known, 0 to run" in capfd.readouterr().out


def test_a_points_stages_count_against_the_gpus_limit_and_a_repository_without_remotes_will_do(
    project, url, tmp_path, monkeypatch
):
    root = tmp_path / "repository"
    (root / LOADING).parent.mkdir(parents=True)
    (root / LOADING).touch()
    (root / "params.yaml").write_text("a: 1\n")
    stage = {"cmd": "echo ${a} > out", "deps": [LOADING], "params": ["a"], "outs": ["out"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"model": stage}}))
    git(root, "init", "--quiet")
    dvc(root, "init", "--quiet")
    for command in ("config user.name t", "config user.email t", "add --all", "commit --quiet --message c"):
        git(root, *command.split())
    monkeypatch.setattr(gpus, "present", lambda: True)
    monkeypatch.setenv("GRAFTLINE_CLONES", str(tmp_path / "clones"))
    asked = {"overrides": ["a=2"], "name": "two", "commit": git(root, "rev-parse", "HEAD"), "address": str(root)}
    with get_client(sync_client=True) as client:
        state = point(**asked, return_state=True)
        assert state.is_completed(), state
        run = state.state_details.flow_run_id
        settle(run)
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        assert {task.name: set(task.tags) for task in tasks} == {"model": {gpus.tag()}}
        assert point(**asked, return_state=True).message == "It was known."
    assert dvc(root, "exp", "list", "--name-only").split() == ["two"]


def test_a_commit_that_is_not_pushed_is_refused_before_anything_is_ordered(project, url, tmp_path, capfd):
    clone = tmp_path / "clone"
    git(project, "clone", "--quiet", str(project.parent / "git"), str(clone))
    git(clone, "-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--allow-empty", "--message", "mine")
    assert main(["--root", str(clone), "--grid", "high=7,8", "--targets", "slow", "--deployment"]) == 1
    assert "`git push` (or `git fetch`) first" in capfd.readouterr().err


def test_a_clone_is_nobody_elses_while_it_is_used_and_free_after(project, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTLINE_CLONES", str(tmp_path))
    commit = git(project, "rev-parse", "HEAD")
    with workplace(str(project.parent / "git"), commit) as one, workplace(str(project.parent / "git"), commit) as two:
        assert one != two
        (one / "params.yaml").write_text("spoilt: true\n")
    with workplace(str(project.parent / "git"), commit) as again:
        assert again == one and (again / "params.yaml").read_text() == "low: 0\nhigh: 0\n"


def test_a_sweep_ordered_on_the_server_runs_on_a_worker_and_leaves_its_table_there(project, url):
    with ExitStack() as stack:
        stack.enter_context(worker(project, "alone"))
        stack.enter_context(worker(project, "orders", queue="default"))
        parameters = {"grid": {"high": [5, 6]}, "targets": ["other"], "root": str(project)}
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("sweep/sweep")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
            wait(lambda: (state := client.read_flow_run(run).state) and state.is_final())
            state = client.read_flow_run(run).state
            (table,) = client.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["graftline-sweep"]))
            )
    assert (
        state
        and state.is_completed()
        and state.message
        and state.message.startswith("2 of 2 points done; the page is ")
    )
    assert "| high=5 | done |" in str(table.data)
