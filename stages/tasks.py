"""What a model is asked: our own tasks, and any of lm-eval's or of yours by name; loaded before any model is."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from stages.errors import BadInput, nearest
from stages.settings import Settings

Role = Literal["capability", "retention", "text"]
CALIBRATION = "capability_calibration"
_SEED = 1234  # lm-eval's own, which draws the examples of few shots
_GREEDY = {
    "until",
    "max_gen_toks",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
}  # what decoding greedily heeds or may not


class Benchmark(Settings):
    """A task of lm-eval's or of yours that every model is judged on too."""

    task: str | None = None
    """What lm-eval calls it, a group or tag included; None for the name that it has here."""
    role: Role = "retention"
    """What it stands for: something to be gained, or not to be lost, or text to read."""
    limit: int | None = pydantic.Field(default=None, gt=0)
    """At most so many items, the first; of a group, of each of its tasks."""
    few_shot: int | None = pydantic.Field(default=None, ge=0)
    """Examples before each item; None for as many as the task has."""
    chat_template: bool = False
    """Whether items are turns of a chat."""
    turns: bool = False
    """In a chat, whether the examples are turns of their own."""
    metric: str | None = None
    """The task's metric that is an item's score; None for the first that is one number an item."""
    filter: str | None = None
    """The task's filter of answers; None for the first."""
    right: float = 1.0
    """The score from which on an item counts as right."""


@dataclass(frozen=True)
class Asked:
    """Tasks of lm-eval that are one task here."""

    name: str
    """As rows, figures and pages call it"""
    role: Role
    tasks: Mapping[str, Task]
    """Task by its name for lm-eval"""
    split: Literal["test", "calibration"] = "test"
    benchmark: Benchmark | None = None
    """How it is asked, where it is not our own"""


def benchmarks(wanted: Mapping[str, Benchmark], directories: Sequence[Path], ours: Sequence[str]) -> list[Asked]:
    """The tasks that are named, with their data, from `directories` of task YAML files or among lm-eval's own.

    Raises BadInput for a name that is taken or unknown, for data that is not to be had here, and for a task that
    cannot be judged as it is asked for.
    """
    if not wanted:
        return []
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name in wanted:
        if name in ours or (wanted[name].task or name) in ours:
            raise BadInput(
                f"Expected a further task by a name of its own, got {name!r}, which is one of ours; rename it."
            )
    for path in directories:
        if not path.is_dir():
            raise BadInput(f"Expected a directory of task YAML files at {path}, but there is none; correct the path.")
    local = TaskManager(include_path=[str(path) for path in directories], include_defaults=False)
    known = set(local.all_tasks)
    everything = local
    if any((each.task or name) not in known for name, each in wanted.items()):
        everything = TaskManager(include_path=[str(path) for path in directories])  # reads lm-eval's thousands of files
    return [_loaded(name, each, everything) for name, each in wanted.items()]


def _loaded(name: str, benchmark: Benchmark, manager: TaskManager) -> Asked:
    called = benchmark.task or name
    if called not in manager.task_index:
        raise BadInput(
            f"Expected a task that lm-eval or data/tasks knows, got {called!r}; {nearest(called, manager.all_tasks)}"
        )
    try:
        tasks: dict[str, Task] = dict(manager.load([called])["tasks"])
    except ImportError as error:
        raise BadInput(
            f"Expected the packages that task {called!r} needs, got {error}; install them or take it out."
        ) from error
    except Exception as error:  # whatever a task's own code, its data's host and the network may raise
        said = " ".join(str(error).split()).removesuffix(".")
        raise BadInput(
            f"Expected the data of task {called!r} from its host or the local cache, got {type(error).__name__} "
            f"({said}); run once with a network, so that the data is cached, or take the task out of evaluate.further."
        ) from error
    for each in tasks.values():
        _check(name, benchmark, each)
        if benchmark.few_shot is not None:
            each.set_config(key="num_fewshot", value=benchmark.few_shot)
        elif each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(_SEED)
    return Asked(name, benchmark.role, tasks, benchmark=benchmark)


def _check(name: str, benchmark: Benchmark, task: Task) -> None:
    kind, metrics = task.OUTPUT_TYPE, list(task.aggregation() or ())
    if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
        raise BadInput(
            f"Expected a task of text alone that runs no code of a model's making, got {name!r}; leave it out."
        )
    if (kind == "loglikelihood_rolling") != (benchmark.role == "text"):
        raise BadInput(
            f"Expected role text for tasks that are read whole and another for those with answers, got "
            f"{benchmark.role} for {name!r} ({kind}); change evaluate.further.{name}.role."
        )
    if benchmark.metric is not None and benchmark.metric not in metrics:
        raise BadInput(
            f"Expected a metric of task {name!r}, got {benchmark.metric!r}; {nearest(benchmark.metric, metrics)}"
        )
    filters = [each["name"] for each in task.get_config("filter_list") or ()] or ["none"]
    if benchmark.filter is not None and benchmark.filter not in filters:
        raise BadInput(
            f"Expected a filter of task {name!r}, got {benchmark.filter!r}; {nearest(benchmark.filter, filters)}"
        )
    if kind == "generate_until":
        given: dict[str, Any] = dict(normalize_gen_kwargs(task.get_config("generation_kwargs") or {}))
        strange = sorted(set(given) - _GREEDY)
        if given["do_sample"] or strange:
            got = "samples" if given["do_sample"] else f"sets {', '.join(strange)}"
            raise BadInput(f"Expected a task that takes the likeliest token each time, got {name!r}, which {got}; "
                           "put a copy without that in data/tasks under another name.")  # fmt: skip
    if benchmark.few_shot and kind == "loglikelihood_rolling":
        raise BadInput(f"Expected no examples before texts, got few_shot for {name!r}; leave it out.")


def calls(asked: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Those that lm-eval can be asked at once: ours together, every other by itself."""
    ours = [each for each in asked if each.benchmark is None]
    if ours:
        yield ours
    yield from ([each] for each in asked if each.benchmark is not None)
