"""A worker's own clone of the repository, kept from point to point, in which nobody else works meanwhile."""

import contextlib
import fcntl
import itertools
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from dvc.repo import Repo

from flows.dag import DagError, quiet
from flows.experiment import share_storage
from flows.git import git

SHELF = "GRAFTLINE_CLONES"
"""Environment variable with the directory of a machine's clones."""


@contextlib.contextmanager
def workplace(address: str, commit: str, folder: str = ".") -> Iterator[Path]:
    """The DVC repository in `folder` of a clone of the git address, at the commit.

    The first clone that is free is taken, or one more is made; a killed worker's is free again. Clones of a repository
    on this machine share its cache and its remotes; clones of a server's share a cache beside them, and their remotes
    are those that git carries. Raises DagError where the address lacks the commit, GitError where git fails.
    """
    shelf = Path(os.environ.get(SHELF) or Path.home() / ".cache" / "graftline" / "clones").expanduser()
    last = re.sub(r"[^A-Za-z0-9_-]+", "-", address.rstrip("/").rpartition("/")[2].removesuffix(".git"))
    shelf = shelf / f"{last}-{zlib.crc32(address.encode()):08x}"
    shelf.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        with (shelf / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield prepared(shelf / str(number), address, commit, folder)
            return


def prepared(clone: Path, address: str, commit: str, folder: str) -> Path:
    """The clone at the commit, its storage set up."""
    if not (clone / ".git" / "config").exists():
        git(clone.parent, "init", "--quiet", str(clone))
        for key in ("user.name", "user.email"):
            if not git(clone, "config", key, fallible=True):
                git(clone, "config", key, "graftline")
    if not has(clone, commit):
        git(clone, "fetch", "--quiet", address, "+refs/heads/*:refs/remotes/origin/*")
    if not has(clone, commit):  # on no branch, but a server may give it all the same
        git(clone, "fetch", "--quiet", address, commit, fallible=True)
    if not has(clone, commit):
        raise DagError(f"Expected commit {commit[:12]} at {address}, found none; push it there and run again.")
    (clone / ".git" / "index.lock").unlink(missing_ok=True)  # a killed worker's: nobody else is in here
    git(clone, "checkout", "--quiet", "--force", "--detach", commit)
    place, source = clone / folder, Path(address) / folder
    if (source / ".dvc").is_dir():
        share_storage(source, place)
    else:
        with quiet(), Repo(str(place)) as repo:
            if not repo.config["cache"].get("dir"):
                with repo.config.edit("local") as local:
                    local["cache"] = {"dir": str(clone.parent / "cache")}
    return place


def has(clone: Path, commit: str) -> bool:
    """Whether the clone has the commit, complete."""
    return bool(git(clone, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", fallible=True))
