"""One thread for every test: claims that hold bit for bit hold at a fixed number of threads."""

import atexit
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# Before transformers is imported: the code of grafts goes to a folder of this run's own.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402

from flows import processes, warm  # noqa: E402

torch.set_num_threads(1)
# A shell that starts the tests in the background leaves interrupts ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def binaries() -> Iterator[Path]:
    """A folder whose `python` runs a stage in a fork of one process that has everything imported."""
    with processes.warmed(processes.environment(workers=2)) as folder:
        until = time.monotonic() + 120
        while not (folder / "socket").exists() and time.monotonic() < until:
            if early := warm.connected(str(folder / "socket")):
                early.close()
            time.sleep(0.05)
        assert (folder / "socket").exists(), "the server does not answer"
        yield folder
