"""Git, asked one question at a time."""

import subprocess
from pathlib import Path


class GitError(RuntimeError):
    """A git command failed; one sentence with the remedy."""


def git(where: Path, *arguments: str, fallible: bool = False) -> str:
    """What the command prints; raises GitError with git's last line if it fails, gives "" if it may."""
    done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True, check=False)
    if done.returncode and not fallible:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise GitError(f"git {' '.join(arguments)} failed in {where}, saying {said!r}; mend that and run again.")
    return "" if done.returncode else done.stdout.strip()
