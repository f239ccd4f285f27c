"""The pipeline as a Prefect flow, one task a DVC stage: `python -m flows.pipeline [options] [targets...]`.

It does what `dvc repro` does, side by side where the graph allows, and leaves a record: states, logs, artifacts. No
server is needed, and one that dies stops nothing. Whatever happens to the flow, a failure, a cancel or SIGKILL, no
stage process stays behind.
"""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from flows import gpus
from flows.dag import Dag, DagError
from flows.origin import Origin, short_commit
from flows.outcome import StageFailed, StageResult, StageStopped, may_pass
from flows.processes import HOURS, StageProcesses
from flows.request import Request, Work, reproduce, requested
from flows.runner import carry_out, perform, walk
from flows.server import ServerError, answers, prepare, server, settle

prepare()  # Prefect reads its settings when it is imported

import httpx  # noqa: E402
from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas.objects import FlowRun, State, TaskRun  # noqa: E402
from prefect.exceptions import PrefectHTTPStatusError  # noqa: E402
from prefect.flows import Flow  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.runtime import flow_run as current  # noqa: E402
from prefect.settings import PREFECT_API_URL  # noqa: E402
from prefect.states import Cancelled, Completed, Failed  # noqa: E402
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner  # noqa: E402
from prefect.tasks import Task  # noqa: E402

from flows.record import Record, counted  # noqa: E402

RETRIES = [2, 4, 8, 16]
"""Seconds before each further try, more or less: long enough for a lock and a hiccup, short enough to be cancelled."""
HOOK = "GRAFTLINE_ON_FAILURE"
"""Environment variable with a command for flows that fail; it gets the run as JSON on its standard input."""


def run_name() -> str:
    """`report; inject.blade.gate=vector at c8be68b`: what tells runs apart in a list of them."""
    request = asked(current.parameters)
    return f"{request.summary} at {short_commit(request.root) or 'no commit'}"


def asked(parameters: dict[str, Any]) -> Request:
    """The request that a flow run's parameters make."""
    lists = {name: tuple(parameters[name] or ()) for name in ("targets", "overrides")}
    return Request(**parameters | lists | {"root": Path(parameters["root"])})


def on_failure(flow: Flow, run: FlowRun, state: State) -> None:
    """Tells whoever the team has named; a server's automations can do so too, but need the server."""
    if command := os.environ.get(HOOK):
        told = {"run": run.name, "id": str(run.id), "state": state.name, "message": state.message}
        subprocess.run(shlex.split(command), input=json.dumps(told), text=True, check=False, timeout=60)


# the cast: Prefect's own annotations refuse its own runner
@flow(
    name="pipeline",
    flow_run_name=run_name,
    task_runner=cast("TaskRunner[Any]", ThreadPoolTaskRunner()),
    persist_result=False,
    on_failure=[on_failure],
    on_crashed=[on_failure],
)
def pipeline(
    targets: list[str] | None = None,
    overrides: list[str] | None = None,
    force: bool = False,
    pull: bool = False,
    push: bool = False,
    workers: int = 2,
    hours: float = HOURS,
    root: str = ".",
    name: str = "",
) -> dict[str, StageResult] | State:
    """Bring the targets (default: all) and their upstreams up to date; how each stage ended, by stage.

    Overrides, such as inject.blade.gate=vector, make the run an experiment, called `name` or by its overrides, that
    leaves params.yaml as it is. Force runs every stage; pull takes what the DVC remote has first, push gives it what
    was made. At most `workers` stages run at a time, each for `hours` at most.

    Called from Python it raises StageFailed or DagError; the flow run then ends in state Failed with that message.
    """
    lists = tuple(targets or ()), tuple(overrides or ())
    return recorded(Request(*lists, force, pull, push, workers, hours, Path(root), name))


def recorded(request: Request) -> dict[str, StageResult] | State:
    """The request done inside a flow's run, with its artifacts; what the flow is to return."""
    record = Record(get_run_logger())
    try:
        finished = reproduce(
            request, partial(run, request, record), lambda name, work: run_stage.submit(name, work).result()
        )
    except DagError as error:
        return Failed(message=str(error), data=error)
    except StageFailed as error:
        get_run_logger().error(str(error))
        record.failed(error)
        return Failed(message=error.headline, data=error)
    record.finish(request, finished)
    if finished.results:
        print(f"\n{finished.results}\n", flush=True)
    told = counted(each.outcome for each in finished.ended.values())
    return Completed(message=f"Stages: {told}", data=dict(finished.ended))


def run(request: Request, record: Record, dag: Dag, origin: Origin) -> dict[str, StageResult]:
    """Each stage as a task, submitted once its upstreams are done: a task that waits would hold one of the workers."""
    record.begin(request, dag, origin)
    futures: dict[str, PrefectFuture[State]] = {}
    shared = run_stage.with_options(tags=[gpus.tag()]) if gpus.present() else run_stage

    def submit(stage: str) -> PrefectFuture[State]:
        upstreams = [futures[upstream] for upstream in dag.upstreams[stage]]
        work = partial(perform, dag, processes, stage)
        chosen = shared if stage in dag.models & dag.changed else run_stage
        futures[stage] = chosen.submit(stage, work, wait_for=upstreams)  # pyright: ignore[reportCallIssue]
        return futures[stage]

    with StageProcesses(dag.root, request.workers, bool(dag.changed), request.hours, request.options) as processes:
        return walk(dag, request.workers, submit, record.ended)


def worth_another_try(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the failure is of the kind that passes."""
    error = state.data
    return isinstance(error, StageFailed) and may_pass(error)


@task(
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(RETRIES),
    retry_delay_seconds=RETRIES,
    retry_jitter_factor=0.3,
    retry_condition_fn=worth_another_try,
)
def run_stage(stage: str, work: Work) -> State:
    """The stage's state: Ran or Cached (nothing had to run), else Failed or Stopped; `work` gets the run's logger."""
    try:
        result = work(get_run_logger().info)
    except StageFailed as error:
        return Failed(message=error.headline, data=error)
    except StageStopped as error:
        return Cancelled(name="Stopped", message=str(error), data=error)
    name = "Ran" if result.outcome == "ran" else "Cached"
    return Completed(name=name, message=f"{result.outcome} in {result.seconds:.1f} s", data=result)


def drop_empty_traceback(entry: logging.LogRecord) -> bool:
    """Prefect logs a task that returned Failed as if an exception were at hand, which prints `NoneType: None`."""
    if entry.exc_info == (None, None, None):
        entry.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(drop_empty_traceback)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 after a failure, 128 + N after signal N."""
    request = requested("python -m flows.pipeline", argv)
    parameters = asdict(request) | {"root": str(request.root)}
    parameters |= {name: list(parameters[name]) for name in ("targets", "overrides")}
    try:
        with server() as temporary:
            state: State = pipeline(**parameters, return_state=True)
            if temporary and (run_id := state.state_details.flow_run_id):
                settle(run_id)
            lost = not state.is_completed() and not answers(PREFECT_API_URL.value() or "")
    except KeyboardInterrupt:
        print("Interrupted; run again to go on from here.", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ServerError, httpx.HTTPError, PrefectHTTPStatusError) as error:
        state, lost = Failed(message=str(error)), True
    if lost:
        print("The Prefect server cannot be reached, so the work goes on without a record.", file=sys.stderr)
        return leave(carry_out(request))
    if state.is_completed():
        return 0
    print(state.message, file=sys.stderr)
    return 1


def leave(status: int) -> int:
    """Ends this process at once: on its way out Prefect would try each event for seconds that no server takes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
