"""Stages as DVC processes: one at a time each, all of a run's under one switch."""

import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["ran", "cached", "unchanged"]
SUPERVISOR = Path(__file__).with_name("supervise.py")
LAST_LINES = 20


@dataclass(frozen=True)
class StageResult:
    """How one stage ended well."""

    stage: str
    outcome: Outcome
    """ran: its command ran; cached: DVC had the outputs of these very inputs; unchanged: nothing was to do."""
    seconds: float


class StageFailed(RuntimeError):
    """A stage's command or DVC itself failed; the message ends with the last lines that they printed."""

    def __init__(self, stage: str, status: int, lines: tuple[str, ...]):
        self.stage, self.status, self.lines = stage, status, lines
        super().__init__(stage, status, lines)

    def __str__(self) -> str:
        shown = "".join(f"\n    {line}" for line in self.lines) or " (none)"
        return f"Stage {self.stage!r} failed (DVC's exit status {self.status}); its last lines:{shown}"


class StageStopped(RuntimeError):
    """The run is stopping, so this stage was interrupted or never started."""


class StageProcesses:
    """Runs stages, from as many threads as you like, until it is stopped.

    Each stage is `dvc repro --single-item` under flows/supervise.py, so none outlives this process, however it dies.
    """

    def __init__(self, root: Path, workers: int = 1):
        self.root = root
        self.environment = environment(workers)
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, stage: str, on_line: Callable[[str], None] = lambda line: None) -> StageResult:
        """Bring one stage up to date, its upstreams being so; `on_line` gets each line as it is printed.

        Raises StageFailed, or StageStopped after `stop`.
        """
        began = time.monotonic()
        process = self._start(stage)
        last: deque[str] = deque(maxlen=LAST_LINES)
        outcome: Outcome | None = None
        try:
            assert process.stdout is not None
            for raw in process.stdout:
                # of a progress bar that redraws itself only the last state counts
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                if line:
                    outcome = outcome or verdict(line, stage)
                    last.append(line)
                    on_line(line)
            status = process.wait()
        finally:
            process.stdout.close()
            process.terminate()  # after an error in `on_line`; nothing happens to one that has ended
            process.wait()
            with self._lock:
                self._live.discard(process)
        if status and self._stopped:
            raise StageStopped(f"Stage {stage!r} was interrupted because the run is stopping; run again to complete it.")
        if status:
            raise StageFailed(stage, status, tuple(last))
        return StageResult(stage, outcome or "ran", time.monotonic() - began)

    def stop(self) -> None:
        """Interrupt every running stage and refuse new ones; returns at once, each `run` returns when its stage is gone."""
        with self._lock:
            self._stopped = True
            for process in self._live:
                process.terminate()

    def _start(self, stage: str) -> subprocess.Popen[bytes]:
        dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
        with self._lock:
            if self._stopped:
                raise StageStopped(f"Stage {stage!r} was not started because the run is stopping; run again to complete it.")
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SUPERVISOR), str(os.getpid()), *dvc],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on in order
            )
            self._live.add(process)
        return process


def verdict(line: str, stage: str) -> Outcome | None:
    """What a line of DVC says has become of the stage, None if it says nothing about that."""
    name = re.escape(stage)
    if re.match(rf"Running stage '{name}'", line):
        return "ran"
    if re.match(rf"Stage '{name}' is cached - skipping run", line):
        return "cached"
    if re.match(rf"(Stage )?'{name}' didn't change, skipping", line):
        return "unchanged"
    return None


def environment(workers: int) -> dict[str, str]:
    """Ours, for a stage that shares the cores with `workers - 1` others and finds this interpreter as `python`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    binaries = str(Path(sys.executable).parent)
    return {
        "OMP_NUM_THREADS": str(max(1, cores // workers)),
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join(filter(None, [binaries, os.environ.get("PATH")])),
    }
