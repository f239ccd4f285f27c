import json
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

import flows.pipeline
from flows import gpus, server
from flows.dag import DagError
from flows.git import git
from flows.outcome import StageFailed
from flows.pipeline import pipeline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a temporary server whose records are the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        for unneeded in ("PREFECT_SERVER_UI_ENABLED", "PREFECT_API_BLOCKS_REGISTER_ON_START"):
            patch.setenv(unneeded, "false")
        url = server.start()
    with temporary_settings({PREFECT_API_URL: url}):
        yield url


def test_tasks_mirror_the_stages_and_artifacts_hold_the_outcome(diamond, api, capsys):
    (diamond / "right.in").write_text("edited")
    report = diamond / "data" / "report"
    report.mkdir(parents=True)
    capability = {"value": 0.974, "low": 0.956, "high": 0.985, "n": 500}
    (report / "summary.json").write_text(json.dumps({"variants": {"blade": {"capability": capability}}}))
    (report / "index.html").write_text("")

    state = pipeline(root=str(diamond), return_state=True)

    assert state.is_completed() and state.message == "Stages: 2 unchanged, 2 ran"
    outcomes = {"first": "unchanged", "left": "unchanged", "right": "ran", "last": "ran"}
    ended: Any = state.result()
    assert {stage: result.outcome for stage, result in ended.items()} == outcomes
    shown = capsys.readouterr().out
    assert "0.974 [0.956, 0.985]" in shown and shown.rstrip().endswith("report: data/report/index.html")

    run_id = state.state_details.flow_run_id
    assert run_id
    server.settle(run_id)
    with get_client(sync_client=True) as client:
        tasks: list[Any] = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
        of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        artifacts: list[Any] = client.read_artifacts(artifact_filter=of_the_run)
    names = {stage: "Ran" if outcome == "ran" else "Cached" for stage, outcome in outcomes.items()}
    assert {task.name: task.state_name for task in tasks} == names
    assert {task.state_type.value for task in tasks} == {"COMPLETED"}
    name = {task.id: task.name for task in tasks}
    edges = {task.name: sorted(name[up.id] for up in task.task_inputs.get("wait_for", [])) for task in tasks}
    assert edges == {"first": [], "left": ["first"], "right": ["first"], "last": ["left", "right"]}
    kept = {artifact.key.removeprefix("graftline-"): artifact for artifact in artifacts}
    assert kept.keys() == {"run", "progress", "stages", "results", "report"}
    rows = {row["stage"]: row["outcome"] for row in json.loads(kept["stages"].data)}
    assert rows == outcomes and list(rows)[:2] == ["right", "last"]  # what ran comes first
    assert kept["progress"].data == 100
    assert "0.974 [0.956, 0.985]" in kept["results"].data
    assert (report / "index.html").as_uri() in kept["report"].data


def test_a_run_names_its_commit_the_params_that_differ_and_its_experiment(committed, api):
    before = (committed / "params.yaml").read_text()
    (committed / "right.in").write_text("edited")
    state = pipeline(["high"], ["high=5"], root=str(committed), return_state=True)
    assert state.is_completed() and (committed / "params.yaml").read_text() == before
    commit = git(committed, "rev-parse", "--short", "HEAD")
    run_id = state.state_details.flow_run_id
    assert run_id
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).name == f"high; high=5 at {commit}"
        of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        told: dict[Any, Any] = {each.key: each.data for each in client.read_artifacts(artifact_filter=of_the_run)}
    said = told["graftline-run"]
    assert f"`{commit}` with uncommitted edits of `params.yaml`, `right.in`" in said
    assert "| `high` | 2 | 5 |" in said and "`low`" not in said
    assert "| DVC experiment | `high-5` |" in said
    assert git(committed, "for-each-ref", "--format=%(refname)", "refs/exps").endswith("/high-5")


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Retries without the wait."""
    options = {"retry_delay_seconds": [0.01], "retry_jitter_factor": None}
    monkeypatch.setattr(flows.pipeline, "run_stage", flows.pipeline.run_stage.with_options(**options))


FLAKY = "echo try >> tries.log; test $(wc -l < tries.log) -gt 2 || { echo '%s'; exit 1; }; cp in.txt out.txt"


@pytest.mark.parametrize(
    "reason", ["ERROR: Unable to acquire lock.", "ConnectionError: connection reset by peer", "503 Service Unavailable"]
)
def test_what_passes_by_itself_is_tried_again(repository, impatient, api, reason):
    root = repository({"flaky": {"cmd": FLAKY % reason, "deps": ["in.txt"], "outs": ["out.txt"]}})
    state = pipeline(root=str(root), return_state=True)
    assert state.is_completed() and (root / "tries.log").read_text().count("try") == 3


def test_what_fails_for_good_is_tried_once(repository, impatient, api):
    root = repository({"flaky": {"cmd": FLAKY % "graftline: Expected a donor, got none.", "deps": ["in.txt"]}})
    assert pipeline(root=str(root), return_state=True).is_failed()
    assert (root / "tries.log").read_text() == "try\n"


def test_a_limit_for_the_gpu_keeps_its_stages_apart(repository, monkeypatch, api):
    loading = "stages/anatomy/loading.py"
    names = ("one", "two", "three")
    stages = {
        name: {"cmd": f"python step.py {name} -; sleep 0.3; touch {name}.end", "deps": [loading]} for name in names
    }
    root = repository(stages)
    (root / loading).parent.mkdir(parents=True)
    (root / loading).touch()
    monkeypatch.setattr(gpus, "present", lambda: True)
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit(gpus.tag(), 1)
    try:
        assert pipeline(root=str(root), workers=3, return_state=True).is_completed()
    finally:
        with get_client(sync_client=True) as client:
            client.delete_concurrency_limit_by_tag(gpus.tag())
    lines = (line.split() for line in (root / "stamps.log").read_text().splitlines())
    began = sorted(float(seconds) for _, moment, seconds in lines if moment == "start")
    ends = sorted((root / f"{name}.end").stat().st_mtime for name in names)
    assert all(end <= start for end, start in zip(ends, began[1:], strict=False))


def test_a_failure_is_told_to_whom_the_team_has_named(repository, api, monkeypatch, tmp_path):
    root = repository({"bad": {"cmd": "echo the reason; exit 1", "deps": ["in.txt"]}})
    monkeypatch.setenv("GRAFTLINE_ON_FAILURE", f"tee '{tmp_path}/told.json'")
    state = pipeline(root=str(root), return_state=True)
    told = json.loads((tmp_path / "told.json").read_text())
    run_id = state.state_details.flow_run_id
    assert run_id and told["id"] == str(run_id) and told["message"] == "Stage 'bad' failed"
    with get_client(sync_client=True) as client:
        of_the_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        kept: dict[Any, Any] = {each.key: each.data for each in client.read_artifacts(artifact_filter=of_the_run)}
    assert "the reason" in kept["graftline-failure"]
    assert json.loads(kept["graftline-stages"])[0]["outcome"] == "failed"


class Passage(socketserver.ThreadingTCPServer):
    """A door to the server at a port of its own, which can be shut while the server stays: to callers, a dead one."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, port: int) -> None:
        self.beyond, self.open = port, True
        super().__init__(("127.0.0.1", 0), Through)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def shut(self) -> None:
        self.open = False
        self.shutdown()
        self.server_close()


class Through(socketserver.BaseRequestHandler):
    """One connection, passed on byte by byte while the door is open."""

    def handle(self) -> None:
        assert isinstance(self.server, Passage)
        with socket.create_connection(("127.0.0.1", self.server.beyond)) as beyond:
            ends = {self.request: beyond, beyond: self.request}
            while self.server.open:
                for end in select.select(list(ends), [], [], 0.1)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)


def test_a_server_that_dies_in_the_middle_does_not_stop_the_work(repository, step, api):
    wait = "touch began; while [ ! -e go ]; do sleep 0.05; done; cp in.txt waits.txt"
    waits = {"cmd": wait, "deps": ["in.txt"], "outs": ["waits.txt"]}
    root = repository({"waits": waits, "after": step("after", "waits.txt"), "last": step("last", "after.txt")})
    door = Passage(urllib.parse.urlsplit(api).port or 0)
    url = f"http://127.0.0.1:{door.server_address[1]}/api"
    known = {**os.environ, "PREFECT_API_URL": url, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    command = [sys.executable, "-m", "flows.pipeline", "--root", str(root)]
    flow = subprocess.Popen(command, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (root / "began").exists() and time.monotonic() < until:
        time.sleep(0.05)
    door.shut()
    (root / "go").touch()
    _, said = flow.communicate(timeout=200)
    assert flow.returncode == 0, said
    assert (root / "last.txt").read_text() == "lastafterin"
    assert "the work goes on without a record" in said
    assert (root / "stamps.log").read_text().count("after start") == 1  # nothing ran twice


def test_without_any_server_the_work_is_done_all_the_same(diamond, monkeypatch, capsys):
    def start() -> str:
        raise server.ServerError("Expected a temporary Prefect server, got none.")

    monkeypatch.setattr(server, "start", start)
    monkeypatch.setattr(flows.pipeline, "leave", lambda status: status)
    (diamond / "last.txt").unlink()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert flows.pipeline.main(["--root", str(diamond)]) == 0
    assert (diamond / "last.txt").exists()
    assert "without a record" in capsys.readouterr().err


def test_a_failed_stage_fails_the_flow_by_name(repository, step, api, caplog):
    bad = {"cmd": "echo the reason; exit 1", "deps": ["in.txt"], "outs": ["bad.txt"]}
    root = repository({"bad": bad, "after": step("after", "bad.txt")})
    with pytest.raises(StageFailed, match="the reason"):
        pipeline(root=str(root))
    assert "Stage 'bad' failed" in caplog.text and "Traceback" not in caplog.text and "NoneType" not in caplog.text


def test_an_unknown_target_fails_the_flow_with_one_sentence(diamond, api):
    state = pipeline(["lefd"], root=str(diamond), return_state=True)
    assert state.is_failed() and state.message == "No stage is called 'lefd'; did you mean 'left'?"
    with pytest.raises(DagError):
        state.result()


def test_a_cancelled_flow_leaves_no_stage_process(repository, gone, api):
    root = repository({"slow": {"cmd": "echo $$ > slow.pid; sleep 60", "deps": ["in.txt"]}})
    command = [sys.executable, "-m", "flows.pipeline", "--root", str(root)]
    flow = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PREFECT_API_URL": api}, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not (root / "slow.pid").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.1)
    flow.send_signal(signal.SIGTERM)
    flow.wait(timeout=15)
    assert gone(int((root / "slow.pid").read_text()))


def test_a_server_that_does_not_answer_is_replaced_in_one_sentence(monkeypatch, capsys):
    started = "http://127.0.0.1:1/other/api"
    monkeypatch.setattr(server, "start", lambda: started)
    dead = "http://127.0.0.1:9/api"
    with temporary_settings({PREFECT_API_URL: dead}), server.server() as temporary:
        assert temporary and PREFECT_API_URL.value() == started
    assert capsys.readouterr().err == f"No Prefect server answers at {dead}, so a temporary one records this run.\n"


def test_a_server_that_answers_is_used(api, capsys):
    with server.server() as temporary:
        assert not temporary and PREFECT_API_URL.value() == api
    assert capsys.readouterr().err == ""
