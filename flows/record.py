"""What a run leaves on the Prefect server beside states and logs: artifacts. A lost server ends the record alone."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

from flows.dag import Dag
from flows.origin import Origin
from flows.outcome import StageFailed, StageResult
from flows.request import Finished, Request
from flows.results import PAGE
from flows.server import answers

REASONS = {
    "ran": "its inputs were new to DVC, or it was forced",
    "cached": "DVC had the outputs of these inputs",
    "unchanged": "nothing was to do",
    "failed": "its last lines are in the artifact graftline-failure",
}


class Record:
    """The artifacts of one run, made in its flow's thread.

    graftline-run says what was asked for and what it stands on, graftline-progress how far it has come,
    graftline-stages how each stage ended, graftline-results what the report found, graftline-report where the page
    is, graftline-failure why it failed.
    """

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter) -> None:
        self._logger = logger
        self._lost = False
        self._progress: UUID | None = None
        self._changed: frozenset[str] = frozenset()
        self._done: dict[str, StageResult] = {}

    def begin(self, request: Request, dag: Dag, origin: Origin) -> None:
        """The run is about to start its stages."""
        self._changed = dag.changed
        self._keep(create_markdown_artifact, described(request, origin), key="graftline-run", description="What ran")
        told = f"{len(dag.changed)} of {len(dag.stages)} stages to bring up to date"
        progress = 0.0 if dag.changed else 100.0
        self._progress = self._keep(create_progress_artifact, progress, key="graftline-progress", description=told)

    def ended(self, result: StageResult) -> None:
        """A stage has ended well."""
        self._done[result.stage] = result
        if self._progress and result.stage in self._changed:
            share = len(self._changed & self._done.keys()) / len(self._changed)
            self._keep(update_progress_artifact, artifact_id=self._progress, progress=round(100 * share, 1))

    def finish(self, request: Request, finished: Finished) -> None:
        """The run has ended well."""
        self._stages()
        if finished.results:
            self._keep(
                create_markdown_artifact, f"```\n{finished.results}\n```", key="graftline-results",
                description="What the report found, with 95 % intervals",
            )  # fmt: skip
        page = finished.dag.root / PAGE
        if page.exists() and not request.overrides:  # an experiment's files are gone with its clone
            self._keep(
                create_link_artifact, page.resolve().as_uri(), "The report's page", key="graftline-report",
                description="On the machine of the run; browsers open it from disk only",
            )  # fmt: skip

    def failed(self, error: StageFailed) -> None:
        """A stage or a transfer has failed."""
        self._stages({"stage": error.stage, "outcome": "failed", "seconds": "", "why": REASONS["failed"]})
        lines = "\n".join(error.lines)
        self._keep(
            create_markdown_artifact,
            f"**{error.headline}.** Its last lines:\n\n```\n{lines}\n```\n\nWhat is finished stays: mend the cause and "
            "run again to go on from there.",
            key="graftline-failure", description=error.headline,
        )  # fmt: skip

    def _stages(self, *more: dict[str, Any]) -> None:
        rows = [
            {"stage": name, "outcome": each.outcome, "seconds": round(each.seconds, 1), "why": REASONS[each.outcome]}
            for name, each in sorted(self._done.items(), key=lambda item: item[1].outcome != "ran")
        ]
        told = counted(row["outcome"] for row in [*more, *rows])
        self._keep(create_table_artifact, [*more, *rows], key="graftline-stages", description=f"Stages: {told}")

    def _keep(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The artifact's id; None, and nothing more is recorded, once the server does not answer."""
        url = PREFECT_API_URL.value()
        if not self._lost and url and not answers(url):
            self._lose("it does not answer")
        if self._lost:
            return None
        try:
            return make(*arguments, **options)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            self._lose(str(error).splitlines()[0])

    def _lose(self, reason: str) -> None:
        self._lost = True
        self._logger.warning("The Prefect server is lost (%s): the work goes on without a record.", reason)


def counted(outcomes: Iterable[str]) -> str:
    """`3 ran, 5 unchanged`, in order of first appearance."""
    return ", ".join(f"{count} {outcome}" for outcome, count in Counter(outcomes).items())


def described(request: Request, origin: Origin) -> str:
    """The run's request and origin in Markdown."""
    where = f"`{origin.commit}`" if origin.commit else "none"
    if origin.edited:
        where += f" with uncommitted edits of {', '.join(f'`{name}`' for name in origin.edited)}"
    options = [name for name in ("force", "pull", "push") if getattr(request, name)]
    rows = {
        "Git commit": where,
        "Targets": ", ".join(f"`{target}`" for target in request.targets) or "all stages",
        "Options": ", ".join(options) or "none",
        "DVC experiment": f"`{request.experiment}`" if request.experiment else "none, the workspace itself",
    }
    text = "| asked for | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    if not origin.params:
        return f"{text}\n\n{'No param differs from the commit.' if origin.commit else ''}"
    text += "\n\n| param | in the commit | in this run |\n|---|---|---|\n"
    return text + "\n".join(f"| `{key}` | {old} | {new} |" for key, (old, new) in origin.params.items())
