"""The pipeline run without Prefect: `python -m flows.runner [--workers N] [targets...]`.

Independent stages run side by side. After a failure nothing new starts, what runs is interrupted, and what is
finished stays: run again to go on from there.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from flows.dag import Dag, DagError, read_dag
from flows.outcome import Outcome, StageFailed, StageResult, StageStopped
from flows.processes import StageProcesses
from flows.results import results
from flows.rwlock import heal


@dataclass(frozen=True)
class Event:
    """Something that happened to one stage."""

    stage: str
    kind: Literal["started", "line", "failed", "stopped"] | Outcome
    text: str = ""
    """The line, for a line."""
    seconds: float = 0.0
    """How long the stage took, for an outcome."""


def run(dag: Dag, workers: int = 2, on_event: Callable[[Event], None] = lambda event: None) -> dict[str, StageResult]:
    """Bring every stage of the graph up to date, `workers` at a time; how each ended, by stage.

    `on_event` is called from the threads that run the stages. Raises StageFailed for the first stage that failed. On
    that, and on any interrupt, every stage process is gone when this returns.
    """
    heal(dag.root)

    def watched(stage: str) -> StageResult:
        if stage in dag.changed:
            on_event(Event(stage, "started"))
        try:
            result = perform(dag, processes, stage, lambda line: on_event(Event(stage, "line", line)))
        except (StageFailed, StageStopped) as error:
            on_event(Event(stage, "failed" if isinstance(error, StageFailed) else "stopped"))
            raise
        on_event(Event(stage, result.outcome, seconds=result.seconds))
        return result

    with ThreadPoolExecutor(workers) as threads, StageProcesses(dag.root, workers, warm=bool(dag.changed)) as processes:
        return walk(dag, workers, lambda stage: threads.submit(watched, stage))


def perform(dag: Dag, processes: StageProcesses, stage: str, on_line: Callable[[str], None]) -> StageResult:
    """One stage, without a process if nothing upstream of it changed."""
    return processes.run(stage, on_line) if stage in dag.changed else StageResult(stage, "unchanged", 0.0)


def walk(dag: Dag, workers: int, submit: Callable[[str], Any]) -> dict[str, StageResult]:
    """Results by stage: `submit` each stage once its upstreams are done, at most `workers` at a time.

    `submit` returns a future, Python's or Prefect's. The first that raises ends the walk with its exception.
    """
    waiting = {stage: set(upstreams) for stage, upstreams in dag.upstreams.items()}
    running: dict[str, Any] = {}
    finished: SimpleQueue[str] = SimpleQueue()
    ended: dict[str, StageResult] = {}
    while waiting or running:
        ready = [stage for stage, upstreams in waiting.items() if not upstreams]
        for stage in ready[: workers - len(running)]:
            del waiting[stage]
            running[stage] = submit(stage)
            running[stage].add_done_callback(lambda _, stage=stage: finished.put(stage))
        stage = finished.get()
        ended[stage] = running.pop(stage).result()
        for upstreams in waiting.values():
            upstreams.discard(stage)
    return ended


def show(event: Event) -> None:
    """One line for the terminal, none for a stage that needed no process."""
    if event.kind == "unchanged" and not event.seconds:
        return
    text = {"line": f"  {event.text}", "started": " started"}.get(event.kind, f" {event.kind}")
    seconds = f" in {event.seconds:.1f} s" if event.seconds else ""
    # in one piece, so that threads do not mix theirs
    sys.stdout.write(f"{event.stage}:{text}{seconds}\n")
    sys.stdout.flush()


def arguments(program: str, argv: list[str] | None) -> argparse.Namespace:
    """The command line shared by the plain runner and the Prefect flow."""
    parser = argparse.ArgumentParser(prog=program, description="Bring the pipeline, or some stages of it, up to date.")
    parser.add_argument(
        "targets", nargs="*", help="stages or foreach groups; they bring their upstreams along (default: all)"
    )
    parser.add_argument("--workers", type=positive, default=2, help="how many stages may run at a time (default: 2)")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 after a failure, 128 + N after signal N."""
    options = arguments("python -m flows.runner", argv)
    # SIGTERM must unwind like Ctrl-C, or nothing would be stopped in order
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        dag = read_dag(options.root, options.targets)
        print(f"{len(dag.stages)} stages, {len(dag.changed)} to bring up to date", flush=True)
        run(dag, options.workers, show)
    except (StageFailed, DagError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; run again to go on from here.", file=sys.stderr)
        return 128 + signal.SIGINT
    if text := results(dag.root):
        print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
