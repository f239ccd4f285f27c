import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows import supervise
from flows.processes import supervised

ROOT = Path(supervise.__file__).parents[1]


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


@pytest.fixture
def shell():
    """Starts a shell script under supervision and cleans up after the test."""
    started = []

    def start(script: str) -> subprocess.Popen[bytes]:
        started.append(supervised(["sh", "-c", script]))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(("script", "status"), [("true", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_exit_status_is_the_commands_own(shell, script, status):
    assert shell(script).wait() == status


def test_a_grandchild_left_behind_is_ended(shell, gone):
    process = shell("sleep 60 & echo $!; exit 3")
    assert gone(int(first_line(process)))
    assert process.wait() == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans over")
def test_a_grandchild_that_left_the_group_is_ended(shell, gone):
    process = shell("setsid sh -c 'echo $$; exec sleep 60' & sleep 60")
    grandchild = int(first_line(process))
    process.terminate()
    assert gone(grandchild)


def test_the_whole_group_is_interrupted(shell, gone):
    process = shell("sh -c 'echo $$; exec sleep 60'; echo not reached")
    child = int(first_line(process))
    process.terminate()
    assert process.wait() == 128 + signal.SIGINT
    assert gone(child)


def test_who_ignores_the_interrupt_is_terminated_then_killed():
    program = """
import os, signal, sys
from flows import supervise
supervise.INTERRUPT = (0, signal.SIGINT), (0.5, signal.SIGTERM), (1.5, signal.SIGKILL)
supervise.POLL = 0.05
deaf = "trap 'echo INT' INT; trap 'echo TERM' TERM; echo ready; while :; do sleep 0.05; done"
sys.exit(supervise.supervise(os.getppid(), ["sh", "-c", deaf]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
    )
    assert first_line(process) == "ready"
    process.terminate()
    output, _ = process.communicate(timeout=10)
    assert output.decode().split() == ["INT", "TERM"]
    assert process.returncode == 128 + signal.SIGKILL


def test_the_command_does_not_outlive_a_killed_parent(gone):
    program = """
import sys, time
from flows.processes import supervised
supervised(["sh", "-c", "echo $$; exec sleep 60"], stdout=sys.stdout.fileno())
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    child = int(first_line(parent))
    parent.kill()
    assert gone(child)
    parent.communicate()


def test_nothing_starts_for_a_parent_that_is_gone(tmp_path):
    command = [sys.executable, "-I", "-S", supervise.__file__, str(os.getppid()), "touch", str(tmp_path / "started")]
    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "started").exists()
