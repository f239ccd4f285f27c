"""Stages as DVC processes, all of a run's under one switch."""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal, Self

from flows.outcome import ADVICE, LATE, Outcome, RemoteFailed, StageFailed, StageResult, StageStopped, verdict

SUPERVISOR = Path(__file__).with_name("supervise.py")
WARM = Path(__file__).with_name("warm.py")
LAST_LINES = 20
HOURS = 24.0
"""What one stage may take unless the caller says otherwise."""
Direction = Literal["pull", "push"]


def moving(direction: Direction, targets: Sequence[str] = ()) -> list[str]:
    """DVC's arguments that bring the targets (default: all) and their upstreams from or to the remote, its memory of
    runs included; what the remote lacks is left to the stages."""
    missing = ["--allow-missing"] if direction == "pull" else []
    return [direction, "--run-cache", "--jobs", "4", *missing, *(["--with-deps", *targets] if targets else [])]


class StageProcesses:
    """Runs stages, from as many threads as you like, until it is stopped.

    Each stage is `dvc repro --single-item` under flows/supervise.py, so none outlives this process, however it dies.
    With `warm`, and inside its context, they fork from one process that has the heavy libraries imported
    (flows/warm.py). An exception that leaves the context, be it a failed stage, Ctrl-C or a signal turned into one,
    stops all stages. A stage that takes longer than `hours` is ended, with all that it started, and has failed.
    `options` are further ones of `dvc repro`, such as --force.
    """

    def __init__(
        self, root: Path, workers: int = 1, warm: bool = False, hours: float = HOURS, options: Sequence[str] = ()
    ) -> None:
        if workers < 1:
            raise ValueError(f"Expected at least 1 worker, got {workers}; leave it out for 2.")
        if not hours > 0:
            raise ValueError(f"Expected a time limit above 0 hours, got {hours}; leave it out for {HOURS:g}.")
        self.root = root
        self._hours, self._options = hours, options
        self.environment = environment(workers)
        self._warm = warm and sys.platform == "linux"  # elsewhere the libraries do not survive a fork
        self._open = ExitStack()
        self._lock = threading.Lock()
        self._live: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __enter__(self) -> Self:
        if self._warm:
            first = str(self._open.enter_context(warmed(self.environment)))
            self.environment["PATH"] = os.pathsep.join([first, self.environment["PATH"]])
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
        self._open.close()

    def run(self, stage: str, on_line: Callable[[str], None] = lambda line: None) -> StageResult:
        """Bring one stage up to date, its upstreams being so; `on_line` gets each line as it is printed.

        Raises StageFailed, or StageStopped after `stop`.
        """
        outcome: Outcome | None = None

        def heard(line: str) -> None:
            nonlocal outcome
            outcome = outcome or verdict(line, stage)
            on_line(line)

        seconds = self._follow(stage, ["repro", "--single-item", *self._options, stage], heard)
        return StageResult(stage, outcome or "ran", seconds)

    def pull(self, on_line: Callable[[str], None], targets: Sequence[str] = ()) -> StageResult:
        """Bring what the remote has of the targets (default: all) and their upstreams, DVC's memory of runs included.

        What the remote lacks is left to the stages. Raises RemoteFailed, or StageStopped after `stop`.
        """
        return StageResult("pull", "ran", self._follow("pull", moving("pull", targets), on_line, RemoteFailed))

    def push(self, on_line: Callable[[str], None], targets: Sequence[str] = ()) -> StageResult:
        """Bring the same to the remote; `pull` says more."""
        return StageResult("push", "ran", self._follow("push", moving("push", targets), on_line, RemoteFailed))

    def _follow(
        self, name: str, arguments: list[str], on_line: Callable[[str], None], failure: type[StageFailed] = StageFailed
    ) -> float:
        """Run a DVC command to its end; the seconds that it took."""
        began = time.monotonic()
        process = self._start(name, arguments)
        late = threading.Event()

        def end() -> None:
            late.set()
            process.terminate()

        clock = threading.Timer(min(self._hours * 3600, threading.TIMEOUT_MAX), end)
        clock.daemon = True
        clock.start()
        output = process.stdout
        assert output is not None  # it is a pipe
        last: deque[str] = deque(maxlen=LAST_LINES)
        try:
            for raw in output:
                # of a progress bar that redraws itself only the last state counts
                line = raw.decode(errors="replace").rstrip().rpartition("\r")[2]
                if line and not ADVICE.match(line):
                    last.append(line)
                    on_line(line)
            status = process.wait()
        finally:
            clock.cancel()
            output.close()
            process.terminate()  # after an error in `on_line`; nothing happens to one that has ended
            process.wait()
            with self._lock:
                self._live.discard(process)
        if status and self._stopped:
            raise StageStopped(f"Stage {name!r} was interrupted because the run is stopping; run again to complete it.")
        if status and late.is_set():
            last.append(f"{LATE} of {self._hours:g} h and was ended; allow more by `hours`")
        if status:
            raise failure(name, status, tuple(last))
        return time.monotonic() - began

    def stop(self) -> None:
        """Interrupt every running stage and refuse new ones, without waiting: each `run` ends once its stage has."""
        with self._lock:
            self._stopped = True
            for process in self._live:
                process.terminate()

    def _start(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        dvc = [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]
        with self._lock:
            if self._stopped:
                raise StageStopped(
                    f"Stage {name!r} was not started because the run is stopping; run again to complete it."
                )
            process = supervised(dvc, cwd=self.root, env=self.environment)
            self._live.add(process)
        return process


def supervised(
    command: list[str],
    stdout: int | IO[bytes] = subprocess.PIPE,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """The command under flows/supervise.py: terminating it ends all that the command started, and so does our own end.

    On Linux "our end" includes that of the calling thread, so call it from one that waits for the command.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(SUPERVISOR), str(os.getpid()), *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on in order
    )


@contextmanager
def warmed(environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder whose `python` starts stages by flows/warm.py, at full speed once a `socket` appears in it."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path has at most 107 characters
        answering, python = Path(short) / "socket", Path(short) / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{WARM}" ask "{answering}" "$@"\n')
        python.chmod(0o700)
        command = [sys.executable, "-P", str(WARM), "serve", str(answering)]
        with supervised(command, stdout=subprocess.DEVNULL, env=environment) as server:
            try:
                yield Path(short)
            finally:
                server.terminate()


def environment(workers: int) -> dict[str, str]:
    """Ours, for a stage that shares the cores with `workers - 1` others and finds this interpreter as `python`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    binaries = str(Path(sys.executable).parent)
    return {
        "OMP_NUM_THREADS": str(max(1, cores // workers)),
        # glibc would give large tensors back to the kernel and fetch them anew, zeroed page by page, at every pass
        "MALLOC_MMAP_THRESHOLD_": str(2**31),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
        **inherited(),
        "DVC_NO_ANALYTICS": "1",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",  # bars that redraw themselves are no lines
        "PATH": os.pathsep.join(filter(None, [binaries, os.environ.get("PATH")])),
    }


def inherited() -> dict[str, str]:
    """Our environment, but free to keep compiled modules: without them each process compiles its libraries anew.

    That is 1 s more for DVC, 5 s for a Prefect server, 10 s for transformers.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
