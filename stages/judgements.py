"""Every item as one model answers it: a row an item, so that models are compared in pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stages.judge import Key, Scored
from stages.tasks import Asked

Sample = Mapping[str, Any]
_TYPES = {"digits": "Int8", "seen": "boolean", "right": "boolean", "tokens": "Int32"}
_NUMBERS = ("loglikelihood", "confidence", "kl", "agreement", "score", "entropy", "margin", "mean_loglikelihood")
COLUMNS = (
    "task", "id", "group", *_TYPES, "cluster", "loglikelihood", "confidence", "kl", "agreement", "role", "split",
    "answered", "score", "choices", "entropy", "margin", "mean_loglikelihood",
)  # fmt: skip


def rows(
    asked: Asked, samples: Mapping[str, list[dict[str, Any]]], scored: Mapping[Key, Scored]
) -> list[dict[str, Any]]:
    """lm-eval's samples of one task here as a row an item."""
    made = []
    for name, task in asked.tasks.items():
        wanted = asked.benchmark.filter if asked.benchmark else None
        chosen = [s for s in samples[name] if s["filter"] == (wanted or samples[name][0]["filter"])]
        for number, sample in enumerate(chosen):
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {"task": asked.name, "role": asked.role, "split": asked.split} | _named(asked, name, sample)
            of_item = scored.get((name, number, 0), Scored())
            if task.OUTPUT_TYPE == "loglikelihood_rolling":
                row |= _text(sample, of_item)
            else:
                row |= _score(asked, sample)
                if task.OUTPUT_TYPE == "multiple_choice":
                    row |= _choice(task, sample, [scored[name, number, n].tokens for n in range(len(sample["resps"]))])
                else:
                    row |= _answer(sample, of_item, task.OUTPUT_TYPE == "loglikelihood")
            made.append(row)
    return made


def table(made: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows sorted by task and id; floats rounded to 1e-6."""
    frame = pd.DataFrame(made, columns=list(COLUMNS)).astype(
        _TYPES | {"answered": "str"} | dict.fromkeys(_NUMBERS, "float64")
    )
    frame["choices"] = [None if each is None else [round(v, 6) for v in each] for each in frame["choices"]]
    return frame.round(dict.fromkeys(_NUMBERS, 6)).sort_values(["task", "id", "split"], ignore_index=True)


def write(frame: pd.DataFrame, path: Path) -> None:
    """As parquet; a column of lists has its type even where it holds none."""
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    schema = schema.set(schema.get_field_index("choices"), pa.field("choices", pa.list_(pa.float64())))
    frame.to_parquet(path, index=False, schema=schema)


def _named(asked: Asked, name: str, sample: Sample) -> dict[str, Any]:
    """Which item it is: ours say so; others have their number in the task's data, after its name among several."""
    doc = sample["doc"]
    if asked.benchmark is None:
        row = {"id": doc["id"], "group": doc.get("operation") or doc["topic"], "digits": doc.get("digits")}
        return row | {"seen": doc.get("seen"), "cluster": doc.get("pair") or doc["id"]}
    number = f"{sample['doc_id']:06d}"
    own = number if len(asked.tasks) == 1 else f"{name} {number}"
    return {"id": own, "group": name, "cluster": own}


def _text(sample: Sample, scored: Scored) -> dict[str, Any]:
    read = scored.read
    row: dict[str, Any] = {"loglikelihood": float(sample["filtered_resps"][0]), "tokens": scored.tokens}
    return row | ({"kl": read.divergence, "agreement": read.agreement} if read else {})


def _score(asked: Asked, sample: Sample) -> dict[str, Any]:
    """The metric of the item, and whether that is right; neither where no metric is one number an item."""
    benchmark = asked.benchmark
    names = [benchmark.metric] if benchmark and benchmark.metric else sample["metrics"]
    found = next((float(sample[m]) for m in names if isinstance(sample[m], int | float | np.number)), None)
    return {"score": found, "right": None if found is None else found >= (benchmark.right if benchmark else 1.0)}


def _choice(task: Any, sample: Sample, tokens: list[int | None]) -> dict[str, Any]:
    """The model's choice is the likeliest; how sure it is, its share of what all choices have."""
    texts = [str(text) for text in task.doc_to_choice(sample["doc"])]
    told = np.array([float(each[0]) for each in sample["filtered_resps"]][: len(texts)])
    shares = np.exp(told - np.logaddexp.reduce(told))
    chosen, ranked = int(told.argmax()), np.sort(shares)
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    right = [
        texts.index(g) if isinstance(g, str) and g in texts else g for g in (gold if isinstance(gold, list) else [gold])
    ]
    known = [float(told[g]) for g in right if isinstance(g, int) and 0 <= g < len(told)]
    return {
        "loglikelihood": max(known, default=None),
        "answered": texts[chosen],
        "confidence": float(shares[chosen]),
        "choices": told.tolist(),
        "entropy": float(-(shares * np.log(np.maximum(shares, 1e-300))).sum()),
        "margin": float(ranked[-1] - ranked[-2]) if len(ranked) > 1 else 1.0,
        "mean_loglikelihood": float(told[chosen] / (tokens[chosen] or 1)),
    }


def _answer(sample: Sample, scored: Scored, expected: bool) -> dict[str, Any]:
    """The model's own answer; where one is `expected`, how likely that is."""
    row: dict[str, Any] = {"loglikelihood": float(sample["filtered_resps"][0][0])} if expected else {}
    said = scored.said
    if said is not None:
        row |= {"answered": scored.text, "confidence": float(np.exp(said.loglikelihood)), "entropy": said.entropy,
                "margin": said.margin, "mean_loglikelihood": said.loglikelihood / len(said.tokens)}  # fmt: skip
    return row
