import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import server
from flows.dag import DagError
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

    assert state.is_completed()
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
    kept = {artifact.key: artifact for artifact in artifacts}
    assert [row["outcome"] for row in json.loads(kept["stages"].data)] == list(outcomes.values())
    assert "data/report/index.html" in kept["report"].data


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
