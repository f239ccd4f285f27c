"""The points of a sweep: a grid or a list of overrides, each point an experiment with a name of its own."""

import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pydantic
import yaml
from dvc.exceptions import DvcException
from dvc.utils.hydra import get_hydra_sweeps, to_hydra_overrides
from hydra.errors import HydraException

from flows.dag import DagError, one_line, read_dag
from flows.experiment import PARAMS, override, slug
from flows.git import git
from flows.origin import origin
from stages.errors import BadInput, nearest


@dataclass(frozen=True)
class Point:
    """One setting of the params."""

    overrides: tuple[str, ...]
    targets: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its experiment: the same for the same overrides and targets, whoever asks."""
        told = f"-{zlib.crc32(' '.join(sorted(self.targets)).encode()):08x}" if self.targets else ""
        return f"{slug(self.overrides)}{told}"

    @property
    def values(self) -> dict[str, str]:
        """What each overridden key is set to, as text; a removed one is set to nothing."""
        pairs = (each.lstrip("+~").partition("=") for each in self.overrides)
        return {key: value for key, _, value in pairs}


class Plan(pydantic.BaseModel, extra="forbid", frozen=True):
    """What is swept, as a YAML file says it; all of it may stand on the command line as well."""

    grid: dict[str, list[Any]] = {}
    """Key of params.yaml → its values; every combination is a point."""
    points: list[dict[str, Any]] = []
    """Key → value, a mapping a point; every one is combined with the grid, if there is one."""
    targets: list[str] = []
    """Stages to bring up to date; none are all."""
    goals: list[str] = []
    """max:FIGURE or min:FIGURE; none are those that verdicts rest on."""


@dataclass(frozen=True)
class Sweep:
    """Points that stand on one commit."""

    root: Path
    commit: str
    points: tuple[Point, ...]
    goals: tuple[str, ...] = ()
    behind: bool = True
    """Whether stages of the commit itself may have yet to run, which several points would then do at once."""


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file; raises BadInput where it is none."""
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(
            f"Expected a sweep's YAML at {path}, got {one_line(error)}; name a file that can be read."
        ) from None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        hint = nearest(str(first["loc"][-1]), Plan.model_fields) if first["type"] == "extra_forbidden" else first["msg"]
        raise BadInput(f"Expected grid, points, targets or goals in {path}, got trouble at {place}: {hint}.") from None


def written(value: Any) -> str:
    """A value of YAML as overrides have it; words with other signs than a name's are quoted."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./@+-]+", value):
        return "'" + value.replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def combined(grid: Sequence[str], listed: Sequence[Sequence[str]], targets: Sequence[str]) -> tuple[Point, ...]:
    """Every combination of the grid's values (`key=a,b` or `key=range(0,3)`), with each of the listed points.

    Raises BadInput for a grid that cannot be read, an empty one, and a key that is set twice.
    """
    found = []
    for overrides in listed or [()]:
        asked = [*grid, *overrides]
        try:
            parsed = to_hydra_overrides(asked)
            keys = [each.key_or_group for each in parsed]
            removed = [each for each in asked if each.startswith("~")]  # has no values to choose from
            every = get_hydra_sweeps({PARAMS: [each for each in asked if each not in removed]}) if asked else []
        except (HydraException, DvcException) as error:
            raise BadInput(
                f"Expected KEY=VALUE,VALUE..., got {' '.join(asked)!r} ({one_line(error)[:200]}); quote values that "
                "hold commas, blanks or brackets."
            ) from None
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise BadInput(f"Expected each key once in a point, got {twice[0]!r} twice; leave one out.")
        found += [Point((*each[PARAMS], *removed), tuple(targets)) for each in every]
    if not found:
        raise BadInput("Expected a grid or a list of points, got none; try --grid inject.blade.gate=token,scalar.")
    return tuple(dict.fromkeys(found))


def plan_sweep(root: Path, plan: Plan, grid: Sequence[str] = (), listed: Sequence[Sequence[str]] = ()) -> Sweep:
    """The sweep of a plan and of what the command line adds, checked before anything runs.

    Raises BadInput for points that do not fit params.yaml and where the files differ from the commit, which the points
    of all machines stand on; DagError outside a repository and for unknown targets.
    """
    for key, values in plan.grid.items():
        if not values:
            raise BadInput(f"Expected values for {key!r} in the grid, got none; name one at least.")
    fixed = [f"{key}={','.join(map(written, values))}" for key, values in plan.grid.items()]
    several = [[f"{key}={written(value)}" for key, value in each.items()] for each in plan.points]
    points = combined([*fixed, *grid], [*several, *listed], plan.targets)
    for goal in plan.goals:
        if goal.partition(":")[0] not in ("max", "min") or not goal.partition(":")[2]:
            raise BadInput(f"Expected a goal as max:FIGURE or min:FIGURE, got {goal!r}; say which way is better.")
    check_params(root / PARAMS, points)
    # with keys added or removed, only the point knows which stages there are
    moved = any(each.startswith(("+", "~")) for point in points for each in point.overrides)
    behind = moved or bool(read_dag(root, plan.targets).changed)
    found = origin(root)
    if not found.commit:
        raise BadInput(f"Expected a git commit in {root} that a sweep can stand on, found none; commit first.")
    if found.edited:
        raise BadInput(
            f"Expected the files of commit {found.commit}, got edits of {', '.join(found.edited)}; commit them first, "
            "since a point is known by its commit and its overrides."
        )
    return Sweep(root, git(root, "rev-parse", "HEAD"), points, tuple(plan.goals), behind)


def check_params(params: Path, points: Sequence[Point]) -> None:
    """BadInput, with the nearest key, where params.yaml does not take one of the overrides."""
    if not params.is_file():
        raise BadInput(f"Expected {params} to sweep over, found none; name another root.")
    with tempfile.TemporaryDirectory() as scratch:
        for each in dict.fromkeys(chain.from_iterable(point.overrides for point in points)):
            copy = Path(shutil.copy(params, scratch))
            try:
                override(copy, [each])
            except DagError as error:
                raise BadInput(str(error)) from None


def factors(points: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The keys whose values differ between points, with those values in order of appearance."""
    keys = dict.fromkeys(chain.from_iterable(points))
    levels = {key: list(dict.fromkeys(point[key] for point in points if key in point)) for key in keys}
    return {key: values for key, values in levels.items() if len(values) > 1 or any(key not in p for p in points)}
