"""What a team knows of a commit's experiments: those here and those in the git remote, by name."""

from collections.abc import Iterable
from pathlib import Path

from flows.git import git


def ref(commit: str, name: str) -> str:
    """Where git keeps the experiment `name` that stands on the commit, here as in every clone."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def meeting_place(root: Path) -> str:
    """Where experiments are exchanged: the git remote `origin`, or the repository itself where it has none."""
    top = Path(git(root, "rev-parse", "--show-toplevel"))
    address = git(root, "remote", "get-url", "origin", fallible=True)
    if not address:
        return str(top)
    # a relative one is relative to the repository, and is to mean the same in clones
    return str((top / address).resolve()) if (top / address).exists() else address


def here(root: Path, commit: str) -> set[str]:
    """Names of the commit's experiments in this repository."""
    return names(git(root, "for-each-ref", "--format=%(objectname) %(refname)", ref(commit, "")), commit)


def there(root: Path, address: str, commit: str) -> set[str]:
    """Names of the commit's experiments at a git address; raises GitError where it does not answer."""
    return names(git(root, "ls-remote", address, ref(commit, "*")), commit)


def names(listed: str, commit: str) -> set[str]:
    """The names in lines of object and ref."""
    prefix = ref(commit, "")
    return {line.split()[1].removeprefix(prefix) for line in listed.splitlines() if prefix in line}


def bring(root: Path, address: str, commit: str, wanted: Iterable[str]) -> None:
    """Have these experiments here too."""
    if specs := [f"+{ref(commit, name)}:{ref(commit, name)}" for name in sorted(wanted)]:
        git(root, "fetch", "--quiet", address, *specs)


def give(root: Path, address: str, commit: str, wanted: Iterable[str]) -> None:
    """Have these experiments there too, as `dvc exp push` does; their data goes by the DVC remote."""
    if specs := [f"+{ref(commit, name)}:{ref(commit, name)}" for name in sorted(wanted)]:
        git(root, "push", "--quiet", address, *specs)


def reachable(root: Path, address: str, commit: str) -> bool:
    """Whether clones of the address will have the commit: one of its branches, as far as known here, contains it."""
    tips = {line.split()[0] for line in git(root, "ls-remote", address, "HEAD", "refs/heads/*").splitlines()}
    branches = git(root, "for-each-ref", f"--contains={commit}", "--format=%(objectname)", fallible=True).split()
    return commit in tips or bool(tips & set(branches))
