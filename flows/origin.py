"""What a run stands on: its git commit, what is edited since, and which params differ from the commit's."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.dag import quiet
from flows.git import git


@dataclass(frozen=True)
class Origin:
    """Where a run's inputs come from."""

    commit: str
    """The commit's short hash; "" where there is none."""
    edited: tuple[str, ...] = ()
    """Tracked files that differ from the commit; dvc.lock, which runs write, left out."""
    params: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Dotted key → value in the commit and in the run, None where it has none."""

    def __str__(self) -> str:
        return f"{self.commit or 'no commit'}{'+' if self.edited else ''}"


def origin(root: Path) -> Origin:
    """The origin of a run in the repository at `root`."""
    commit = short_commit(root)
    if not commit:
        return Origin("")
    listed = git(root, "diff", "--name-only", "--relative", "HEAD", "--", ".", ":(exclude)*dvc.lock").splitlines()
    with contextlib.chdir(root), quiet(), Repo(str(root)) as repo:
        try:
            found = repo.params.diff().get("diff", {})
        except DvcException:  # params.yaml cannot be read, which the run itself will say
            found = {}
    changed = {key: (each.get("old"), each.get("new")) for file in found.values() for key, each in sorted(file.items())}
    return Origin(commit, tuple(listed), changed)


def short_commit(root: Path) -> str:
    """The commit's short hash, "" outside git and before the first commit."""
    return git(root, "rev-parse", "--verify", "--quiet", "--short", "HEAD", fallible=True)
