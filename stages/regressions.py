"""What got worse: the items that the target has right and a variant has wrong, with what both answer."""

from pathlib import Path
from typing import Any

import pandas as pd

from stages.command import run
from stages.errors import BadInput
from stages.pages.roles import read_roles
from stages.storage import new_directory, read_jsonl, write_jsonl
from stages.tables import read_test


def regressions(
    target: pd.DataFrame, variant: pd.DataFrame, asked: dict[tuple[str, str], dict[str, str]]
) -> list[dict[str, Any]]:
    """Rows `{"task", "id", "prompt", "expected", "target", "variant"}` by task and id; the last two are the answers.

    `asked` has prompt and expected answer by task and id; where it has none, the target's own columns `prompt` and
    `expected` tell them. What nobody told is None.
    """
    told = variant[["task", "id", "right", "answered"]]
    both = target.merge(told, on=["task", "id"], suffixes=("", "_variant"))
    lost = both.loc[(both.right.fillna(False).astype(bool)) & ~both.right_variant.fillna(True).astype(bool)]
    found = []
    for row in lost.sort_values(["task", "id"]).to_dict("records"):
        question: Any = asked.get((row["task"], row["id"]), row)
        found.append(
            {key: row[key] for key in ("task", "id")}
            | {key: _text(question.get(key)) for key in ("prompt", "expected")}
            | {"target": _text(row["answered"]), "variant": _text(row["answered_variant"])}
        )
    return found


def questions(prompts: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Prompt and expected answer by task and id, of the items that stages.prompts made."""
    asked = {}
    tasks = {"capability": prompts / "capability" / "test.jsonl"}
    tasks |= {path.parent.name: path for path in sorted((prompts / "domains").glob("*/test.jsonl"))}
    for task, path in tasks.items():
        for item in read_jsonl(path) if path.is_file() else ():
            asked[task, item["id"]] = {"prompt": item["prompt"], "expected": item["answer"]}
    path = prompts / "retention" / "questions.jsonl"
    for item in read_jsonl(path) if path.is_file() else ():
        asked["retention", item["id"]] = {"prompt": item["question"], "expected": item["choices"][item["answer"]]}
    return asked


def _text(told: Any) -> str | None:
    return told if isinstance(told, str) else None


def main(evaluation: Path, prompts: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """List what got worse with each variant that params.yaml names and that was evaluated."""
    rows = {path.parent.name: read_test(path) for path in sorted(evaluation.glob("*/items.parquet"))}
    if "target" not in rows:
        raise BadInput("Expected evaluated items of the target, got none; run `dvc repro` to make them.")
    asked, lost = questions(prompts), {}
    with new_directory(out) as directory:
        for name in read_roles(params).variants:
            if name in rows:
                lost[name] = regressions(rows["target"], rows[name], asked)
                write_jsonl(directory / f"{name}.jsonl", lost[name])
    print(", ".join(f"{name} {len(each)}" for name, each in lost.items()))


if __name__ == "__main__":
    run(main)
