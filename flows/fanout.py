"""A sweep over any number of Prefect workers: the flow `sweep` orders points, the flow `point` does one of them.

A point's run says every few seconds that it is alive. Where that stays out for as long as the lease, whoever ordered it
gives it up and orders it again, so another worker takes it; a point that was done after all is seen to be known.
"""

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from flows import team
from flows.dag import DagError, repository
from flows.git import GitError, git
from flows.points import Plan, Point, Sweep, plan_sweep
from flows.processes import HOURS
from flows.request import Request
from flows.server import answers, prepare
from flows.sweep import OUT, Failures, conduct, finish
from flows.workplace import workplace
from stages.errors import BadInput
from stages.pages.sweep import markdown

prepare()  # Prefect reads its settings when it is imported

import httpx  # noqa: E402
from prefect import flow  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.client.orchestration import SyncPrefectClient, get_client  # noqa: E402
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId  # noqa: E402
from prefect.client.schemas.objects import FlowRun, State  # noqa: E402
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError  # noqa: E402
from prefect.runtime import flow_run as current  # noqa: E402
from prefect.settings import PREFECT_API_URL  # noqa: E402
from prefect.states import Completed, Crashed, Failed  # noqa: E402

from flows.pipeline import on_failure, recorded  # noqa: E402

DEPLOYMENT = "point/point"
BEAT = "beat"
"""The label of a run that counts its signs of life."""
BEATS = 6
"""Signs of life in a lease: so many may be lost on the way."""
TRIES = 3
"""How many workers a point may cost before it counts as failed."""
POLL = 2.0
PAGE = 200


@dataclass(frozen=True)
class Order:
    """What the points of a sweep are ordered with."""

    sweep: Sweep
    address: str
    """Git address that workers clone and give experiments to."""
    workers: int = 2
    hours: float = HOURS
    lease: float = 300.0
    """Seconds of silence after which a point's worker counts as dead; starting a run's process must take less."""


@dataclass
class Watch:
    """One point's run, as it was seen last."""

    point: Point
    run: UUID
    tries: int = 1
    seen: object = None
    since: float = 0.0


def ordered(order: Order, points: Sequence[Point]) -> Failures:
    """Have the points done by workers, and wait for them; why some failed.

    Orders that stand from an interrupted sweep are taken over. Raises BadInput where there is no server, or nothing is
    deployed on it, and where clones would lack the commit.
    """
    url = PREFECT_API_URL.value()
    if not url or not answers(url):
        raise BadInput(
            f"Expected a Prefect server at {url or 'PREFECT_API_URL, which is not set'}, got no answer; start one or "
            "leave out --deployment."
        )
    root, commit = order.sweep.root, order.sweep.commit
    if not team.reachable(root, order.address, commit):
        raise BadInput(
            f"Expected commit {commit[:12]} on a branch of {order.address}, found none that contains it; `git push` "
            "(or `git fetch`) first, since workers clone from there."
        )
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT).id
        except ObjectNotFound:
            raise BadInput(
                f"Expected a deployment {DEPLOYMENT} at {url}, found none; `prefect deploy --all` first."
            ) from None
        watches = [Watch(point, hire(client, deployment, order, point)) for point in points]
        return followed(client, deployment, order, watches)


def hire(client: SyncPrefectClient, deployment: UUID, order: Order, point: Point) -> UUID:
    """A run of the point that is not over: the one that stands, or a new one."""
    top = Path(git(order.sweep.root, "rev-parse", "--show-toplevel"))
    parameters = {
        "overrides": list(point.overrides), "targets": list(point.targets), "name": point.name,
        "commit": order.sweep.commit, "address": order.address, "workers": order.workers, "hours": order.hours,
        "folder": order.sweep.root.resolve().relative_to(top.resolve()).as_posix(), "beat": order.lease / BEATS,
    }  # fmt: skip
    for attempt in itertools.count():
        # two sweeps that ask for the same get the same run
        key = f"{order.address} {team.ref(order.sweep.commit, point.name)} {attempt}"
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters, idempotency_key=key)
        if run.state is None or not run.state.is_final():
            return run.id
    raise AssertionError("counting does not end")


def followed(client: SyncPrefectClient, deployment: UUID, order: Order, watches: list[Watch]) -> Failures:
    """Wait until every run is over, ordering anew where a worker died; why some failed."""
    failures: Failures = {}
    while watches:
        time.sleep(POLL)
        try:
            runs = read(client, [watch.run for watch in watches])
            for watch in tuple(watches):
                over, why = judged(client, runs.get(watch.run), watch, order.lease)
                if not over:
                    continue
                if why is None or watch.tries == TRIES or not why.startswith(LOST):
                    print(f"{watch.point.name}: {why or 'done'}", flush=True)
                    failures |= {watch.point.name: why} if why else {}
                    watches.remove(watch)
                else:
                    print(f"{watch.point.name}: {why}; another takes it", flush=True)
                    run = hire(client, deployment, order, watch.point)
                    watches[watches.index(watch)] = Watch(watch.point, run, watch.tries + 1)
        except httpx.TransportError as error:  # the workers go on, and so does the server some time
            print(f"The Prefect server does not answer ({type(error).__name__}); asking again.", flush=True)
    return failures


LOST = "its worker is lost"


def judged(client: SyncPrefectClient, run: FlowRun | None, watch: Watch, lease: float) -> tuple[bool, str | None]:
    """Whether the run is over, and why the point is not done if it is not; a silent run is ended here."""
    if run is None or run.state is None:
        return True, f"{LOST}: the server has forgotten the run"
    state = run.state
    if state.is_completed():
        return True, None
    if state.is_crashed():
        return True, f"{LOST}: {state.message}"
    if state.is_final():
        return True, state.message or state.name or "it failed"
    seen = state.id, run.labels.get(BEAT)
    if seen != watch.seen or state.is_scheduled():  # nobody has taken it yet, so nobody can be dead
        watch.seen, watch.since = seen, time.monotonic()
        return False, None
    if time.monotonic() - watch.since < lease:
        return False, None
    why = f"{LOST}: not heard of for {lease:g} s"
    client.set_flow_run_state(run.id, Crashed(message=why), force=True)
    return True, why


def read(client: SyncPrefectClient, ids: Sequence[UUID]) -> dict[UUID, FlowRun]:
    """The runs by id, in as few requests as the server allows."""
    found = {}
    for start in range(0, len(ids), PAGE):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(ids[start : start + PAGE])))
        found |= {run.id: run for run in client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)}
    return found


@contextlib.contextmanager
def beating(seconds: float) -> Iterator[None]:
    """Count the seconds' signs of life in a label of the current run, until the context ends or this process dies."""
    run, ended = UUID(str(current.id)), threading.Event()

    def beat() -> None:
        for count in itertools.count(1):
            # without a server nobody waits for the sign
            with contextlib.suppress(httpx.HTTPError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
                client.update_flow_run_labels(run, {BEAT: count})
            if ended.wait(seconds):
                return

    thread = threading.Thread(target=contextvars.copy_context().run, args=(beat,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(seconds)


def point_name() -> str:
    """`inject.blade.gate-vector-1a2b3c4d at c8be68b`: the experiment and its commit."""
    return f"{current.parameters['name']} at {current.parameters['commit'][:7]}"


@flow(name="point", flow_run_name=point_name, persist_result=False, on_failure=[on_failure], on_crashed=[on_failure])
def point(
    overrides: list[str],
    name: str,
    commit: str,
    address: str,
    targets: list[str] | None = None,
    folder: str = ".",
    workers: int = 2,
    hours: float = HOURS,
    beat: float = 50.0,
) -> State:
    """Do one point of a sweep in a clone of `address` that this worker keeps, and give the experiment back.

    The DVC remote, if there is one, gives what it has and gets what was made. A point that the address has by now is
    left as it is.
    """
    with beating(beat):
        try:
            with workplace(address, commit, folder) as place:
                if name in team.there(place, address, commit):
                    return Completed(message="It was known.")
                local = (Path(address) / folder / ".dvc").is_dir()
                shared = not local or bool(
                    git(place, "config", "--file", ".dvc/config.local", "core.remote", fallible=True)
                )
                asked = Request(
                    tuple(targets or ()), tuple(overrides), pull=shared, push=shared, workers=workers, hours=hours,
                    root=place, name=name,
                )  # fmt: skip
                ended = recorded(asked)
                if isinstance(ended, State) and not ended.is_completed():
                    return ended
                team.give(place, address, commit, [name])
        except (DagError, GitError) as error:
            return Failed(message=str(error))
    return Completed(message="Done.")


@flow(name="sweep", log_prints=True, persist_result=False, on_failure=[on_failure], on_crashed=[on_failure])
def sweep(
    grid: dict[str, list[Any]] | None = None,
    points: list[dict[str, Any]] | None = None,
    targets: list[str] | None = None,
    goals: list[str] | None = None,
    workers: int = 2,
    hours: float = HOURS,
    lease: float = 300.0,
    root: str = ".",
) -> State:
    """Order every combination of the grid's values, or the points, from the workers of `point`, and make the page.

    The commit is the one that stands at `root`. Points that fail are in the table; the run then ends in state Failed.
    """
    try:
        top = repository(root)
        asked = Plan(grid=grid or {}, points=points or [], targets=targets or [], goals=goals or [])
        wanted = plan_sweep(top, asked)
        address = team.meeting_place(top)
        order = Order(wanted, address, workers, hours, lease)
        table = conduct(wanted, address, lambda missing: ordered(order, missing), shared=True)
    except (BadInput, DagError, GitError) as error:
        return Failed(message=str(error))
    create_markdown_artifact(markdown(table), key="graftline-sweep", description="The points and what they found")
    failed = finish(table, top / OUT)
    total, bad = len(table["points"]), sum(bool(row["failure"]) for row in table["points"])
    told = f"{total - bad} of {total} points done; the page is {(top / OUT / 'index.html').resolve()}"
    return Failed(message=told) if failed else Completed(message=told)
