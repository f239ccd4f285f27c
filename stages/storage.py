"""Outputs that appear whole or not at all, and JSON with the same bytes every time."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stages.errors import BadInput


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A scratch directory that becomes `path` when the block ends well; a killed stage leaves no half of it there.

    Its files become as readable as the directory: safetensors leaves its own to their owner alone.
    """
    scratch = path.with_name(path.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    for file in filter(Path.is_file, scratch.rglob("*")):
        file.chmod(scratch.stat().st_mode & 0o666)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(scratch, path)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A scratch file that becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".partial")
    scratch.unlink(missing_ok=True)
    yield scratch
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """`value` as sorted, indented JSON; NaN and infinity are refused, since JSON has none."""
    with new_file(path) as scratch:
        scratch.write_text(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One sorted JSON object a line."""
    with new_file(path) as scratch, scratch.open("w") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON at `path`; BadInput when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"Expected {path}, but it is not there; run `dvc repro` to make it.") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not valid JSON ({error}); delete it and run `dvc repro`.") from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; BadInput names the line that is broken, or says that the file has none."""
    if not path.is_file():
        raise BadInput(f"Expected {path}, but it is not there; run `dvc repro` to make it.")
    text, rows = path.read_text().removesuffix("\n"), []
    for number, line in enumerate(text.split("\n") if text else (), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInput(
                f"{path}, line {number}: expected a JSON object, got {line[:40]!r} ({error.msg})."
            ) from error
    if not rows:
        raise BadInput(f"{path} is empty; expected at least one JSON object a line.")
    return rows
