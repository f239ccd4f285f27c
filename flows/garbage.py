"""Results that nothing uses any more, removed: `python -m flows.garbage [--cloud] [--clones DIR...]`.

Kept is what the workspace, any branch, any tag or any experiment uses, here and in every git remote: `dvc gc` by itself
sees local branches only, and would take from the remote what a colleague's branch needs.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dvc.repo import Repo

from flows.dag import quiet
from flows.git import GitError, git
from flows.processes import inherited

KEPT = ["--workspace", "--all-branches", "--all-tags", "--all-experiments"]


class GarbageError(RuntimeError):
    """Nothing was removed; the message is one sentence with the remedy."""


def collect(root: Path, cloud: bool = False, clones: Sequence[Path] = (), dry: bool = False) -> str:
    """Remove from the cache, and with `cloud` from the remote too, what nothing uses; DVC's words on how much.

    `clones` are other clones whose workspaces count as users. Raises GarbageError, before anything is removed, where a
    git remote does not answer or where the cache is shared and no clones are named.
    """
    with quiet(), Repo(str(root)) as repo:
        shared = "dir" in repo.config["cache"]
    if shared and not clones:
        raise GarbageError(
            "This cache is shared with other clones on this host, whose uncommitted results nobody knows here; name "
            "the clones by --clones."
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            everything = mirror(root, Path(scratch) / "mirror")
        except GitError as error:
            raise GarbageError(
                f"Expected git to list every branch, tag and experiment that may need a result; nothing was removed, "
                f"since {error}"
            ) from error
        projects = [str(path.resolve()) for path in (everything, *clones)]
        command = [sys.executable, "-m", "dvc", "gc", "--force", *KEPT, "--projects", *projects]
        command += ["--cloud"] if cloud else []
        command += ["--dry"] if dry else []
        done = subprocess.run(
            command, cwd=root, env=inherited() | {"DVC_NO_ANALYTICS": "1"}, capture_output=True, text=True
        )
    if done.returncode:
        raise GarbageError(f"DVC could not collect garbage: {' '.join(done.stderr.split())[-300:]}")
    return "\n".join(line for line in done.stdout.splitlines() if "emove" in line)


def mirror(root: Path, place: Path) -> Path:
    """A clone in which every branch, tag and experiment of the repository and of all its git remotes is a local one."""
    git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root.resolve()), str(place))
    git(place, "checkout", "--quiet", "--detach")
    sources = {"here": str(root.resolve())}
    for name in git(root, "remote").split():
        sources[name] = git(root, "remote", "get-url", name)
    for name, address in sources.items():
        # a relative address is relative to the repository
        address = str((root / address).resolve()) if (root / address).exists() else address
        git(
            place, "fetch", "--quiet", "--force", "--no-tags", address, f"+refs/heads/*:refs/heads/{name}/*",
            "+refs/tags/*:refs/tags/*", "+refs/exps/*:refs/exps/*",
        )  # fmt: skip
    return place


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 1 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m flows.garbage", description="Remove results that nothing uses.")
    parser.add_argument("--cloud", action="store_true", help="from the remote as well")
    parser.add_argument("--clones", nargs="*", type=Path, default=[], help="clones that share this one's cache")
    parser.add_argument("--dry", action="store_true", help="say what would go, remove nothing")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    options = parser.parse_args(argv)
    try:
        print(collect(options.root, options.cloud, options.clones, options.dry))
    except GarbageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
