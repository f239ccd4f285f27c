"""The toy experiment, run once from nothing by the plain runner; each test that changes something gets a copy."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy
import warm

from flows import processes
from flows.dag import read_dag
from flows.outcome import StageResult
from flows.runner import run
from stages import specialize


@dataclass(frozen=True)
class Built:
    """The repository after its first run, and how each stage of that run ended; look, but do not touch."""

    root: Path
    ended: dict[str, StageResult]


@pytest.fixture(scope="session")
def binaries() -> Iterator[Path]:
    """A folder whose `python` runs a stage in a fork of one process that has everything imported."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path has at most 107 characters
        answering, python = Path(short) / "socket", Path(short) / "bin" / "python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{warm.__file__}" ask "{answering}" "$@"\n')
        python.chmod(0o755)
        command = [sys.executable, warm.__file__, "serve", str(answering)]
        with subprocess.Popen(command, env=processes.environment(workers=2)) as server:
            until = time.monotonic() + 120
            while not answering.exists() and server.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            assert answering.exists(), f"{' '.join(command)} does not answer"
            yield python.parent
            server.terminate()


def prefer(binaries: Path, patch: pytest.MonkeyPatch) -> None:
    """Every stage that DVC starts from here finds the `python` in that folder first."""
    plain = processes.environment

    def environment(workers: int) -> dict[str, str]:
        found = plain(workers)
        return found | {"PATH": os.pathsep.join([str(binaries), found["PATH"]])}

    patch.setattr(processes, "environment", environment)


@pytest.fixture
def quickly(binaries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages run without importing everything anew."""
    prefer(binaries, monkeypatch)


@pytest.fixture(scope="session")
def built(binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Donors are trained here by the stage's own function, since their stages are frozen."""
    root = toy.experiment(tmp_path_factory.mktemp("toy") / "repository")
    target, donors = root / "data" / "models" / "target", root / "data" / "donors"
    ended = run(read_dag(root, ["fetch@target"]))  # by a process of its own, as every stage runs in earnest
    for donor in toy.PARAMS["specialize"]:
        specialize.main(donor, target, donors / donor, root / "params.yaml")
    toy.commit(root, *(f"specialize@{donor}" for donor in toy.PARAMS["specialize"]))
    with pytest.MonkeyPatch.context() as patch:
        prefer(binaries, patch)
        return Built(root, run(read_dag(root)) | ended)


@pytest.fixture
def repository(built: Built, tmp_path: Path) -> Path:
    """A copy of the repository after its first run, its cache included."""
    return shutil.copytree(built.root, tmp_path / "repository")
