"""What a team's remote knows, fetched and sent: `python -m flows.transfer pull|push [targets...]`.

As `dvc pull --run-cache` and `dvc push --run-cache`, but nothing that went wrong passes unsaid: a server cut off in the
middle, an object that is damaged at the remote, an entry of the run-cache that came over in part.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dvc.repo import Repo

from flows.dag import quiet
from flows.processes import Direction, inherited, moving
from flows.rwlock import heal
from flows.soundness import damaged, unsound_runs

REFUSALS = {
    "No remote": "There is no remote to {verb} {way}; run `make share REMOTE=...` first.",
    "no remote": "There is no remote to {verb} {way}; run `make share REMOTE=...` first.",
    "Unable to acquire lock": "Another DVC command is at work in this repository; run again when it has ended.",
}


class TransferFailed(RuntimeError):
    """Something did not come over; the message is one sentence, and the same command goes on from there."""


def transfer(direction: Direction, root: Path, targets: Sequence[str] = ()) -> str:
    """Everything, or the targets with their upstreams, to or from the remote; a sentence on what came over.

    Raises TransferFailed. What came over before it stays, and the next call takes up there.
    """
    heal(root)
    url = remote_url(root)
    if direction == "push" and url.startswith("http"):
        raise TransferFailed(f"{url} can be read only; push to the server's directory by ssh:// or from its own host.")
    command = [sys.executable, "-m", "dvc", *moving(direction, targets)]
    # DVC keeps a shared directory's modes for objects, and leaves those of the run-cache to the umask
    done = subprocess.run(
        command, cwd=root, env=inherited() | {"DVC_NO_ANALYTICS": "1"}, capture_output=True, text=True, umask=0o002
    )
    if direction == "pull":
        lost = unsound_runs(root)
        bad = damaged(root, missing_only=True)  # DVC drops them and, allowed to miss some, says nothing
        if bad:
            raise TransferFailed(
                f"{url} holds damaged objects: {', '.join(map(str, bad))}; a machine that has them whole mends them by "
                "`python -m flows.soundness --mend`."
            )
        if lost:
            raise TransferFailed(
                f"{url} sent entries of the run-cache that are damaged: {', '.join(lost)}; they are left out, so run "
                "again, and if they come again delete them there."
            )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    if done.returncode or errors:
        raise TransferFailed(explained(errors or done.stderr.splitlines()[-1:], direction, url))
    return f"{direction}: {(done.stdout.strip().splitlines() or ['everything is there'])[-1].rstrip('.')}."


def explained(errors: Sequence[str], direction: Direction, url: str) -> str:
    """One sentence for what DVC said at length."""
    verb, way = direction, "to" if direction == "push" else "from"
    for sign, sentence in REFUSALS.items():
        if any(sign in line for line in errors):
            return sentence.format(verb=verb, way=way)
    first = errors[0].removeprefix("ERROR: ").rstrip(".") if errors else "DVC ended without a word"
    return f"Not everything came over ({len(errors)} errors, the first: {first}); run `make {verb}` again to go on."


def remote_url(root: Path) -> str:
    """The default remote's address; TransferFailed where there is none."""
    with quiet(), Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        known = repo.config["remote"].get(name, {}) if name else {}
    if "url" not in known:
        raise TransferFailed("There is no remote yet; run `make share REMOTE=...` first.")
    return str(known["url"])


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 1 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m flows.transfer", description="Fetch from or send to the remote.")
    parser.add_argument("direction", choices=["pull", "push"])
    parser.add_argument("targets", nargs="*", help="stages; they bring their upstreams along (default: all)")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    options = parser.parse_args(argv)
    try:
        print(transfer(options.direction, options.root, options.targets))
    except TransferFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
