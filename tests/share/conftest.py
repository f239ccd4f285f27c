"""A toy blade built once, and a team's two machines: clones of one git repository around a real server."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import toy
from servers import SECRET, Relay, http, s3, sshd

from flows import processes
from flows.dag import read_dag
from flows.runner import run
from flows.share import share
from stages import specialize

TARGETS = ["inject@blade"]


def git(root: Path, *words: str) -> str:
    """What git prints, as a person without a configuration of their own."""
    own = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]
    return subprocess.run(["git", *own, *words], cwd=root, check=True, capture_output=True, text=True).stdout


def dvc(root: Path, *words: str) -> str:
    """What DVC prints."""
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


@dataclass
class Remote:
    """A server's directory, seen from machines."""

    url: str
    directory: Path
    """What the remote's address means on this disk."""
    writes: str | None = None
    """The address by which it is written, where that is another."""
    relay: Relay | None = None
    options: dict = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def share(self, root: Path, again: bool = False) -> str:
        """Set up on one machine; `again` as on a machine whose clone brings the address along."""
        return share(root, None if again else self.url, environment=self.environment, **self.options)


@pytest.fixture(scope="session")
def quickly(binaries: Path) -> Iterator[None]:
    """Stages run without importing everything anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "warmed", lambda _: nullcontext(binaries))
        yield


@pytest.fixture(scope="session")
def built(quickly: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy experiment up to one blade, committed; look, but do not touch."""
    root = toy.experiment(tmp_path_factory.mktemp("team") / "built")
    run(read_dag(root, ["fetch@target"]))
    specialize.main("sibling", root / "data/models/target", root / "data/donors/sibling", root / "params.yaml")
    toy.commit(root, "specialize@sibling")
    run(read_dag(root, TARGETS))
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "Build a blade")
    return root


@pytest.fixture
def first(built: Path, tmp_path: Path) -> Path:
    """The machine that built the blade; its git remote is `origin`, a bare repository."""
    root = shutil.copytree(built, tmp_path / "first", symlinks=True)
    git(tmp_path, "clone", "--quiet", "--bare", str(root), "origin")
    git(root, "remote", "add", "origin", "../origin")
    return root


@pytest.fixture(params=["directory", "ssh", "s3", "http"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    """A real server of each kind, behind a relay."""
    store, scratch = tmp_path / "store" / "bucket", tmp_path / "server"
    store.mkdir(parents=True)
    scratch.mkdir()
    with ExitStack() as stack:
        match request.param:
            case "directory":
                yield Remote(str(store), store)
            case "ssh":
                port, key = stack.enter_context(sshd(scratch))
                relay = stack.enter_context(Relay(port))
                yield Remote(f"ssh://127.0.0.1:{relay.port}{store}", store, None, relay, {"key": key})
            case "s3":
                relay = stack.enter_context(Relay(stack.enter_context(s3(store.parent))))
                secrets = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": SECRET}
                place = {"endpoint": f"http://127.0.0.1:{relay.port}"}
                yield Remote("s3://bucket/team", store / "team", None, relay, place, secrets)
            case _:
                relay = stack.enter_context(Relay(stack.enter_context(http(store))))
                secrets = {"REMOTE_USER": "team", "REMOTE_PASSWORD": SECRET}
                yield Remote(f"http://127.0.0.1:{relay.port}/", store, str(store), relay, {}, secrets)


@pytest.fixture
def second(first: Path, remote: Remote, tmp_path: Path) -> Path:
    """The machine beside it: a clone of what the first one pushed, with access to the remote."""
    return clone(first, remote, tmp_path)


def clone(first: Path, remote: Remote, place: Path) -> Path:
    """The first machine shares all it has by git and by the remote; a clone with access to it."""
    from flows.transfer import transfer

    if remote.writes:
        share(first, remote.writes)
        transfer("push", first)
    remote.share(first)
    git(first, "commit", "--quiet", "--all", "--message", "Share")
    git(first, "push", "--quiet", "origin", "HEAD:refs/heads/" + git(first, "branch", "--show-current").strip())
    if not remote.writes:
        transfer("push", first)
    git(place, "clone", "--quiet", "origin", "second")
    remote.share(place / "second", again=True)
    return place / "second"
