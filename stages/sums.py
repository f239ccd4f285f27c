"""Hashes of a directory's files, as sha256sum writes and reads them."""

import hashlib
import json
from pathlib import Path

from stages.errors import BadInput

SUMS = "reproduce/SHA256SUMS"
"""Where an export has them."""


def sums(directory: Path) -> str:
    """`HASH  PATH` of every file in `directory` but the sums themselves, by path.

    Raises BadInput for a file whose name sha256sum would have to escape.
    """
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    odd = [path for path in files if any(sign in path for sign in "\n\r\\")]
    if odd:
        raise BadInput(f"Expected file names without line ends and backslashes, got {json.dumps(odd[0])}; rename it.")
    return "".join(f"{hashed(directory / path)}  {path}\n" for path in files if path != SUMS)


def hashed(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
