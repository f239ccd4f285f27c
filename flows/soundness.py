"""Whether the remote holds what it should, object by object: `python -m flows.soundness [--mend]`."""

import argparse
import contextlib
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.stage.cache import _get_cache_hash
from dvc.utils.serialize import load_yaml

from flows.dag import quiet


@dataclass(frozen=True)
class Damaged:
    """An object at the remote whose bytes are not those of its name."""

    output: str
    """The file it belongs to."""
    path: str
    """Where it lies at the remote."""
    oid: str

    def __str__(self) -> str:
        return f"{self.output} ({self.path})"


def damaged(root: Path, missing_only: bool = False, mend: bool = False) -> list[Damaged]:
    """Objects of this commit that are cut short or corrupted at the remote, by output; it reads all of them.

    With `missing_only` just those that this machine lacks. With `mend` those that it has whole are replaced at the
    remote, and left out of the answer.
    """
    found = []
    with contextlib.chdir(root), quiet(), Repo(".") as repo:
        remote, local = repo.cloud.get_remote_odb(hash_name="md5"), repo.cache.local
        wanted = {info.value: info for infos in repo.used_objs().values() for info in infos}
        for oid, info in sorted(wanted.items()):
            if missing_only and local.fs.exists(local.oid_to_path(oid)):
                continue
            path = remote.oid_to_path(oid)
            try:
                sound = digest(remote.fs, path) == oid.partition(".")[0]
            except FileNotFoundError:  # never pushed: not there, but not wrong either
                continue
            if not sound and not (mend and replaced(remote, local, oid)):
                found.append(Damaged(info.obj_name or oid, path, oid))
    return sorted(found, key=lambda each: (each.output, each.path))


def digest(fs: Any, path: str) -> str:
    """MD5 of a file anywhere."""
    with fs.open(path, "rb") as file:
        sha = hashlib.md5(usedforsecurity=False)
        while block := file.read(2**20):
            sha.update(block)
    return sha.hexdigest()


def replaced(remote: Any, local: Any, oid: str) -> bool:
    """Whether this machine has the object whole and could put it in the place of the damaged one."""
    mine = local.oid_to_path(oid)
    if not local.fs.exists(mine) or digest(local.fs, mine) != oid.partition(".")[0]:
        return False
    remote.fs.remove(remote.oid_to_path(oid))
    remote.add(mine, local.fs, oid, check_exists=False)
    return True


def unsound_runs(root: Path) -> list[str]:
    """Entries of the run-cache whose content is not what their name is the hash of, removed; DVC would trust them."""
    lost = []
    with quiet(), Repo(str(root)) as repo:
        runs = Path(repo.cache.legacy.path) / "runs"
        for path in sorted(filter(Path.is_file, runs.glob("??/*/*"))):
            try:
                entry = load_yaml(str(path))
                value = _get_cache_hash(entry)
                names = _get_cache_hash(entry, key=True), value  # in this order: the former changes the entry
            except Exception:  # YAML's own kinds and whatever a mapping that is none makes of it
                names = None
            if names != (path.parent.name, path.name):
                path.unlink()
                lost.append(path.relative_to(runs.parent).as_posix())
    return lost


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 when everything at the remote is sound, 1 when something is not."""
    parser = argparse.ArgumentParser(prog="python -m flows.soundness", description="Check what the remote holds.")
    parser.add_argument("--mend", action="store_true", help="replace what is damaged there and whole here")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    options = parser.parse_args(argv)
    bad = damaged(options.root, mend=options.mend)
    for each in bad:
        print(f"damaged at the remote: {each}", file=sys.stderr)
    print(f"{len(bad)} objects of this commit are damaged at the remote" if bad else "what the remote holds is sound")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
