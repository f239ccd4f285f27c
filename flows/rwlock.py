"""DVC's list of who reads and writes which file, freed of what dead processes left in it.

DVC checks only that a listed process id exists. After a crash or a restart of the machine the id may belong to
anything, and every run then ends with "is busy"; a file cut short by a full disk breaks every run as well.
"""

import json
import os
from pathlib import Path

import psutil
from dvc.lock import make_lock


def heal(root: Path) -> bool:
    """Remove `.dvc/tmp/rwlock` if it is unreadable or lists no process that is a live DVC; whether it was removed."""
    folder = root / ".dvc" / "tmp"
    lock = folder / "rwlock"
    if not lock.exists():
        return False
    # the guard under which DVC itself rewrites the file: without it a file being written looks unreadable
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):
        try:
            text = lock.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        if any(owns(pid, command) for pid, command in owners(text)):
            return False
        lock.unlink()
    return True


def owners(text: str) -> set[tuple[int, str]]:
    """Process ids and commands listed in the file's text; none if it is not what DVC writes."""
    try:
        listed = json.loads(text)
        writers = list(listed.get("write", {}).values())
        readers = [reader for several in listed.get("read", {}).values() for reader in several]
        return {(int(owner["pid"]), str(owner["cmd"])) for owner in writers + readers}
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()


def owns(pid: int, command: str) -> bool:
    """Whether process `pid` is alive and is DVC or runs the listed command (a program that imports DVC).

    In doubt yes: a lock taken away from its owner makes DVC fail on release.
    """
    if pid == os.getpid():  # we hold nothing yet: an earlier process had our id
        return False
    try:
        process = psutil.Process(pid)
        arguments = [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # someone else's process, so not one that writes in this repository
        return False
    if any(Path(argument).name == "dvc" or argument.endswith("dvc/__main__.py") for argument in arguments):
        return True
    # `python -m flows.runner a` is listed as `/.../flows/runner.py a`
    program, *rest = command.split() or [""]
    running = " ".join(arguments)
    return bool(program) and Path(program).stem in running and running.endswith(" ".join(rest))
