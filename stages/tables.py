"""Tables of evaluated items and of sites, read from parquet."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet

from stages.errors import BadInput


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a parquet file; BadInput when it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise BadInput(f"Expected a table at {path}, but it is not there; run `dvc repro` to make it.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as parquet ({error}); delete it and run `dvc repro`.") from error


def tested(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that a model is judged by: those of the test, where splits are told apart."""
    return rows.loc[rows["split"] == "test"].reset_index(drop=True) if "split" in rows else rows


def read_note(path: Path, key: str) -> Any:
    """The JSON under `key` in the metadata of a parquet file; None without. BadInput when the file is damaged."""
    try:
        told = (pyarrow.parquet.read_schema(path).metadata or {}).get(key.encode())
        return None if told is None else json.loads(told)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as parquet ({error}); delete it and run `dvc repro`.") from error
