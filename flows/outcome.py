"""What can become of a stage, and how DVC's lines say so."""

import re
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ran", "cached", "unchanged"]
ADVICE = re.compile(
    r"(Generating|Updating) lock file 'dvc.lock'|To track the changes with git, run:|\tgit add |Use `dvc push` to send"
    r"|To enable auto staging, run:|\tdvc config core.autostage true|Data and pipelines are up to date"
)
"""What DVC tells someone at a prompt after every stage; left out here."""


@dataclass(frozen=True)
class StageResult:
    """How one stage ended well."""

    stage: str
    outcome: Outcome
    """ran: its command ran; cached: DVC had the outputs of these very inputs; unchanged: nothing was to do."""
    seconds: float


class StageFailed(RuntimeError):
    """A stage's command or DVC itself failed; the message ends with the last lines that they printed."""

    def __init__(self, stage: str, status: int, lines: tuple[str, ...]):
        self.stage, self.status, self.lines = stage, status, lines
        super().__init__(stage, status, lines)  # what pickle rebuilds it from

    def __repr__(self) -> str:
        return f"StageFailed({self.stage!r})"

    @property
    def headline(self) -> str:
        """The message without the lines."""
        # DVC ends with 255 whenever a command fails and shows that command's own status in its last line
        return f"Stage {self.stage!r} failed" + ("" if self.status == 255 else f" with exit status {self.status}")

    def __str__(self) -> str:
        shown = "".join(f"\n    {line}" for line in self.lines) or " (none)"
        return f"{self.headline}; its last lines:{shown}"


class RemoteFailed(StageFailed):
    """The exchange with the DVC remote failed: `stage` is pull or push."""

    @property
    def headline(self) -> str:
        return f"dvc {self.stage} failed"


class StageStopped(RuntimeError):
    """The run is stopping, so this stage was interrupted or never started."""


PASSING = re.compile(
    r"unable to acquire lock|is busy, it is being blocked by|timed out|timeout(error)?\b|check your internet connection"
    r"|(temporary failure in|failure in) name resolution|name or service not known|network is unreachable"
    r"|connection (refused|reset|aborted|closed|lost|error)|connectionerror|connecterror|remotedisconnected"
    r"|incompleteread|broken pipe|could not connect|too many requests|slowdown|service ?unavailable|bad gateway"
    r"|gateway time-?out|connect call failed|no route to host",
    re.IGNORECASE,
)
"""What a lock held by another, an unreachable remote and a busy hub print; a later try may find them well."""
LATE = "it exceeded its time limit"


def may_pass(error: StageFailed) -> bool:
    """Whether trying again can help: for a lock, the remote or the hub, not for what would fail in the same way."""
    return not any(line.startswith(LATE) for line in error.lines[-1:]) and any(
        PASSING.search(line) for line in error.lines
    )


def verdict(line: str, stage: str) -> Outcome | None:
    """What a line of DVC says has become of the stage, None if it says nothing about that."""
    name = re.escape(stage)
    if re.match(rf"Running stage '{name}'", line):
        return "ran"
    if re.match(rf"Stage '{name}' is cached - skipping run", line):
        return "cached"
    if re.match(rf"(Stage )?'{name}' didn't change, skipping", line):
        return "unchanged"
    return None
