import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from flows.dag import Dag, read_dag
from flows.outcome import StageFailed, StageResult
from flows.runner import Event, main, run, walk

ROOT = Path(__file__).parents[2]


def stamps(root: Path) -> dict[tuple[str, str], float]:
    """Time by stage and moment (start, end) of the latest run of each."""
    lines = (line.split() for line in (root / "stamps.log").read_text().splitlines())
    return {(name, moment): float(seconds) for name, moment, seconds in lines}


def wait_for(path: Path, seconds: float = 20) -> str:
    """The file's text once there is some."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and (text := path.read_text().strip()):
            return text
        time.sleep(0.05)
    raise TimeoutError(path)


def test_a_stage_starts_after_its_upstreams_have_ended(built):
    at = stamps(built)
    assert at["first", "end"] < min(at["left", "start"], at["right", "start"])
    assert max(at["left", "end"], at["right", "end"]) < at["last", "start"]


def test_independent_stages_overlap(built):
    at = stamps(built)
    assert max(at["left", "start"], at["right", "start"]) < min(at["left", "end"], at["right", "end"])


def test_the_workers_are_all_busy_and_never_more():
    dag = Dag(Path(), {name: () for name in "abcdef"}, frozenset("abcdef"))
    in_flight: dict[str, Future] = {}
    numbers = []

    def submit(stage: str) -> Future:
        future = in_flight[stage] = Future()
        numbers.append(len(in_flight))
        if len(in_flight) == 3:  # all workers are busy, so let the three end
            for name in list(in_flight):
                in_flight.pop(name).set_result(StageResult(name, "ran", 0.0))
        return future

    assert set(walk(dag, 3, submit)) == set("abcdef")
    assert numbers == [1, 2, 3, 1, 2, 3]


def test_an_untouched_pipeline_needs_no_process(diamond, monkeypatch):
    monkeypatch.setattr("flows.processes.supervised", None)
    assert {result.outcome for result in run(read_dag(diamond)).values()} == {"unchanged"}


def test_an_edit_reruns_only_what_is_downstream_and_its_return_is_cached(diamond):
    (diamond / "right.in").write_text("edited")
    events: list[Event] = []
    ended = run(read_dag(diamond), on_event=events.append)
    outcomes = {"first": "unchanged", "left": "unchanged", "right": "ran", "last": "ran"}
    assert {stage: result.outcome for stage, result in ended.items()} == outcomes
    assert [event.stage for event in events if event.kind == "started"] == ["right", "last"]
    assert {event.stage: event.kind for event in events} == outcomes
    assert any(event.kind == "line" and event.text.startswith("Running stage 'right'") for event in events)

    (diamond / "right.in").write_text("right")
    ended = run(read_dag(diamond))
    assert {result.outcome for result in ended.values()} == {"cached", "unchanged"}
    assert ended["right"].outcome == ended["last"].outcome == "cached"


def test_equal_output_stops_the_cascade(diamond):
    dag = read_dag(diamond)
    ended = run(Dag(dag.root, dag.upstreams, frozenset({"last"})))
    assert ended["last"].outcome == "unchanged" and ended["last"].seconds > 0


def test_a_failure_names_the_stage_keeps_what_is_done_and_a_rerun_completes(repository, step, gone):
    fail = "while [ ! -s slow.pid ]; do sleep 0.05; done; echo about to fail; cp wanted.txt bad.txt"
    sleep = "echo $$ > slow.pid; sleep $(cat pause); cp good.txt slow.txt"
    root = repository(
        {
            "good": step("good", "in.txt"),
            "bad": {"cmd": fail, "deps": ["good.txt"], "outs": ["bad.txt"]},
            "slow": {"cmd": sleep, "deps": ["good.txt"], "outs": ["slow.txt"]},
            "after": step("after", "bad.txt", "slow.txt"),
        }
    )
    (root / "pause").write_text("60")
    events: list[Event] = []
    with pytest.raises(StageFailed, match="Stage 'bad' failed") as caught:
        run(read_dag(root), workers=2, on_event=events.append)
    assert "about to fail" in caught.value.lines
    assert {event.stage: event.kind for event in events} == {"good": "ran", "bad": "failed", "slow": "stopped"}
    assert gone(int((root / "slow.pid").read_text()), seconds=0.5)
    assert (root / "good.txt").read_text() == "goodin"

    (root / "pause").write_text("0")
    (root / "wanted.txt").write_text("wanted")
    ended = run(read_dag(root))
    outcomes = {"good": "unchanged", "bad": "ran", "slow": "ran", "after": "ran"}
    assert {stage: result.outcome for stage, result in ended.items()} == outcomes


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=["SIGKILL", "SIGINT", "SIGTERM"]
)
def test_no_stage_process_outlives_the_runner(repository, gone, number):
    python = """python -c 'import os, time; open("python.pid", "w").write(str(os.getpid())); time.sleep(60)'"""
    root = repository({"slow": {"cmd": f"echo $$ > shell.pid; {python}; true", "deps": ["in.txt"]}})
    command = [sys.executable, "-m", "flows.runner", "--root", str(root)]
    runner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    python, shell = int(wait_for(root / "python.pid")), int(wait_for(root / "shell.pid"))
    runner.send_signal(number)
    output, _ = runner.communicate(timeout=15)
    assert gone(python) and gone(shell)
    assert runner.returncode == (-number if number == signal.SIGKILL else 128 + number), output.decode()


def test_the_command_shows_progress_and_ends_with_the_results(diamond, capsys):
    (diamond / "last.txt").unlink()
    report = diamond / "data" / "report"
    report.mkdir(parents=True)
    (report / "index.html").write_text("")
    assert main(["--root", str(diamond)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 stages at no commit, 1 to bring up to date"
    assert lines[1] == "last: started"
    assert any(line.startswith("last: cached in ") for line in lines)
    assert lines[-1] == "report: data/report/index.html"


def test_the_command_fails_with_the_stage_and_its_last_lines(repository, capsys):
    root = repository({"bad": {"cmd": "echo the reason; exit 1", "deps": ["in.txt"]}})
    assert main(["--root", str(root)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Stage 'bad' failed") and "    the reason\n" in error


def test_the_command_outside_a_repository_says_one_sentence(tmp_path, capsys):
    assert main(["--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
