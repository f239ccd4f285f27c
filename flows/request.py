"""What a run is asked for, and the order in which that is done, whoever's hands do it."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dvc.repo import Repo

from flows.dag import Dag, DagError, read_dag, repository
from flows.experiment import changed_clone, check_out, save, slug
from flows.git import GitError
from flows.origin import Origin, origin
from flows.outcome import StageResult
from flows.processes import HOURS, StageProcesses
from flows.results import results

Heard = Callable[[str], None]
Work = Callable[[Heard], StageResult]
"""A piece of work, given what takes its lines."""


@dataclass(frozen=True)
class Request:
    """What a run is asked for."""

    targets: tuple[str, ...] = ()
    """Stages or foreach groups, with their upstreams; none are all."""
    overrides: tuple[str, ...] = ()
    """Params other than params.yaml says, as `dvc exp run --set-param` has them: the run becomes an experiment."""
    force: bool = False
    """Run every stage, whether or not its outcome is known."""
    pull: bool = False
    """Take what the DVC remote has, first."""
    push: bool = False
    """Give the DVC remote what was made, at the end."""
    workers: int = 2
    """How many stages may run at a time."""
    hours: float = HOURS
    """What one stage may take."""
    root: Path = Path()
    """The DVC repository, or a folder in it."""
    name: str = ""
    """What the experiment is called; by default its overrides."""

    @property
    def experiment(self) -> str | None:
        """The name under which the result is kept in git, if params are overridden."""
        return (self.name or slug(self.overrides)) if self.overrides else None

    @property
    def options(self) -> tuple[str, ...]:
        """What `dvc repro` is told for every stage; pulling here brings outputs that only the remote's memory knows."""
        return (*(["--force"] if self.force else []), *(["--pull"] if self.pull else []))

    @property
    def summary(self) -> str:
        """The request in a few words, to tell runs apart."""
        words = [", ".join(self.targets) or "all stages", *self.overrides, *(["forced"] if self.force else [])]
        text = "; ".join(words)
        return text if len(text) <= 100 else f"{text[:99]}…"


@dataclass(frozen=True)
class Finished:
    """A run that ended well."""

    dag: Dag
    ended: Mapping[str, StageResult]
    results: str
    """The results' table and the report's path, "" if the report was not made."""


def reproduce(
    request: Request,
    stages: Callable[[Dag, Origin], Mapping[str, StageResult]],
    transfer: Callable[[str, Work], object],
) -> Finished:
    """Do what the request asks for; `stages` brings a graph up to date, `transfer` does the work called pull or push.

    With overrides all of it takes place in a clone that is gone afterwards, and the result is kept as a DVC
    experiment. Raises DagError, and what the two raise.
    """
    if request.pull or request.push:
        check_remote(repository(request.root))
    try:
        with place(request) as here:
            if request.pull:
                with StageProcesses(here, hours=request.hours) as processes:
                    transfer("pull", lambda heard: processes.pull(heard, request.targets))
            if request.overrides:
                check_out(here, request.targets)
            dag = read_dag(here, request.targets, request.force)
            ended = stages(dag, origin(here))
            if request.experiment:
                save(repository(request.root), here, dag.stages[-1], request.experiment)
            if request.push:
                with StageProcesses(here, hours=request.hours) as processes:
                    transfer("push", lambda heard: processes.push(heard, request.targets))
            return Finished(dag, ended, results(here))
    except GitError as error:
        raise DagError(str(error)) from error


def check_remote(root: Path) -> None:
    """DVC itself calls it up to date when there is no remote to pull from."""
    with Repo(str(root)) as repo:
        if not repo.config["core"].get("remote"):
            raise DagError(
                f"Expected a default DVC remote in {root} to pull from or push to, found none; "
                "name one by `dvc remote add --default NAME URL`."
            )


@contextlib.contextmanager
def place(request: Request) -> Iterator[Path]:
    """Where the request's run takes place."""
    root = repository(request.root)
    if not request.overrides:
        yield root
        return
    with changed_clone(root, request.overrides) as clone:
        yield clone


def requested(program: str, argv: list[str] | None) -> Request:
    """The request of a command line."""
    parser = argparse.ArgumentParser(prog=program, description="Bring the pipeline, or some stages of it, up to date.")
    parser.add_argument(
        "targets", nargs="*", help="stages or foreach groups; they bring their upstreams along (default: all)"
    )
    parser.add_argument("--workers", type=positive, default=2, help="how many stages may run at a time (default: 2)")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    parser.add_argument(
        "--set-param", "-S", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="run as an experiment with this param changed; params.yaml stays as it is",
    )  # fmt: skip
    parser.add_argument("--name", "-n", default="", help="what the experiment is called (default: its params)")
    parser.add_argument("--force", action="store_true", help="run every stage, even if its outcome is known")
    parser.add_argument("--pull", action="store_true", help="first take what the DVC remote has")
    parser.add_argument("--push", action="store_true", help="in the end give the DVC remote what was made")
    parser.add_argument("--hours", type=limit, default=HOURS, help=f"what one stage may take (default: {HOURS:g})")
    options = vars(parser.parse_args(argv))
    return Request(**options | {name: tuple(options[name]) for name in ("targets", "overrides")})


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def limit(text: str) -> float:
    """A number above 0."""
    with contextlib.suppress(ValueError):
        if float(text) > 0:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
