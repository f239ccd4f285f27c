"""Every test item as one model answers it, by lm-eval's tasks: a row an item, so that models are compared in pairs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import pydantic
import torch
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from stages.anatomy.likelihood import Reference
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.vocabulary import shared
from stages.capabilities.names import Further
from stages.command import run
from stages.errors import BadInput
from stages.judge import Judged
from stages.judgements import rows, table, write
from stages.settings import Settings
from stages.settings import read as read_settings
from stages.storage import new_directory, write_json
from stages.tasks import CALIBRATION, Asked, Benchmark, Role, benchmarks, calls

Task = Literal["capability", "retention", "text", Further]
TASKS: tuple[Task, ...] = ("capability", "retention", "text")
OURS = (*TASKS, *get_args(Further), CALIBRATION)


class Evaluate(Settings):
    """What a model is judged on, and how items are passed through it."""

    budget: int = pydantic.Field(gt=0)
    """Padded tokens a forward pass. About a thousand suit a processor, since the rows of a pass give their own answers
    together, and memory grows with them; a GPU wants thousands."""
    tasks: tuple[Task, ...] = pydantic.Field(default=TASKS, min_length=1)
    items: int | None = pydantic.Field(default=None, gt=0)
    """At most so many of the capability's items and of each domain's; None for all."""
    retention_items: int | None = pydantic.Field(default=None, gt=0)
    """At most so many retention questions, and so many texts."""
    calibration: int = pydantic.Field(default=0, ge=0)
    """So many of the capability's calibration items too, on which to set what is judged by the test."""
    further: dict[str, Benchmark] = {}
    """Other tasks by the name that rows and figures are to have."""
    directories: tuple[Path, ...] = ()
    """Where such tasks are defined beside lm-eval and data/tasks; an edit there reruns nothing by itself."""

    def most(self, task: Task) -> int | None:
        """How many items of a task to judge by; None for all."""
        return self.retention_items if task in ("retention", "text") else self.items


@dataclass(frozen=True)
class Target:
    """The target and what it made of the texts."""

    model: Path
    states: Path
    """The safetensors file that its own evaluation left."""

    def reference(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[int] | None = None) -> Reference | None:
        """What to compare a model with on these of the texts; None for one that reads texts by another tokenizer."""
        if not shared(tokenizer, load_tokenizer(self.model)):
            return None
        found = load_file(self.states)
        states = found["states"].split(found["tokens"].tolist())
        if texts is not None and len(states) > len(texts) and len(states) > max(texts):
            states = [states[i] for i in texts]  # where the target was judged on more of the texts
        return Reference(load(self.model), states)


def spread(docs: Sequence[dict[str, Any]], count: int) -> list[int]:
    """Indices of `count` items at even distances in the order of phrasing, kind and digits, so that a part has the
    shares of the whole (systematic sampling); all of them where there are no more."""
    kinds = [(str(d.get("seen")), str(d.get("operation") or d.get("topic")), d.get("digits") or 0) for d in docs]
    order = sorted(range(len(docs)), key=lambda i: (kinds[i], i))
    count = min(count, len(docs))
    return sorted(order[(2 * k + 1) * len(docs) // (2 * count)] for k in range(count))


def evaluate(
    model: Path, prompts: Path, tasks: Path, settings: Evaluate, target: Target | None = None
) -> tuple[pd.DataFrame, list[torch.Tensor]]:
    """One row an item of the tasks that are set, and the model's final states on each text [tokens scored, width].

    `tasks` holds the definitions of ours. Divergence is from `target`; without one the model is the target itself, and
    has none. Raises BadInput when there are no items of a task, before the model is loaded.
    """
    tokenizer = load_tokenizer(model)
    asked, parts = _asked(prompts, tasks, settings)
    for each in asked:
        if each.benchmark and each.benchmark.chat_template and not tokenizer.chat_template:
            raise BadInput(f"Expected a tokenizer with a chat template for {each.name!r}, got one without in {model}; "
                           f"set evaluate.further.{each.name}.chat_template to false.")  # fmt: skip
    beside = target.reference(tokenizer, parts.get("text")) if target and "text" in settings.tasks else None
    free = {name for each in asked for name, task in each.tasks.items() if task.OUTPUT_TYPE == "loglikelihood"}
    judged = Judged(load(model), tokenizer, beside, settings.budget, OURS, free)
    made: list[dict[str, Any]] = []
    for call in calls(asked):
        judged.scored.clear()
        how = call[0].benchmark or Benchmark()
        done = lm_evaluate(
            judged,
            {"tasks": {name: task for each in call for name, task in each.tasks.items()}},
            samples=None if call[0].benchmark else parts or None,
            limit=how.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=how.chat_template,
            fewshot_as_multiturn=how.turns,
        )
        if done is None:
            raise RuntimeError("lm-eval gave no result on the first process.")
        samples: Any = done.get("samples")
        made += [row for each in call for row in rows(each, samples, judged.scored)]
    return table(made), judged.states


def _asked(prompts: Path, tasks: Path, settings: Evaluate) -> tuple[list[Asked], dict[str, list[int]]]:
    """All tasks with their items; and the items to judge by, of our tasks that only a part of is asked of."""
    for path in (prompts / "domains" / each / "test.jsonl" for each in settings.tasks if each in get_args(Further)):
        if not path.is_file():
            raise BadInput(f"Expected items at {path}, but there are none; name {path.parent.name} in prompts.domains.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"prompts": str(prompts)})
    most: dict[str, int | None] = {task: settings.most(task) for task in settings.tasks}
    if settings.calibration and "capability" in settings.tasks:
        most[CALIBRATION] = settings.calibration
    loaded: dict[str, Any] = manager.load(list(most))["tasks"]
    roles: dict[str, Role] = {"retention": "retention", "text": "text"}
    asked = [
        Asked("capability", "capability", {name: task}, "calibration")
        if name == CALIBRATION
        else Asked(name, roles.get(name, "capability"), {name: task})
        for name, task in loaded.items()
    ]
    parts = {name: spread(list(loaded[name].eval_docs), count) for name, count in most.items() if count}
    return asked + benchmarks(settings.further, [tasks, *settings.directories], OURS), parts


def main(model: Path, prompts: Path, tasks: Path, out: Path, target: Path | None = None, judged: Path | None = None,
         params: Path = Path("params.yaml"), section: str = "evaluate") -> None:  # fmt: skip
    """Judge one model: the target itself, or a donor or graft beside a target that was judged before.

    On what, the section of params.yaml says.
    """
    if (target is None) != (judged is None):
        raise BadInput(
            "Expected --target and --judged, the states that it left, or neither for the target itself; got one."
        )
    beside = Target(target, judged) if target and judged else None
    frame, states = evaluate(model, prompts, tasks, read_settings(params, section, Evaluate), beside)
    tested: pd.DataFrame = frame.loc[frame["split"] == "test"]
    means = tested.groupby("task")["right"].mean().dropna().astype(float).round(6).to_dict()
    with new_directory(out) as directory:
        write(frame, directory / "items.parquet")
        write_json(directory / "metrics.json", {"accuracy": means, "items": tested["task"].value_counts().to_dict()})
        if beside is None and states:
            tokens = torch.tensor([len(each) for each in states])
            save_file({"states": torch.cat(states), "tokens": tokens}, directory / "text.safetensors")
    print(", ".join(f"{task} {value:.3f}" for task, value in means.items()))


if __name__ == "__main__":
    run(main)
