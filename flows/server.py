"""The Prefect server that records a run: the configured one if it answers, otherwise one that lives as long as the run.

Prefect would start a temporary server itself, but leaves it running if the flow is killed; ours is supervised.
"""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from flows.processes import inherited, supervised

DEFAULTS = {
    # for flows started from Python, where Prefect starts the server: it takes 8 to 18 s against a default limit of 20
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
ANSWER_SECONDS = 3.0
START_SECONDS = 120.0
SETTLE_SECONDS = 5.0


class ServerError(RuntimeError):
    """No Prefect server could be started."""


def prepare() -> None:
    """Settings for a quiet run without a server, where the user has not set them; call it before importing prefect."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def server() -> Iterator[bool]:
    """A Prefect server for the body; yields whether it is a temporary one, whose records stay."""
    # here and below, because importing this module must come before importing prefect
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    configured = get_current_settings().api.url
    if configured and answers(configured):
        yield False
        return
    if configured:
        print(f"No Prefect server answers at {configured}, so a temporary one records this run.", file=sys.stderr)
    with temporary_settings({PREFECT_API_URL: start()}):
        yield True


def start() -> str:
    """Start a server that ends when this process has; its API address.

    Not earlier: Prefect sends the last logs and states while the interpreter exits.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--log-level", "ERROR"]
    command += ["--no-scheduler", "--no-late-runs"]  # it serves this run alone
    environment = inherited()
    environment.pop("PREFECT_API_URL", None)  # another server's
    with tempfile.TemporaryFile() as log:
        process = supervised(command, stdout=log, env=environment)
        atexit.register(forget, process)
        until = time.monotonic() + START_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > until:
                process.terminate()
                log.seek(0)
                said = log.read().decode(errors="replace").strip()
                raise ServerError(
                    f"Expected a temporary Prefect server within {START_SECONDS:.0f} s, got none; it said: {said}"
                )
            time.sleep(0.1)
    return url


def forget(process: subprocess.Popen[bytes]) -> None:
    """Spare us Python's warning that the process outlives us: it does, by a second."""
    process.returncode = process.poll() or 0


def answers(url: str) -> bool:
    """Whether anything that speaks HTTP responds at the API address `url` within 3 s."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:  # it refuses this question, but it is there
        return True
    except (OSError, ValueError):
        return False


def settle(flow_run_id: UUID) -> None:
    """Wait (5 s at most) until the server has stored how every task of the run ended; it does so with a delay.

    Tasks appear there one after another, so what counts is that all are final twice in a row.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    before = None
    until = time.monotonic() + SETTLE_SECONDS
    with get_client(sync_client=True) as client:
        while time.monotonic() < until:
            stored = {task.id: task.state for task in client.read_task_runs(flow_run_filter=run)}
            if stored and stored == before and all(state and state.is_final() for state in stored.values()):
                return
            before = stored
            time.sleep(0.5)
