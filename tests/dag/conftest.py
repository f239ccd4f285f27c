"""The toy experiment, run once from nothing by the plain runner; each test that changes something gets a copy."""

import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy

from flows import processes
from flows.dag import read_dag
from flows.outcome import StageResult
from flows.runner import run
from stages import further, specialize


@dataclass(frozen=True)
class Built:
    """The repository after its first run, and how each stage of that run ended; look, but do not touch."""

    root: Path
    ended: dict[str, StageResult]


def prefer(binaries: Path, patch: pytest.MonkeyPatch) -> None:
    """Every stage that DVC starts from here finds the `python` in that folder first, and no other is started."""
    plain = processes.environment

    def environment(workers: int) -> dict[str, str]:
        found = plain(workers)
        return found | {"PATH": os.pathsep.join([str(binaries), found["PATH"]])}

    patch.setattr(processes, "environment", environment)
    patch.setattr(processes, "warmed", lambda _: nullcontext(binaries))


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
    for donor, recipe in toy.PARAMS["further"].items():
        further.main(donor, donors / recipe["start"], donors / donor, root / "params.yaml")
    toy.commit(root, *(f"{way}@{donor}" for way in ("specialize", "further") for donor in toy.PARAMS[way]))
    with pytest.MonkeyPatch.context() as patch:
        prefer(binaries, patch)
        return Built(root, run(read_dag(root)) | ended)


@pytest.fixture
def repository(built: Built, tmp_path: Path) -> Path:
    """A copy of the repository after its first run, its cache included."""
    return shutil.copytree(built.root, tmp_path / "repository")
