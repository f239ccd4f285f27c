"""`python -m stages.X` without the seconds that each process spends on importing torch, transformers and lm-eval.

`python -P warm.py serve SOCKET` imports them once, when the first stage is started, and for every later one forks a
child which runs that stage's own module from the working directory, as `python -m` would. `python warm.py ask SOCKET
-m stages.X ...` takes the place of the stage's process: same output, same exit status, and what interrupts it
interrupts the child. Until the server answers, and for anything but a stage, it becomes the real interpreter.

Nothing under stages/ is imported before the fork, so edits count. Where there is a GPU nothing is served, since CUDA
does not survive a fork. Standard library only, up to the serving.
"""

import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

HEAVY = ("torch", "transformers.models.llama.modeling_llama", "lm_eval.evaluator", "lm_eval.tasks", "h5py", "pandas",
         "pyarrow.parquet", "scipy.stats", "altair", "vl_convert", "datasets")  # fmt: skip
GRACE = 5.0
"""Seconds between the signals to a child whose asker wants it to end or is gone."""


def serve(path: str) -> None:
    """Until it is terminated: a child for every request, once one was wished for."""
    with listening_at(f"{path}.wish") as wished:
        wished.accept()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # else the question alone would start CUDA
    for name in HEAVY:
        __import__(name)
    if sys.modules["torch"].cuda.device_count():
        return
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with listening_at(path) as listening:
        while True:
            asked, _ = listening.accept()
            if os.fork() == 0:
                try:
                    listening.close()
                    perform(asked)
                finally:
                    os._exit(1)  # an asker that left before it had asked
            asked.close()


def listening_at(path: str) -> socket.socket:
    """A socket that is in its place once it answers."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"{path}.new")
    made.listen()
    os.rename(f"{path}.new", path)
    return made


def perform(asked: socket.socket) -> None:
    """Runs the stage that is asked for, with the asker's output, directory and environment, and never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size = int.from_bytes(asked.recv(8, socket.MSG_WAITALL), "big")
    request = json.loads(asked.recv(size, socket.MSG_WAITALL))
    _, handed, _, _ = socket.recv_fds(asked, 1, 2)
    for number, handle in zip((1, 2), handed, strict=True):
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path.insert(0, request["directory"])
    sys.argv = ["", *request["arguments"]]
    threading.Thread(target=end_with, args=(asked,), daemon=True).start()
    status = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # the asker may be gone
        asked.sendall(bytes([status]))
    os._exit(status)


def end_with(asked: socket.socket) -> None:
    """Ends this process, more and more firmly, once its asker says so or is gone."""
    asked.recv(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)
        time.sleep(GRACE)


def ask(path: str, words: list[str]) -> int:
    """The stage's exit status."""
    asking = connected(path) if words[:1] == ["-m"] and words[1].startswith("stages.") else None
    if asking is None:
        os.execv(sys.executable, [sys.executable, *words])
    with asking:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: asking.shutdown(socket.SHUT_WR))
        request = {"module": words[1], "arguments": words[2:], "directory": os.getcwd()}
        encoded = json.dumps(request | {"environment": dict(os.environ)}).encode()
        asking.sendall(len(encoded).to_bytes(8, "big") + encoded)
        socket.send_fds(asking, [b" "], [1, 2])
        status = asking.recv(1)
    if not status:
        print("The stage's process was killed, perhaps for want of memory; free some and run again.", file=sys.stderr)
    return status[0] if status else 128 + signal.SIGKILL


def connected(path: str) -> socket.socket | None:
    """The server, if it answers yet; if not, it now knows that someone wished it did."""
    for place in (path, f"{path}.wish"):
        made = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            made.connect(place)
            if place == path:
                return made
        made.close()
    return None


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
