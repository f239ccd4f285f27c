"""The items of data/prompts as lm-eval reads them; `metadata={"prompts": DIR}` names another place."""

import json
from pathlib import Path

import datasets

PROMPTS = Path(__file__).parent.parent / "prompts"


def capability(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "capability" / "test.jsonl")


def calibration(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "capability" / "calibration.jsonl")


def retention(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "retention" / "questions.jsonl")


def text(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "retention" / "text.jsonl")


def units(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "domains" / "units" / "test.jsonl")


def dates(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "domains" / "dates" / "test.jsonl")


def letters(prompts: str | Path = PROMPTS, **_) -> dict[str, datasets.Dataset]:
    return _split(Path(prompts) / "domains" / "letters" / "test.jsonl")


def _split(path: Path) -> dict[str, datasets.Dataset]:
    lines = path.read_text().removesuffix("\n").split("\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
