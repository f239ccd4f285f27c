import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.processes import environment, warmed

SAYS = """
import os, sys
print("to stdout", *sys.argv[1:], __name__, __spec__.name, os.getcwd(), os.environ["ASKED"], flush=True)
print("to stderr", "torch" in sys.modules, file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
WAITS = """
import os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
try:
    while True:
        time.sleep(0.05)
except KeyboardInterrupt:
    pathlib.Path("told").touch()
    raise
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with two stages of its own."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    (tmp_path / "stages" / "says.py").write_text(SAYS)
    (tmp_path / "stages" / "waits.py").write_text(WAITS)
    return tmp_path


def python(binaries: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(binaries / "python"), *words]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"ASKED": "yes"}, capture_output=True, text=True, check=False
    )


def test_a_stage_is_run_as_the_interpreter_would_but_with_torch_imported(binaries, folder):
    for status in (0, 3):
        done = python(binaries, folder, "-m", "stages.says", str(status))
        assert done.returncode == status
        assert done.stdout == f"to stdout {status} __main__ stages.says {folder} yes\n"
        assert done.stderr == "to stderr True\n"


def test_an_edit_counts_at_once(binaries, folder):
    python(binaries, folder, "-m", "stages.says", "0")
    (folder / "stages" / "says.py").write_text("print('anew')")
    assert python(binaries, folder, "-m", "stages.says", "0").stdout == "anew\n"


def test_an_exception_is_shown_and_fails(binaries, folder):
    (folder / "stages" / "says.py").write_text("raise ValueError('of the stage')")
    done = python(binaries, folder, "-m", "stages.says")
    assert done.returncode == 1 and "ValueError: of the stage" in done.stderr


def test_what_is_no_stage_gets_the_real_interpreter(binaries, folder):
    done = python(binaries, folder, "-c", "import sys; print(sys.prefix, 'torch' in sys.modules)")
    assert done.stdout == f"{sys.prefix} False\n"


def test_until_the_server_answers_a_stage_runs_by_itself(folder):
    with warmed(environment(1)) as binaries:
        done = python(binaries, folder, "-m", "stages.says", "0")
    assert done.returncode == 0 and done.stderr == "to stderr False\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_stage_ends_with_its_asker(binaries, folder, gone, number):
    with subprocess.Popen([str(binaries / "python"), "-m", "stages.waits"], cwd=folder) as asker:
        until = time.monotonic() + 20
        while not ((folder / "pid").is_file() and (folder / "pid").read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        pid = int((folder / "pid").read_text())
        assert pid != asker.pid
        asker.send_signal(number)
        assert asker.wait(20)
    assert gone(pid) and (folder / "told").exists()
    if number != signal.SIGKILL:
        assert asker.returncode == 128 + signal.SIGINT


def test_a_stage_that_is_killed_is_a_failure_that_says_so(binaries, folder):
    (folder / "stages" / "says.py").write_text("import os; os.kill(os.getpid(), 9)")
    done = python(binaries, folder, "-m", "stages.says")
    assert done.returncode == 128 + signal.SIGKILL and "was killed" in done.stderr


def test_the_server_ends_with_its_context(gone):
    with warmed(environment(1)) as binaries:
        running = {each.pid: each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])}
        servers = [pid for pid, words in running.items() if str(binaries / "socket") in words]
    assert servers and all(map(gone, servers))
