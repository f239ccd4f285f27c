"""`python -m stages.X` without the seconds that each process spends on importing torch, transformers and lm-eval.

`python warm.py serve SOCKET` imports them once and then, for every stage that is started, forks a child which runs
that stage's own module from the working directory, as `python -m` would. `python warm.py ask SOCKET -m stages.X ...`
takes the place of the stage's process: same output, same exit status; anything but a stage gets the real interpreter.
Nothing under stages/ is imported before the fork, so edits count. Standard library only, up to the serving.
"""

import json
import os
import runpy
import signal
import socket
import sys

HEAVY = ("torch", "transformers.models.llama.modeling_llama", "peft", "lm_eval.evaluator", "lm_eval.tasks", "h5py",
         "pandas", "pyarrow.parquet", "scipy.stats", "altair", "vl_convert", "typer", "datasets")  # fmt: skip


def serve(path: str) -> None:
    """Until it is terminated: a child for every request."""
    for name in HEAVY:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{path}.new")
        listening.listen()
        os.rename(f"{path}.new", path)  # it is there once it answers
        while True:
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                perform(asked)
            asked.close()


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
    sys.path[0] = request["directory"]
    sys.argv = ["", *request["arguments"]]
    status = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    asked.sendall(bytes([status]))
    os._exit(status)


def ask(path: str, words: list[str]) -> int:
    """The stage's exit status."""
    if words[:1] != ["-m"] or not words[1].startswith("stages."):
        os.execv(sys.executable, [sys.executable, *words])
    request = {"module": words[1], "arguments": words[2:], "directory": os.getcwd(), "environment": dict(os.environ)}
    encoded = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        asking.sendall(len(encoded).to_bytes(8, "big") + encoded)
        socket.send_fds(asking, [b" "], [1, 2])
        return int.from_bytes(asking.recv(1) or b"\x01", "big")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(ask(sys.argv[2], sys.argv[3:]))
