"""A command that cannot outlive whoever started it: `python -I -S supervise.py PARENT_PID COMMAND...`.

The exit status is the command's own (128 + N if signal N ended it). The command gets a process group to itself.
When this process is told to stop (SIGINT, SIGTERM, SIGHUP), when its parent dies (even by SIGKILL) or when the
command ends and leaves something behind, the whole group is ended: interrupted, then terminated, then killed. DVC
needs the group: told to stop alone, it leaves its stage writing.

On Linux the kernel reports the parent's death and hands over orphans that left the group, which are ended as well.
Elsewhere the parent is looked up twice a second and only the group is covered. Nothing covers a SIGKILL of this
process itself. Standard library only, and little of it, so that it starts at once.
"""

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable

INTERRUPT = ((0.0, signal.SIGINT), (5.0, signal.SIGTERM), (10.0, signal.SIGKILL))
"""After how many seconds a command that must stop gets which signal; Prefect kills the flow itself after 30.

The second matters even for the well-behaved: a shell that is just starting a program swallows SIGINT.
"""
CLEAR = ((1.0, signal.SIGTERM), (6.0, signal.SIGKILL))
"""The same for what an ended command left behind: it may finish writing; a shell's background jobs ignore SIGINT."""
GIVE_UP = 20.0
"""Seconds after which a process that even SIGKILL does not end (stuck in a driver) is left behind."""
POLL = 0.5
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def supervise(parent: int, command: list[str]) -> int:
    """Run the command to its end, or to ours, and return its exit status."""
    asked, bell = listen()
    tie_to_parent()
    if os.getppid() != parent:  # it died before we could ask to be told
        return 128 + signal.SIGTERM
    # a shell that runs us in the background has SIGINT ignored, and what is ignored is inherited
    reset = [*STOPPING, signal.SIGPIPE]
    child = os.posix_spawnp(command[0], command, os.environ, setpgroup=0, setsigdef=reset)

    status, group = None, True
    plan, began, sent = INTERRUPT, None, 0
    while True:
        ended, children = reap()
        if child in ended:
            status = ended[child]
            plan, began, sent = CLEAR, None, 0
        group = group and send(0, os.killpg, child)
        if status is not None and not children and not group:
            return status if status >= 0 else 128 - status
        if asked or status is not None or os.getppid() != parent:
            began = began or time.monotonic()
            passed = time.monotonic() - began
            if passed > GIVE_UP:
                return 128 + signal.SIGKILL
            due = sum(passed >= seconds for seconds, _ in plan)
            # the last one again and again: killing a parent hands its orphans to us
            if due > sent or due == len(plan):
                sent, number = due, plan[due - 1][1]
                if group:
                    send(number, os.killpg, child)
                for orphan in orphans() if status is not None else ():
                    send(number, os.kill, orphan)
        bell()


def listen() -> tuple[list[int], Callable[[], None]]:
    """The list that collects the signals asking us to stop, and a function that waits POLL seconds or for a signal."""
    heard, speaks = os.pipe()
    os.set_blocking(heard, False)
    os.set_blocking(speaks, False)
    signal.set_wakeup_fd(speaks, warn_on_full_buffer=False)
    asked: list[int] = []
    # a handler that does nothing, because without one the signal wakes nobody
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in STOPPING:
        signal.signal(number, lambda number, frame: asked.append(number))

    def bell() -> None:
        if select.select([heard], [], [], POLL)[0]:
            os.read(heard, 512)

    return asked, bell


def tie_to_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies and for every orphan among our descendants; elsewhere do nothing."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> tuple[dict[int, int], bool]:
    """Exit status by process id of the children that have ended, and whether any are left."""
    ended: dict[int, int] = {}
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return ended, True
            ended[pid] = os.waitstatus_to_exitcode(status)
    except ChildProcessError:
        return ended, False


def orphans() -> list[int]:
    """Our living children: once the command has ended, the orphans that it left (Linux; elsewhere none)."""
    found = []
    for entry in os.listdir("/proc") if sys.platform == "linux" else ():
        try:
            with open(f"/proc/{entry}/stat", errors="replace") as stat:
                # the name in parentheses may hold anything, so fields count from its end
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except OSError:  # not a process, or no longer
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(entry))
    return found


def send(number: int, kill: Callable[[int, int], None], receiver: int) -> bool:
    """Whether `receiver` was there to get signal `number` (0 only asks)."""
    try:
        kill(receiver, number)
    except (ProcessLookupError, PermissionError):  # macOS forbids signalling a group of zombies
        return False
    return True


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), sys.argv[2:]))
