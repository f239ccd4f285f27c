"""A run with other params, in a clone of its own: the user's files stay as they are, the result is a DVC experiment."""

import contextlib
import fcntl
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from flows.dag import DagError, one_line, quiet
from flows.git import git
from stages.errors import nearest

PARAMS = "params.yaml"
LINKS = ["reflink", "hardlink", "symlink", "copy"]
"""How a clone takes outputs from the cache: it edits none, so it need not own them."""


@contextlib.contextmanager
def changed_clone(root: Path, overrides: Sequence[str]) -> Iterator[Path]:
    """The repository as it stands, uncommitted edits of tracked files included, with `overrides` in its params.yaml.

    Overrides are those of `dvc exp run --set-param`: `inject.blade.alpha=0.9`, `+new.key=1`, `~old.key`. The clone
    shares git's objects, DVC's cache and remotes, and lies under .dvc/tmp until the context ends; what a killed run
    left there goes when the next one starts. Raises DagError without a commit to stand on and on an override that
    does not fit params.yaml, GitError where git fails.
    """
    if not git(root, "rev-parse", "--verify", "--quiet", "HEAD", fallible=True):
        raise DagError(f"Expected a git commit in {root} that an experiment can stand on, found none; commit first.")
    top = Path(git(root, "rev-parse", "--show-toplevel"))
    shelf = root / ".dvc" / "tmp" / "clones"
    shelf.mkdir(parents=True, exist_ok=True)
    clear(shelf)
    with tempfile.NamedTemporaryFile(dir=shelf, suffix=".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clone = Path(lock.name).with_suffix("")
        try:
            copy_commit(top, clone)
            place = clone / root.resolve().relative_to(top.resolve())
            override(place / PARAMS, overrides)
            share_storage(root, place)
            yield place
        finally:
            shutil.rmtree(clone, ignore_errors=True)


def clear(shelf: Path) -> None:
    """Remove the clones whose owner is dead: the kernel has taken its lock away."""
    for lock in shelf.glob("*.lock"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()


def copy_commit(top: Path, clone: Path) -> None:
    """A clone at `top`'s commit, whose files are those of `top`'s working tree as far as git tracks them."""
    who = {key: git(top, "config", key, fallible=True) or "graftline" for key in ("user.name", "user.email")}
    identity = [part for key, value in who.items() for part in ("-c", f"{key}={value}")]
    commit = git(top, "rev-parse", "HEAD")
    git(top, "update-index", "-q", "--refresh", fallible=True)  # or git takes copied files for edited, and then fails
    shown = git(top, *identity, "stash", "create") or commit  # a commit of the edits that touches nothing
    git(top, "clone", "--quiet", "--shared", "--no-checkout", str(top), str(clone))
    git(clone, "checkout", "--quiet", "--detach", commit)
    git(clone, "read-tree", "-u", "--reset", shown)
    git(clone, "reset", "--quiet")
    for key, value in who.items():
        git(clone, "config", key, value)


def override(params: Path, overrides: Sequence[str]) -> None:
    """Write the overrides into params.yaml."""
    try:
        apply_overrides(params, list(overrides))
    except DvcException as error:
        known = dotted(yaml.safe_load(params.read_text(encoding="utf-8")))
        asked = [each.lstrip("+~").partition("=")[0] for each in overrides]
        unknown = [key for key in asked if key not in known]
        hint = f"no {unknown[0]!r} there; {nearest(unknown[0], known)}" if unknown else one_line(error)
        raise DagError(
            f"Expected overrides of {PARAMS} as KEY=VALUE (+KEY=VALUE adds one, ~KEY removes one), "
            f"got {' '.join(overrides)!r}: {hint}"
        ) from error


def dotted(params: object, prefix: str = "") -> list[str]:
    """The keys of nested mappings, as overrides name them."""
    if not isinstance(params, dict):
        return []
    return [key for name, value in params.items() for key in (f"{prefix}{name}", *dotted(value, f"{prefix}{name}."))]


def share_storage(root: Path, place: Path) -> None:
    """The clone uses the cache and the remotes of `root`, whatever its config.local or the user's settings name."""
    with quiet(), Repo(str(root)) as repo, Repo(str(place)) as copy:
        with copy.config.edit("local") as local:
            local["remote"] = repo.config["remote"]
            local["core"] = {key: repo.config["core"][key] for key in ("remote",) if repo.config["core"].get(key)}
            local["cache"] = {"dir": repo.cache.local_cache_dir, "type": LINKS}
        (place / ".dvc" / "config.local").chmod(0o600)  # remotes may carry credentials


def check_out(place: Path, targets: Sequence[str] | None) -> None:
    """Put what the cache has of the targets and their upstreams into the clone at once, rather than stage by stage."""
    with contextlib.chdir(place), quiet(), Repo(str(place)) as repo:
        repo.checkout(list(targets or ()), with_deps=bool(targets), force=True, allow_missing=True)


def save(root: Path, place: Path, stage: str, name: str) -> None:
    """Keep the clone's state as an experiment of `root`, in place of one that has this name and stands on its commit.

    All stages are recorded already; DVC wants one by name so that it does not ask for those that never ran.
    """
    with contextlib.chdir(place), quiet(), Repo(str(place)) as repo:
        repo.experiments.save(targets=[stage], name=name, force=True)
    listed = git(place, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    made = next(ref for ref in listed if ref.endswith(f"/{name}"))
    git(root, "fetch", "--quiet", git(place, "rev-parse", "--show-toplevel"), f"+{made}:{made}")


def slug(overrides: Sequence[str]) -> str:
    """The overrides as a name that git accepts; a long list is cut and told apart by its checksum."""
    text = re.sub(r"[^A-Za-z0-9.+_-]+", "-", ",".join(sorted(overrides))).strip("-.")
    text = re.sub(r"\.{2,}", ".", text)
    if len(text) > 80:
        text = f"{text[:70]}-{zlib.crc32(','.join(sorted(overrides)).encode()):08x}"
    return text.removesuffix(".lock")
