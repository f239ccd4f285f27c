"""What a sweep's experiments found: the figures of each, read from DVC as `dvc exp show` reads them."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.metrics.show import _collect_top_level_metrics
from dvc.repo.reproduce import get_active_graph

from flows.dag import DagError, one_line, quiet, select
from flows.git import git
from flows.team import ref

OWN = "metrics.json"
"""The figures that a stage's output directory may hold, besides the metrics that dvc.yaml names."""


def figures(root: Path, commit: str, names: Sequence[str], targets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figures by experiment: `blade.gain` of metrics/blade.json, `blade.accuracy.capability` of blade/metrics.json.

    Read are outputs of the targets and their upstreams alone: the others are not of this experiment's making. Raises
    DagError where DVC cannot read an experiment.
    """
    if not names:
        return {}
    commits = {name: git(root, "rev-parse", ref(commit, name)) for name in names}
    with contextlib.chdir(root), quiet(), Repo(str(root)) as repo:
        try:
            with repo.switch(commits[names[0]]):
                paths = readable(repo, targets)
            shown = repo.metrics.show(targets=paths, revs=list(set(commits.values()))) if paths else {}
        except DvcException as error:
            raise DagError(f"DVC cannot read the experiments' figures: {one_line(error)}") from error
    return {name: flat(shown.get(sha, {}).get("data", {})) for name, sha in commits.items()}


def readable(repo: Repo, targets: Sequence[str]) -> list[str]:
    """Paths, seen from the root, under which the targets and their upstreams leave figures."""
    wanted = select(repo, get_active_graph(repo.index.graph), targets)
    made = [repo.fs.relpath(out.fs_path, repo.root_dir) for stage in wanted for out in stage.outs]
    named = [repo.fs.relpath(out.fs_path, repo.root_dir) for out in repo.index.metrics]
    named += _collect_top_level_metrics(repo)
    inside = [path for path in named if any(path == out or path.startswith(f"{out}/") for out in made)]
    return sorted({*inside, *(f"{out}/{OWN}" for out in made if not PurePosixPath(out).suffix)})


def flat(shown: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Numbers by dotted name; what could not be read is left out."""
    found: dict[str, float] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, each in value.items():
                add(f"{name}.{key}", each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = value

    for path, each in sorted(shown.items()):
        place = PurePosixPath(Path(path).as_posix())
        add(place.parent.name if place.name == OWN else place.stem, each.get("data", {}))
    return found
