"""Every test item as one model answers it, by lm-eval's tasks: a row an item, so that models are compared in pairs."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pydantic
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.encoding import encode
from stages.anatomy.likelihood import Reference, read, score
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.vocabulary import shared
from stages.capabilities.names import Further
from stages.command import run
from stages.errors import BadInput
from stages.settings import Settings
from stages.settings import read as read_settings
from stages.storage import new_directory, write_json

Task = Literal["capability", "retention", "text", Further]
TASKS: tuple[Task, ...] = ("capability", "retention", "text")


class Evaluate(Settings):
    """What a model is judged on, and how items are passed through it."""

    budget: int = pydantic.Field(gt=0)
    """Padded tokens a forward pass. A few hundred suit a processor, whose caches hold them; a GPU wants thousands."""
    tasks: tuple[Task, ...] = pydantic.Field(default=TASKS, min_length=1)
    items: int | None = pydantic.Field(default=None, gt=0)
    """At most so many of the capability's items and of each domain's; None for all."""
    retention_items: int | None = pydantic.Field(default=None, gt=0)
    """At most so many retention questions, and so many texts."""

    def most(self, task: Task) -> int | None:
        """How many items of a task to judge by; None for all."""
        return self.retention_items if task in ("retention", "text") else self.items


class Judged(LM):
    """A model under lm-eval, in batches by length; it also keeps what lm-eval has no place for."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: Reference | None,
        budget: int,
    ):
        super().__init__()
        self.states: list[torch.Tensor] = []
        self.model, self.tokenizer, self.reference, self.budget = model, tokenizer, reference, budget
        self.extra: dict[tuple[str, str], dict[str, Any]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        scores = score(self.model, encode(self.tokenizer, [r.args for r in requests]), self.budget)
        for request, confidence in zip(requests, scores.confidence.tolist(), strict=True):
            self.extra[str(request.task_name), request.doc["id"]] = {"confidence": confidence}
        return list(zip(scores.loglikelihood.tolist(), scores.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        texts = [
            [first, *ids] for ids in self.tokenizer([r.args[0] for r in requests], add_special_tokens=False).input_ids
        ]
        if self.reference is not None and [len(s) + 1 for s in self.reference.states] != [len(ids) for ids in texts]:
            raise BadInput("Expected the target's states on these texts, got others; run `dvc repro` to judge it anew.")
        told = read(self.model, texts, self.reference, self.budget)
        self.states = [each.states for each in told]
        for request, each in zip(requests, told, strict=True):
            self.extra[str(request.task_name), request.doc["id"]] = {
                "tokens": each.tokens,
                "kl": each.divergence,
                "agreement": each.agreement,
            }
        return [each.loglikelihood for each in told]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise BadInput("These tasks score continuations; a task that generates is not supported yet.")


def rows(judged: Judged, samples: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """lm-eval's samples as one row an item, sorted by task and id; floats rounded to 1e-6."""
    made = []
    for task, each in samples.items():
        for sample in each:
            doc, extra = sample["doc"], judged.extra[task, sample["doc"]["id"]]
            row: dict[str, Any] = {"task": task, "id": doc["id"], "group": doc.get("operation") or doc["topic"]}
            row |= {"digits": doc.get("digits"), "seen": doc.get("seen"), "cluster": doc.get("pair") or doc["id"]}
            answers = sample["filtered_resps"]
            if task == "retention":
                loglikelihoods = np.array([float(a[0]) for a in answers])
                share = np.exp(loglikelihoods - np.logaddexp.reduce(loglikelihoods))
                row |= {"right": bool(sample["acc"]), "loglikelihood": loglikelihoods[doc["answer"]]}
                row |= {"confidence": float(share.max()), "tokens": None}
            elif task != "text":
                row |= {"right": bool(answers[0][1]), "loglikelihood": float(answers[0][0]), **extra, "tokens": None}
            else:
                row |= {"right": None, "loglikelihood": float(answers[0]), "confidence": None, **extra}
            made.append({"kl": None, "agreement": None} | row)
    types = {"digits": "Int8", "seen": "boolean", "right": "boolean", "tokens": "Int32"}
    numbers = {name: "float64" for name in ("loglikelihood", "confidence", "kl", "agreement")}
    frame = pd.DataFrame(made).astype(types | numbers).round(dict.fromkeys(numbers, 6))
    columns = ["task", "id", "group", *types, "cluster", *numbers]
    return frame[columns].sort_values(["task", "id"], ignore_index=True)


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

    `tasks` holds their definitions. Divergence is from `target`; without one the model is the target itself, and has
    none. Raises BadInput when there are no items of a domain.
    """
    for path in (prompts / "domains" / each / "test.jsonl" for each in settings.tasks if each in get_args(Further)):
        if not path.is_file():
            raise BadInput(f"Expected items at {path}, but there are none; name {path.parent.name} in prompts.domains.")
    tokenizer = load_tokenizer(model)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"prompts": str(prompts)})
    loaded = manager.load(list(settings.tasks))
    most = {task: settings.most(task) for task in settings.tasks}
    chosen = {task: spread(list(loaded["tasks"][task].eval_docs), count) for task, count in most.items() if count}
    beside = target.reference(tokenizer, chosen.get("text")) if target and "text" in settings.tasks else None
    judged = Judged(load(model), tokenizer, beside, settings.budget)
    done = lm_evaluate(judged, loaded, samples=chosen or None, bootstrap_iters=0, log_samples=True)
    if done is None:
        raise RuntimeError("lm-eval gave no result on the first process.")
    return rows(judged, done["samples"]), judged.states


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
    means = frame.groupby("task")["right"].mean().dropna().astype(float).round(6).to_dict()
    with new_directory(out) as directory:
        frame.to_parquet(directory / "items.parquet", index=False)
        write_json(directory / "metrics.json", {"accuracy": means, "items": frame["task"].value_counts().to_dict()})
        if beside is None and states:
            tokens = torch.tensor([len(each) for each in states])
            save_file({"states": torch.cat(states), "tokens": tokens}, directory / "text.safetensors")
    print(", ".join(f"{task} {value:.3f}" for task, value in means.items()))


if __name__ == "__main__":
    run(main)
