"""What docs/operations.md promises: a server, a worker, `prefect deploy --all`, and the run comes by itself."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
import toy
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from flows.dag import read_dag
from flows.processes import inherited, supervised
from flows.server import answers, settle

pytestmark = [pytest.mark.servers, pytest.mark.timeout(1200)]
LISTENER = """
import os, sys
def heard(event, arguments):
    address = None
    if event == "socket.getaddrinfo":
        address = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        address = arguments[1][0]
    if address not in (None, "", b"", "localhost", "127.0.0.1", "::1", ".".join("0000")):
        with open(os.environ["CALLS"], "a") as log:
            log.write(f"{event} {address!r} {sys.argv}\\n")
sys.addaudithook(heard)
"""
"""As sitecustomize, in every Python process of a deployment: whom it calls beyond this machine."""


@dataclass(frozen=True)
class Deployment:
    """A clone whose flows are deployed to a server, and a worker that waits for their runs."""

    clone: Path
    client: SyncPrefectClient
    calls: Path
    """Who was called beyond this machine."""

    def start(self, **parameters: object) -> UUID:
        """Asks for a run on demand."""
        found = self.client.read_deployment_by_name("pipeline/on-demand")
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def wait(self, run: UUID, until: Callable[[FlowRun], bool], seconds: float = 600) -> FlowRun:
        """The run once it is as wanted."""
        end = time.monotonic() + seconds
        while not until(found := self.client.read_flow_run(run)):
            assert time.monotonic() < end, f"{found.name} is {found.state}"
            time.sleep(0.5)
        return found


def final(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_final()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clone(root: Path) -> Path:
    """The toy experiment with what deploys it, in a git commit."""
    toy.experiment(root)
    shutil.copytree(toy.ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "prefect.toml", ".gitignore"):
        shutil.copy(toy.ROOT / name, root)
    for command in ("config user.name t", "config user.email t@t", "add -A", "commit -qm c"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


@contextmanager
def deployed(folder: Path, **settings: str) -> Iterator[Deployment]:
    """The steps of docs/operations.md, in their order."""
    root, calls = clone(folder / "clone"), folder / "calls"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(LISTENER)
    calls.touch()
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    forgotten = ("PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK", "CI")  # prefect.toml must do without them
    known = {name: value for name, value in inherited().items() if name not in forgotten} | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": str(folder / "site"),
        "CALLS": str(calls),
        **settings,
    }
    prefect = [sys.executable, "-m", "prefect"]

    @contextmanager
    def running(name: str, *words: str) -> Iterator[Path]:
        log = folder / f"{name}.log"
        with log.open("wb") as out, supervised([*prefect, *words], stdout=out, cwd=root, env=known) as process:
            try:
                yield log
            finally:
                process.terminate()

    with ExitStack() as stack:
        log = stack.enter_context(running("server", "server", "start", "--port", str(port)))
        until = time.monotonic() + 300
        while not answers(url):
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        client = stack.enter_context(get_client(sync_client=True))
        log = stack.enter_context(running("worker", "worker", "start", "--pool", "graftline", "--type", "process"))
        while "graftline" not in {pool.name for pool in client.read_work_pools()}:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        done = subprocess.run(
            [*prefect, "deploy", "--all"], cwd=root, env=known, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield Deployment(root, client, calls)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """On Prefect's own SQLite."""
    with deployed(tmp_path_factory.mktemp("sqlite")) as made:
        yield made


def scheduled_run(made: Deployment, *targets: str) -> FlowRun:
    """The nightly deployment's first run by a schedule that is due at once, for these targets."""
    found = made.client.read_deployment_by_name("pipeline/nightly")
    schedule = IntervalSchedule(interval=timedelta(days=1))
    schedule.anchor_date += timedelta(seconds=5)
    soon = DeploymentScheduleCreate(schedule=schedule, active=True, parameters={"targets": list(targets)})
    made.client.create_deployment_schedules(found.id, [soon])
    nightly = DeploymentFilter(id=DeploymentFilterId(any_=[found.id]))
    until = time.monotonic() + 300
    while True:
        runs = made.client.read_flow_runs(deployment_filter=nightly)
        mine = [run for run in runs if run.parameters.get("targets") == list(targets)]
        if mine and min(mine, key=lambda run: str(run.expected_start_time)).state_name not in ("Scheduled", "Pending"):
            break
        assert time.monotonic() < until, [run.state for run in runs]
        time.sleep(0.5)
    first = min(mine, key=lambda run: str(run.expected_start_time))
    assert first.auto_scheduled
    return made.wait(first.id, final)


def reproduces(made: Deployment) -> None:
    """A scheduled run brings the targets up to date, by a task each."""
    run = scheduled_run(made, "prompts", "fetch")
    assert run.state and run.state.is_completed(), run.state
    assert run.name.startswith("prompts, fetch at ")
    assert not read_dag(made.clone, ["prompts", "fetch"]).changed
    with temporary_settings({PREFECT_API_URL: str(made.client.api_url)}):
        settle(run.id)
    tasks = made.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert {task.name: task.state_name for task in tasks} == {"fetch@target": "Ran", "prompts": "Ran"}


def test_the_nightly_run_is_due_at_two_and_a_scheduled_run_reproduces_the_stages(deployment):
    found = deployment.client.read_deployment_by_name("pipeline/nightly")
    (schedule,) = found.schedules
    assert schedule.active and (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "UTC")
    assert found.pull_steps[0]["prefect.deployments.steps.set_working_directory"]["directory"] == str(deployment.clone)
    reproduces(deployment)


def test_on_demand_with_other_params_is_an_experiment_and_params_yaml_stays(deployment):
    before = (deployment.clone / "params.yaml").read_bytes()
    run = deployment.wait(deployment.start(targets=["prompts"], overrides=["prompts.test=10"]), final)
    assert run.state and run.state.is_completed(), run.state
    assert (deployment.clone / "params.yaml").read_bytes() == before
    command = [sys.executable, "-m", "dvc", "exp", "list", "--name-only"]
    listed = subprocess.run(command, cwd=deployment.clone, check=True, capture_output=True, text=True)
    assert listed.stdout.split() == ["prompts.test-10"]


def test_a_run_cancelled_on_the_server_leaves_no_process_and_the_next_one_completes(deployment, repository, gone):
    command = "echo $$ > pid; sleep $(cat pause); cp in.txt out.txt"
    root = repository({"slow": {"cmd": command, "deps": ["in.txt"], "outs": ["out.txt"]}})
    (root / "pause").write_text("600")
    parameters = {"targets": ["slow"], "root": str(root)}
    started = deployment.start(**parameters)
    until = time.monotonic() + 300
    while not (root / "pid").exists() or not (root / "pid").read_text():
        assert time.monotonic() < until, deployment.client.read_flow_run(started).state
        time.sleep(0.2)
    deployment.client.set_flow_run_state(started, Cancelling())
    run = deployment.wait(started, final)
    assert run.state and run.state.is_cancelled()
    assert gone(int((root / "pid").read_text()), seconds=60)
    assert not (root / "out.txt").exists()

    (root / "pause").write_text("0")
    again = deployment.wait(deployment.start(**parameters), final)
    assert again.state and again.state.is_completed() and (root / "out.txt").exists()


def test_a_deployment_calls_nobody_beyond_this_machine(deployment):
    run = deployment.wait(deployment.start(targets=["fetch@target"]), final)
    assert run.state and run.state.is_completed(), run.state
    assert deployment.calls.read_text() == ""


def test_the_listener_hears_a_call(deployment):
    calls = deployment.calls.with_name("heard")
    known = os.environ | {"PYTHONPATH": str(calls.parent / "site"), "CALLS": str(calls)}
    ask = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.getaddrinfo('name.invalid', 443)"
    subprocess.run([sys.executable, "-c", ask], env=known, check=True)
    assert "name.invalid" in calls.read_text()


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps them out of PATH."""
    kept = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name), reverse=True)
    kept += [Path(found).parent for found in [shutil.which("initdb")] if found]
    wanted = ("initdb", "postgres", "createdb", "psql")
    return next((folder for folder in kept if all((folder / name).exists() for name in wanted)), None)


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """The address of a PostgreSQL with a database `prefect`, on a free port of this machine."""
    name = pwd.getpwuid(os.getuid()).pw_name
    other = None
    if name == "root":  # it refuses to be run by root
        known = {each.pw_name for each in pwd.getpwall()}
        name = other = next(user for user in ("postgres", "nobody") if user in known)
    port = free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:
        folder = Path(short)
        if other:
            shutil.chown(folder, other)
        data = folder / "data"
        make = [programs / "initdb", "-D", data, "--auth=trust", "--no-sync"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, cwd=folder, user=other)
        settings = [f"port={port}", f"unix_socket_directories={folder}", "listen_addresses=127.0.0.1", "fsync=off"]
        serve = [programs / "postgres", "-D", data, *(part for each in settings for part in ("-c", each))]
        with subprocess.Popen(serve, stderr=subprocess.DEVNULL, cwd=folder, user=other) as process:
            try:
                create = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", name, "prefect"]
                until = time.monotonic() + 120
                while subprocess.run(create, stderr=subprocess.DEVNULL, check=False).returncode:
                    assert process.poll() is None and time.monotonic() < until, "PostgreSQL does not answer"
                    time.sleep(0.2)
                yield f"postgresql+asyncpg://{name}@127.0.0.1:{port}/prefect"
            finally:
                process.terminate()


def test_a_scheduled_run_on_postgres_reproduces_the_stages(tmp_path):
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL here: install Debian's package postgresql")
    with postgres(programs) as url, deployed(tmp_path, PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as made:
        reproduces(made)
        psql = [programs / "psql", url.replace("+asyncpg", ""), "-Atc", "select count(*) from flow_run"]
        counted = subprocess.run(psql, check=True, capture_output=True, text=True)
        assert int(counted.stdout) >= 1
        assert not list((tmp_path / "prefect").glob("*.db"))
