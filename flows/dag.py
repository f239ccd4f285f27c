"""DVC's own graph, read in this process: the stages in order, what each waits for, and which may have to run."""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph

from flows.rwlock import heal


class DagError(ValueError):
    """The graph cannot be read; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Dag:
    """The stages of one run; names are DVC's addresses seen from the repository's root."""

    root: Path
    """The DVC repository's root directory."""
    upstreams: Mapping[str, tuple[str, ...]]
    """Each stage with the stages it waits for; the keys are in topological order, equals by name."""
    changed: frozenset[str]
    """Stages that changed or are downstream of one that did; all others need no DVC process."""
    models: frozenset[str] = frozenset()
    """Stages that load models, and so use a GPU where there is one."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Every stage after all of its upstreams."""
        return tuple(self.upstreams)


LOADING = "stages/anatomy/loading.py"
"""The module that every stage with a model imports, and so depends on."""


def read_dag(root: str | Path = ".", targets: Sequence[str] | None = None, force: bool = False) -> Dag:
    """What `dvc repro TARGETS` would consider, read with one `dvc status`; with `force` all of it counts as changed.

    A target is a stage, a foreach group or a dvc.yaml, and brings its upstreams along. As in DVC, a frozen stage
    waits for nothing; it counts as unchanged. Raises DagError outside a DVC repository, on an unknown target, on a
    dvc.yaml that DVC refuses and while another DVC command holds the repository.
    """
    top = repository(root)
    # DVC gives addresses relative to the working directory
    with contextlib.chdir(top), quiet(), Repo(str(top)) as repo:
        try:
            heal(top)
            graph = get_active_graph(repo.index.graph)
            wanted = select(repo, graph, targets)
            status = repo.status()
        except LockError as error:
            raise DagError(
                f"Another DVC command is at work in {top}; run again when it has ended ({one_line(error)})."
            ) from error
        except DvcException as error:
            raise DagError(f"DVC cannot read the pipeline at {top}: {one_line(error)}") from error
        upstreams = {s.addressing: tuple(sorted(u.addressing for u in graph.successors(s))) for s in wanted}
        frozen = {s.addressing for s in wanted if s.frozen}
        models = {s.addressing for s in wanted if any(d.def_path == LOADING for d in s.deps)}

    downstream = networkx.DiGraph()
    downstream.add_nodes_from(upstreams)
    downstream.add_edges_from((up, stage) for stage, ups in upstreams.items() for up in ups)
    changed = ((upstreams if force else status).keys() & upstreams.keys()) - frozen
    changed |= {below for stage in changed for below in networkx.descendants(downstream, stage)}
    order = networkx.lexicographical_topological_sort(downstream)
    return Dag(top, {stage: upstreams[stage] for stage in order}, frozenset(changed), frozenset(models))


def repository(folder: str | Path) -> Path:
    """The root of the DVC repository around the folder; raises DagError if there is none."""
    try:
        return Path(Repo.find_root(str(folder)))
    except NotDvcRepoError:
        raise DagError(
            f"Expected a DVC repository at {Path(folder).resolve()}, found none there or above; "
            "run `dvc init` or name another root."
        ) from None


def select(repo: Repo, graph: networkx.DiGraph, targets: Sequence[str] | None) -> set:
    """The targets' stages and all upstream of them; without targets those of the root's dvc.yaml, as in `dvc repro`."""
    wanted = set()
    for target in targets or ["dvc.yaml"]:
        try:
            stages = collect_stages(repo, [target])
        except DvcException:
            if not targets:
                raise DagError(f"Expected a dvc.yaml in {repo.root_dir}, found none; name the targets.") from None
            names = {name for stage in graph for name in (stage.addressing, stage.addressing.partition("@")[0])}
            near = difflib.get_close_matches(target, names, n=1, cutoff=0.4)
            remedy = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names)) or 'none'}."
            raise DagError(f"No stage is called {target!r}; {remedy}") from None
        for stage in stages:
            wanted |= {stage, *networkx.descendants(graph, stage)}  # DVC's edges point upstream
    return wanted


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DVC's warnings off: for each frozen stage it says that the status leaves its dependencies out."""
    logger = logging.getLogger("dvc")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def one_line(error: Exception) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split())
