"""Seconds to judge a model on our tasks, by us and by lm-eval's own model class, with equal scores item by item.

    OMP_NUM_THREADS=2 python -m benchmarks.evaluate --model data/models/target --prompts data/prompts

Both judge the same loaded model on the same items of each task, in turn, in one process with the same threads: the
capability and the questions by log-likelihood, texts read whole, and the capability again by generation up to a full
stop. The claim is that ours / lm-eval is at most 1.10 in all, that log-likelihoods differ by at most 1e-4, and that
greedy flags and generated texts are the same. What lm-eval has no like of, each item's own answer where it is not the
right one, is timed beside: it costs a model that is mostly wrong most.
"""

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.tasks import TaskManager

from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.evaluate import OURS, spread
from stages.judge import Judged

GENERATED: dict[str, Any] = {
    "task": "generated",
    "test_split": "test",
    "doc_to_text": "prompt",
    "doc_to_target": "answer",
    "output_type": "generate_until",
    "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def difference(ours: Any, theirs: Any) -> tuple[float, bool]:
    """Of one answer: how far apart its log-likelihoods are, and whether the rest is the same."""
    if isinstance(ours, str):
        return 0.0, ours == theirs
    if isinstance(ours, tuple | list):
        return abs(float(ours[0]) - float(theirs[0])), bool(ours[1]) == bool(theirs[1])
    return abs(float(ours) - float(theirs)), True


def main(
    model: Path, prompts: Path, tasks: Path = Path("data/tasks"), items: int = 200, questions: int = 60,
    texts: int = 12, generations: int = 48, budget: int = 1024, batch: int = 16, rounds: int = 1,
) -> None:  # fmt: skip
    """Print the seconds of both for each task, the ratio over all, and how the scores differ."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM
    loaded, tokenizer = load(model), load_tokenizer(model)
    manager = TaskManager(include_path=str(tasks), include_defaults=False, metadata={"prompts": str(prompts)})
    wanted = {"capability": items, "retention": questions, "text": texts, "generated": generations}
    known = manager.load(["capability", "retention", "text"])["tasks"]
    source = {key: known["capability"].get_config(key) for key in ("custom_dataset", "metadata")}
    known |= manager.load([GENERATED | source])["tasks"]
    judges: dict[str, Callable[[], LM]] = {
        "ours": lambda: Judged(loaded, tokenizer, None, budget, OURS, ()),
        "lm-eval": lambda: HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=batch),
        "ours with own answers": lambda: Judged(loaded, tokenizer, None, budget, OURS, {"capability"}),
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for task, count in wanted.items():
        part, answers = spread(list(known[task].eval_docs), count), {}
        for number in range(rounds + 1):  # the first on a few items, to warm up
            for name, judge in judges.items():
                if name not in ("ours", "lm-eval") and task != "capability":
                    continue
                judged, begin, some = judge(), time.perf_counter(), part if number else part[:24]
                done = lm_evaluate(judged, {"tasks": {task: known[task]}}, samples={task: some}, bootstrap_iters=0)
                assert done is not None
                if number:
                    seconds.setdefault((task, name), []).append(time.perf_counter() - begin)
                answers[name] = [a for sample in done["samples"][task] for a in sample["filtered_resps"]]
        apart = [difference(a, b) for a, b in zip(answers["ours"], answers["lm-eval"], strict=True)]
        each = {name: statistics.median(seconds[task, name]) for name in answers}
        print(
            f"{task} (n = {len(part)}): {', '.join(f'{name} {value:.1f} s' for name, value in each.items())}, ratio "
            f"{each['ours'] / each['lm-eval']:.2f}; log-likelihoods within {max(d for d, _ in apart):.1e}, "
            f"{sum(same for _, same in apart)} of {len(apart)} answers the same"
        )
    sums = {name: sum(statistics.median(seconds[task, name]) for task in wanted) for name in ("ours", "lm-eval")}
    print(
        f"all: ours / lm-eval {sums['ours'] / sums['lm-eval']:.3f}, {torch.get_num_threads()} threads, {rounds} rounds"
    )


if __name__ == "__main__":
    run(main)
