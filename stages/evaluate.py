"""Every test item as one model answers it, by lm-eval's tasks: a row an item, so that models are compared in pairs."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from stages.command import run
from stages.errors import BadInput
from stages.settings import Settings
from stages.settings import read as read_settings
from stages.storage import new_directory, write_json

TASKS = ("capability", "retention", "text")


class Evaluate(Settings):
    """How items are passed through a model."""

    budget: int = pydantic.Field(gt=0)
    """Padded tokens a forward pass. A few hundred suit a processor, whose caches hold them; a GPU wants thousands."""


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
        self.extra: dict[tuple[str, int], dict[str, Any]] = {}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        scores = score(self.model, encode(self.tokenizer, [r.args for r in requests]), self.budget)
        for request, confidence in zip(requests, scores.confidence.tolist(), strict=True):
            self.extra[str(request.task_name), int(request.doc_id or 0)] = {"confidence": confidence}
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
            self.extra[str(request.task_name), int(request.doc_id or 0)] = {
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
            doc, extra = sample["doc"], judged.extra[task, sample["doc_id"]]
            row: dict[str, Any] = {"task": task, "id": doc["id"], "group": doc.get("operation") or doc["topic"]}
            row |= {"digits": doc.get("digits"), "seen": doc.get("seen"), "cluster": doc.get("pair") or doc["id"]}
            answers = sample["filtered_resps"]
            if task == "retention":
                loglikelihoods = np.array([float(a[0]) for a in answers])
                share = np.exp(loglikelihoods - np.logaddexp.reduce(loglikelihoods))
                row |= {"right": bool(sample["acc"]), "loglikelihood": loglikelihoods[doc["answer"]]}
                row |= {"confidence": float(share.max()), "tokens": None}
            elif task == "capability":
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

    def reference(self, tokenizer: PreTrainedTokenizerBase) -> Reference | None:
        """What to compare a model with; None for one that reads texts by another tokenizer."""
        if not shared(tokenizer, load_tokenizer(self.model)):
            return None
        found = load_file(self.states)
        return Reference(load(self.model), found["states"].split(found["tokens"].tolist()))


def evaluate(
    model: Path, prompts: Path, tasks: Path, settings: Evaluate, target: Target | None = None
) -> tuple[pd.DataFrame, list[torch.Tensor]]:
    """One row an item of the tasks in `tasks`, and the model's final states on each text [tokens scored, width].

    Divergence is from `target`; without one the model is the target itself, and has none.
    """
    tokenizer = load_tokenizer(model)
    judged = Judged(load(model), tokenizer, target.reference(tokenizer) if target else None, settings.budget)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"prompts": str(prompts)})
    done = lm_evaluate(judged, manager.load(list(TASKS)), bootstrap_iters=0, log_samples=True)
    if done is None:
        raise RuntimeError("lm-eval gave no result on the first process.")
    return rows(judged, done["samples"]), judged.states


def main(model: Path, prompts: Path, tasks: Path, out: Path, target: Path | None = None, judged: Path | None = None,
         params: Path = Path("params.yaml")) -> None:  # fmt: skip
    """Judge one model on every task: the target itself, or a donor or graft beside a target that was judged before."""
    if (target is None) != (judged is None):
        raise BadInput(
            "Expected --target and --judged, the states that it left, or neither for the target itself; got one."
        )
    beside = Target(target, judged) if target and judged else None
    frame, states = evaluate(model, prompts, tasks, read_settings(params, "evaluate", Evaluate), beside)
    means = frame.groupby("task")["right"].mean().dropna().astype(float).round(6).to_dict()
    with new_directory(out) as directory:
        frame.to_parquet(directory / "items.parquet", index=False)
        write_json(directory / "metrics.json", {"accuracy": means, "items": frame["task"].value_counts().to_dict()})
        if beside is None:
            tokens = torch.tensor([len(each) for each in states])
            save_file({"states": torch.cat(states), "tokens": tokens}, directory / "text.safetensors")
    print(", ".join(f"{task} {value:.3f}" for task, value in means.items()))


if __name__ == "__main__":
    run(main)
