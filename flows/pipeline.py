"""The pipeline as a Prefect flow, one task a DVC stage: `python -m flows.pipeline [--workers N] [targets...]`.

It does what `dvc repro` does, side by side where the graph allows, and leaves a record: states, logs, artifacts. No
server is needed. Whatever happens to the flow, a failure, a cancel or SIGKILL, no stage process stays behind.
"""

import logging
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from flows.dag import Dag, DagError, read_dag
from flows.outcome import StageFailed, StageResult, StageStopped
from flows.processes import StageProcesses
from flows.results import results
from flows.runner import arguments, perform, walk
from flows.server import prepare, server, settle

prepare()  # Prefect reads its settings when it is imported

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas.objects import State  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.states import Cancelled, Completed, Failed  # noqa: E402
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner  # noqa: E402


# the cast: Prefect's own annotations refuse its own runner
@flow(name="pipeline", task_runner=cast("TaskRunner[Any]", ThreadPoolTaskRunner()), persist_result=False)
def pipeline(targets: list[str] | None = None, workers: int = 2, root: str = ".") -> dict[str, StageResult] | State:
    """Bring the targets (default: all) and their upstreams up to date; how each stage ended, by stage.

    Called from Python it raises StageFailed or DagError; the flow run then ends in state Failed with that message.
    """
    try:
        dag = read_dag(root, targets)
        ended = run(dag, workers)
    except DagError as error:
        return Failed(message=str(error), data=error)
    except StageFailed as error:
        get_run_logger().error(str(error))
        return Failed(message=error.headline, data=error)
    record(dag, ended)
    return ended


def run(dag: Dag, workers: int) -> dict[str, StageResult]:
    """Each stage as a task, submitted once its upstreams are done: a task that waits would hold one of the workers."""
    futures: dict[str, PrefectFuture[State]] = {}

    def submit(stage: str) -> PrefectFuture[State]:
        upstreams = [futures[upstream] for upstream in dag.upstreams[stage]]
        work = partial(perform, dag, processes, stage)
        futures[stage] = run_stage.submit(stage, work, wait_for=upstreams)  # pyright: ignore[reportCallIssue]
        return futures[stage]

    with StageProcesses(dag.root, workers, warm=bool(dag.changed)) as processes:
        return walk(dag, workers, submit)


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: str, work: Callable[[Callable[[str], None]], StageResult]) -> State:
    """The stage's state: Ran or Cached (nothing had to run), else Failed or Stopped; `work` gets the run's logger."""
    try:
        result = work(get_run_logger().info)
    except StageFailed as error:
        return Failed(message=error.headline, data=error)
    except StageStopped as error:
        return Cancelled(name="Stopped", message=str(error), data=error)
    name = "Ran" if result.outcome == "ran" else "Cached"
    return Completed(name=name, message=f"{result.outcome} in {result.seconds:.1f} s", data=result)


def record(dag: Dag, ended: dict[str, StageResult]) -> None:
    """Leave the outcomes and the results as artifacts, and print the results."""
    table = [{"stage": s, "outcome": ended[s].outcome, "seconds": round(ended[s].seconds, 1)} for s in dag.stages]
    create_table_artifact(table, key="stages", description="How each stage ended")
    if text := results(dag.root):
        create_markdown_artifact(
            f"```\n{text}\n```\n\nIn {dag.root}.", key="report", description="Results and the report's path"
        )
        print(f"\n{text}\n", flush=True)


def drop_empty_traceback(entry: logging.LogRecord) -> bool:
    """Prefect logs a task that returned Failed as if an exception were at hand, which prints `NoneType: None`."""
    if entry.exc_info == (None, None, None):
        entry.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(drop_empty_traceback)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 after a failure, 128 + N after signal N."""
    options = arguments("python -m flows.pipeline", argv)
    try:
        with server() as temporary:
            state = pipeline(options.targets or None, options.workers, str(options.root), return_state=True)
            if temporary and (run_id := state.state_details.flow_run_id):
                settle(run_id)
    except KeyboardInterrupt:
        print("Interrupted; run again to go on from here.", file=sys.stderr)
        return 128 + signal.SIGINT
    if state.is_completed():
        return 0
    print(state.message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
