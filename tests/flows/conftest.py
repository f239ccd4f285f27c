"""Toy repositories: a real git and DVC repository whose stages are a line of shell or Python each."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from flows.dag import read_dag
from flows.runner import run

Pipeline = dict[str, dict]

# writes "NAME start|end SECONDS" to stamps.log, and between the two waits until stage OTHER has started (- for none)
STEP = """
import pathlib, sys, time
name, other, *inputs = sys.argv[1:]
def stamp(moment):
    with open("stamps.log", "a") as log:
        log.write(f"{name} {moment} {time.time()}\\n")
stamp("start")
until = time.time() + 20
while other != "-" and f"{other} start" not in pathlib.Path("stamps.log").read_text():
    assert time.time() < until, f"{other} does not start while {name} runs"
    time.sleep(0.02)
pathlib.Path(f"{name}.txt").write_text(name + "".join(pathlib.Path(i).read_text() for i in inputs))
stamp("end")
"""


def stage_of(name: str, *inputs: str, meets: str = "-") -> dict:
    """A stage that turns its inputs into NAME.txt, once stage `meets` has started."""
    return {"cmd": f"python step.py {name} {meets} {' '.join(inputs)}", "deps": list(inputs), "outs": [f"{name}.txt"]}


DIAMOND: Pipeline = {
    "first": stage_of("first", "in.txt"),
    "left": stage_of("left", "first.txt", meets="right"),
    "right": stage_of("right", "first.txt", "right.in", meets="left"),
    "last": stage_of("last", "left.txt", "right.txt"),
}


@pytest.fixture
def step() -> Callable[..., dict]:
    """Makes a stage that turns its inputs into NAME.txt."""
    return stage_of


@pytest.fixture
def gone() -> Callable[..., bool]:
    """Says whether the process with an id has ended, waiting some seconds for it."""

    def ended(pid: int, seconds: float = 8) -> bool:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
            time.sleep(0.05)
        return False

    return ended


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without stages."""
    root = tmp_path_factory.mktemp("empty")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    (root / "step.py").write_text(STEP)
    (root / "in.txt").write_text("in")
    (root / "right.in").write_text("right")
    return root


@pytest.fixture
def repository(empty: Path, tmp_path: Path) -> Callable[[Pipeline], Path]:
    """Makes a repository with the given stages."""

    def make(stages: Pipeline) -> Path:
        root = shutil.copytree(empty, tmp_path / "repository")
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        return root

    return make


@pytest.fixture(scope="session")
def built(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diamond after its first run; look, but do not touch."""
    root = shutil.copytree(empty, tmp_path_factory.mktemp("built") / "repository")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": DIAMOND}))
    ended = run(read_dag(root), workers=2)
    assert {result.outcome for result in ended.values()} == {"ran"}
    return root


@pytest.fixture
def diamond(built: Path, tmp_path: Path) -> Path:
    """A copy of the diamond after its first run."""
    return shutil.copytree(built, tmp_path / "diamond")


@pytest.fixture(scope="session")
def committed_once(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose stages have run and whose files are in a git commit; look, but do not touch."""
    root = shutil.copytree(empty, tmp_path_factory.mktemp("committed") / "repository")
    stages: Pipeline = {
        name: {"cmd": f"grep {name}: params.yaml > {name}.txt", "params": [name], "outs": [f"{name}.txt"]}
        for name in ("low", "high")
    }
    stages["both"] = stage_of("both", "low.txt", "high.txt")
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (root / "params.yaml").write_text("low: 1   # kept as it is\nhigh: 2\n")
    run(read_dag(root))
    for command in ("config user.name t", "config user.email t@t", "add -A", "commit -qm c"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


@pytest.fixture
def committed(committed_once: Path, tmp_path: Path) -> Path:
    """A copy of a repository with a git commit: stages `low` and `high` follow a param each, `both` follows them."""
    return shutil.copytree(committed_once, tmp_path / "committed")
