"""Tables of evaluated items and of sites, read from parquet."""

from pathlib import Path

import pandas as pd

from stages.errors import BadInput


def read_table(path: Path) -> pd.DataFrame:
    """The rows of a parquet file; BadInput when it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise BadInput(f"Expected a table at {path}, but it is not there; run `dvc repro` to make it.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as parquet ({error}); delete it and run `dvc repro`.") from error
