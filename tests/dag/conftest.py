"""The toy experiment, run once from nothing by the plain runner; each test that changes something gets a copy."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import toy
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
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Donors are trained here by the stage's own function, since their stages are frozen."""
    root = toy.experiment(tmp_path_factory.mktemp("toy") / "repository")
    ended = run(read_dag(root, ["fetch@target"]))
    target, donors = root / "data" / "models" / "target", root / "data" / "donors"
    for donor in toy.PARAMS["specialize"]:
        specialize.main(donor, target, donors / donor, root / "params.yaml")
    toy.commit(root, *(f"specialize@{donor}" for donor in toy.PARAMS["specialize"]))
    return Built(root, run(read_dag(root)) | ended)


@pytest.fixture
def repository(built: Built, tmp_path: Path) -> Path:
    """A copy of the repository after its first run, its cache included."""
    return shutil.copytree(built.root, tmp_path / "repository")
