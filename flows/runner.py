"""The pipeline run without Prefect: `python -m flows.runner [--workers N] [targets...]`.

Independent stages run side by side. After a failure nothing new starts, what runs is interrupted, and what is
finished stays: run again to go on from there.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal

from flows.dag import Dag, DagError
from flows.origin import Origin
from flows.outcome import Outcome, StageFailed, StageResult, StageStopped
from flows.processes import HOURS, StageProcesses
from flows.request import Request, reproduce, requested
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


def run(
    dag: Dag,
    workers: int = 2,
    on_event: Callable[[Event], None] = lambda event: None,
    hours: float = HOURS,
    options: Sequence[str] = (),
) -> dict[str, StageResult]:
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

    with (
        ThreadPoolExecutor(workers) as threads,
        StageProcesses(dag.root, workers, bool(dag.changed), hours, options) as processes,
    ):
        return walk(dag, workers, lambda stage: threads.submit(watched, stage))


def perform(dag: Dag, processes: StageProcesses, stage: str, on_line: Callable[[str], None]) -> StageResult:
    """One stage, without a process if nothing upstream of it changed."""
    return processes.run(stage, on_line) if stage in dag.changed else StageResult(stage, "unchanged", 0.0)


def walk(
    dag: Dag, workers: int, submit: Callable[[str], Any], on_result: Callable[[StageResult], None] = lambda result: None
) -> dict[str, StageResult]:
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
        on_result(ended[stage])
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


def carry_out(request: Request) -> int:
    """The request without Prefect, shown line by line; the exit status."""
    try:
        finished = reproduce(request, partial(shown, request), lambda name, work: work(partial(say, name)))
    except (StageFailed, DagError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; run again to go on from here.", file=sys.stderr)
        return 128 + signal.SIGINT
    if request.experiment:
        print(f"Kept as the experiment {request.experiment}: `dvc exp show` lists it, `dvc exp apply` brings it here.")
    if finished.results:
        print(f"\n{finished.results}")
    return 0


def shown(request: Request, dag: Dag, origin: Origin) -> dict[str, StageResult]:
    """The graph brought up to date, with a line about it first."""
    print(f"{len(dag.stages)} stages at {origin}, {len(dag.changed)} to bring up to date", flush=True)
    return run(dag, request.workers, show, request.hours, request.options)


def say(name: str, line: str) -> None:
    """A line of a transfer."""
    show(Event(name, "line", line))


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 after a failure, 128 + N after signal N."""
    request = requested("python -m flows.runner", argv)
    # SIGTERM must unwind like Ctrl-C, or nothing would be stopped in order
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    return carry_out(request)


if __name__ == "__main__":
    sys.exit(main())
