"""Every item that the experiment reads: the capability's three splits, and what must not be lost."""

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic

from stages.capabilities.arithmetic import DOMAIN
from stages.command import run
from stages.errors import BadInput
from stages.settings import Settings, read
from stages.storage import read_jsonl, write_jsonl


class Prompts(Settings):
    """How many items, and the seed that draws them."""

    train: int = pydantic.Field(gt=0)
    calibration: int = pydantic.Field(gt=0)
    test: int = pydantic.Field(gt=0)
    unseen: float = pydantic.Field(ge=0, le=1)
    """Share of the test in phrasings that training never shows."""
    seed: int = 0
    kept_texts: int = pydantic.Field(gt=0)
    """Retention texts that gates and evidence may see, beside those marked `kept`; the others are for judging."""
    kept_questions: int = pydantic.Field(gt=0)
    """Retention questions likewise, told with their answers."""


def prompts(settings: Prompts, questions: Path, text: Path, out: Path) -> None:
    """Writes capability/{train,calibration,test}.jsonl and retention/{train,questions,text}.jsonl under `out`.

    A capability row has prompt, answer, operation, digits, phrasing, seen, pair and id; a question has id, topic,
    question, choices and answer (the right choice's index); a text has id, topic and text, and `kept: true` where it
    is never to judge by. Raises BadInput when an item of the user's lacks one of these.
    """
    stream = DOMAIN.stream(settings.seed)
    train = [next(stream) for _ in range(settings.train)]
    splits = {
        "train": train,
        "calibration": DOMAIN.items("calibration", settings.calibration, settings.seed),
        "test": DOMAIN.items("test", settings.test, settings.seed, settings.unseen),
    }
    for split, items in splits.items():
        rows = [{"id": f"{split}-{number:05d}", **asdict(item)} for number, item in enumerate(items)]
        write_jsonl(out / "capability" / f"{split}.jsonl", rows)
    asked = _checked(questions, ("id", "topic", "question"), _is_question)
    texts = _checked(text, ("id", "topic", "text"), lambda row: True)
    marked, told = ([row for row in texts if bool(row.get("kept")) == kept] for kept in (True, False))
    random.Random(f"retention {settings.seed}").shuffle(asked)
    random.Random(f"retention {settings.seed}").shuffle(told)
    if len(asked) <= settings.kept_questions or len(told) <= settings.kept_texts:
        raise BadInput(
            f"Expected more than {settings.kept_questions} questions and {settings.kept_texts} texts, "
            f"got {len(asked)} and {len(told)}, which leaves none to judge by; lower kept_questions or kept_texts."
        )
    shown = [
        {"id": q["id"], "topic": q["topic"], "text": f"Question: {q['question']}\nAnswer: {q['choices'][q['answer']]}"}
        for q in asked[: settings.kept_questions]
    ]
    write_jsonl(out / "retention" / "train.jsonl", told[: settings.kept_texts] + marked + shown)
    write_jsonl(out / "retention" / "questions.jsonl", sorted(asked[settings.kept_questions :], key=lambda q: q["id"]))
    write_jsonl(out / "retention" / "text.jsonl", sorted(told[settings.kept_texts :], key=lambda t: t["id"]))


def _is_question(row: dict[str, Any]) -> bool:
    choices = row.get("choices")
    return isinstance(choices, list) and len(set(choices)) >= 2 and row.get("answer") in range(len(choices))


def _checked(path: Path, keys: tuple[str, ...], valid: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        if not all(isinstance(row.get(key), str) and row[key] for key in keys) or not valid(row):
            raise BadInput(
                f"{path}, line {number}: expected {', '.join(keys)} as text (and, for a question, two or more distinct "
                f"choices and the right one's index as answer), got keys {sorted(row)}; correct the line."
            )
    return rows


def main(questions: Path, text: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Generate and check all items, as params.yaml says under `prompts`."""
    prompts(read(params, "prompts", Prompts), questions, text, out)


if __name__ == "__main__":
    run(main)
