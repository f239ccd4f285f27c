import os
import pickle
import sys

import pytest

from flows.outcome import StageFailed, StageStopped, may_pass
from flows.processes import LAST_LINES, StageProcesses, environment, supervised


def test_the_last_lines_are_those_that_were_printed(repository):
    root = repository({"bad": {"cmd": "seq 1 50; exit 3", "deps": ["in.txt"]}})
    heard: list[str] = []
    with pytest.raises(StageFailed) as caught:
        StageProcesses(root).run("bad", heard.append)
    assert caught.value.stage == "bad"
    assert len(caught.value.lines) == LAST_LINES
    assert caught.value.lines == tuple(heard[-LAST_LINES:])
    assert "50" in caught.value.lines and "exited with 3" in caught.value.lines[-1]
    assert str(caught.value).startswith("Stage 'bad' failed")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_what_a_stage_prints_arrives_line_by_line_and_without_dvcs_advice(repository):
    bar = r"printf '1%%\r50%%\r100%%\n'"
    lie = """echo "Stage 'talk' is cached - skipping run" """
    python = "python -c 'import sys; print(sys.prefix)'"
    root = repository({"talk": {"cmd": [bar, lie, python], "deps": ["in.txt"]}})
    heard: list[str] = []
    assert StageProcesses(root).run("talk", heard.append).outcome == "ran"
    said = [line for line in heard if not line.startswith("> ")]
    assert said == ["Running stage 'talk':", "100%", "Stage 'talk' is cached - skipping run", sys.prefix]


def test_after_stop_nothing_starts(tmp_path):
    processes = StageProcesses(tmp_path)
    processes.stop()
    with pytest.raises(StageStopped, match="not started"):
        processes.run("any")


def test_the_cores_are_shared_out_unless_the_user_has_decided(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert environment(2)["OMP_NUM_THREADS"] == "4"
    assert environment(16)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment(2)["OMP_NUM_THREADS"] == "3"


def test_no_workers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1 worker, got 0"):
        StageProcesses(tmp_path, workers=0)


def test_a_stage_that_takes_too_long_is_ended_with_all_it_started_and_not_tried_again(tmp_path, gone, monkeypatch):
    command = f"sleep 600 & echo $! > '{tmp_path}/pid'; echo connection refused; wait"
    monkeypatch.setattr(StageProcesses, "_start", lambda *_: supervised(["sh", "-c", command]))
    with pytest.raises(StageFailed) as caught:
        StageProcesses(tmp_path, hours=1 / 3600).run("slow")
    assert "exceeded its time limit of 0.000277778 h" in str(caught.value)
    assert gone(int((tmp_path / "pid").read_text()))
    assert not may_pass(caught.value)


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running", True),
        ("'data/models/target' is busy, it is being blocked by:", True),
        ("graftline: hf:a/b is not in the local hub cache and could not be downloaded (429 Too Many Requests)", True),
        ("ERROR: unexpected error - Could not connect to the endpoint URL", True),
        ("graftline: inject.blade: unknown key 'aplha', did you mean 'alpha'?", False),
        ("ERROR: failed to pull data from the cloud - config file error: no remote specified", False),
        ("MemoryError", False),
    ],
)
def test_only_what_can_pass_by_itself_is_worth_another_try(line, passes):
    assert may_pass(StageFailed("stage", 255, ("before", line, "after"))) is passes


def test_no_time_is_refused(tmp_path):
    with pytest.raises(ValueError, match="above 0 hours, got 0"):
        StageProcesses(tmp_path, hours=0)
