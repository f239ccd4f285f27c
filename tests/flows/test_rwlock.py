import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.dag import read_dag
from flows.runner import run
from flows.rwlock import heal

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@contextmanager
def process(*arguments: str) -> Iterator[int]:
    """The id of a process that sleeps and has the given arguments."""
    sleeper = subprocess.Popen([*SLEEP, *arguments])
    try:
        yield sleeper.pid
    finally:
        sleeper.kill()
        sleeper.wait()


def listing(pid: int, path: Path, command: str = "/bin/dvc repro") -> str:
    return json.dumps({"write": {str(path): {"pid": pid, "cmd": command}}, "read": {}})


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    folder = tmp_path / ".dvc" / "tmp"
    folder.mkdir(parents=True)
    return folder / "rwlock"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"write": {"a": {"pid": "x"}}}', '{"read": {"a": 1}}'])
def test_an_unreadable_file_is_removed(lock, tmp_path, text):
    lock.write_text(text)
    assert heal(tmp_path)
    assert not lock.exists()


def test_a_dead_process_owns_nothing(lock, tmp_path):
    with process() as pid:
        pass
    lock.write_text(listing(pid, tmp_path / "a"))
    assert heal(tmp_path)


def test_a_process_that_took_over_the_id_owns_nothing(lock, tmp_path):
    with process() as pid:
        lock.write_text(listing(pid, tmp_path / "a"))
        assert heal(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(("/some/bin/dvc", "repro"), "/some/bin/dvc repro"), (("-m", "program", "x"), "/some/where/program.py x")],
    ids=["dvc", "program"],
)
def test_a_live_owner_keeps_its_lock(lock, tmp_path, arguments, command):
    with process(*arguments) as pid:
        text = listing(pid, tmp_path / "a", command)
        lock.write_text(text)
        assert not heal(tmp_path)
    assert lock.read_text() == text


def test_without_a_file_there_is_nothing_to_heal(tmp_path):
    assert not heal(tmp_path)


def test_a_stale_lock_does_not_stop_a_run(diamond):
    (diamond / "last.txt").unlink()
    lock = diamond / ".dvc" / "tmp" / "rwlock"
    with process() as pid:
        lock.write_text(listing(pid, diamond / "last.txt"))
        dag = read_dag(diamond)
        lock.write_text(listing(pid, diamond / "last.txt"))
        assert run(dag)["last"].outcome == "cached"
