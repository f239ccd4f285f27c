"""`python -m stages.verify DIR [--against OTHER]`: is an export what it was, and does it come out the same again?"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from stages.errors import BadInput
from stages.program import program
from stages.storage import read_json
from stages.sums import SUMS, hashed
from stages.visible import visible

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_LONGEST = 1 << 20  # bytes of a list of hashes: some ten thousand files
IDENTICAL, SAME_FIGURES, CHANGED = "identical", "same figures, other bytes", "changed"


@dataclass(frozen=True)
class Grade:
    """How a directory stands to what it is checked against."""

    grade: str
    """IDENTICAL, SAME_FIGURES or CHANGED."""
    found: Mapping[str, str]
    """What is not as it was: a file's path, or a figure's, → what is wrong with it."""


def verify(directory: Path) -> Grade:
    """Whether every file of an export is what its reproduce/SHA256SUMS says, and there is no other.

    It tells of accidents and of careless hands. Who can write all files can write the sums too, so their own hash has
    to be compared with one that came another way. Raises BadInput when there are no sums, or when one names a place
    outside the directory.
    """
    found = differing(directory, listed(directory), present(directory))
    return Grade(CHANGED if found else IDENTICAL, found)


def compare(directory: Path, other: Path) -> Grade:
    """How an export stands to one of the same variant that was made again.

    Both are checked by themselves first, and one that is not what it was is CHANGED. Other bytes with the same figures
    are what another machine gives; figures that differ are named.
    """
    for each in (directory, other):
        own = verify(each)
        if own.grade == CHANGED:
            return own
    found = differing(directory, listed(other), present(directory))
    if not found:
        return Grade(IDENTICAL, {})
    figures, again = (_figures(each / "reproduce" / "figures.json") for each in (directory, other))
    moved = {
        f"figures.json: {name}": f"{figures.get(name)} is {again.get(name)} in the other"
        for name in sorted(figures.keys() | again.keys())
        if figures.get(name) != again.get(name)
    }
    return Grade(CHANGED, moved) if moved else Grade(SAME_FIGURES, found)


def listed(directory: Path) -> dict[str, str]:
    """Path → hash, of reproduce/SHA256SUMS; BadInput for a line that is none, and a path that leads elsewhere."""
    path = directory / SUMS
    if not _plain(path, directory):
        raise BadInput(f"Expected an export with {SUMS} at {visible(str(directory))}, got none; name one.")
    if path.stat().st_size > _LONGEST:
        raise BadInput(f"Expected at most {_LONGEST} bytes in {SUMS}, got {path.stat().st_size}.")
    sums: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8", "backslashreplace").split("\n")[:-1], start=1):
        told = _LINE.fullmatch(line)
        where = f"{SUMS}, line {number}"
        if not told:
            raise BadInput(f"{where}: expected a hash and a path, got {visible(line[:80])}; do not trust this export.")
        name = PurePosixPath(told[2])
        inside = not name.is_absolute() and ".." not in name.parts and str(name) == told[2]
        if not inside or "\\" in told[2] or ":" in name.parts[0] or told[2] in sums:
            raise BadInput(f"{where}: expected a path inside the export, once, got {visible(told[2][:80])}; "
                           "do not trust this export.")  # fmt: skip
        sums[told[2]] = told[1]
    return sums


def present(directory: Path) -> list[str]:
    """The paths of everything in the directory but other directories; what a link leads to is not looked at."""
    found = []
    for top, folders, files in os.walk(directory, followlinks=False):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        found += [Path(top, name).relative_to(directory).as_posix() for name in [*files, *links]]
    return sorted(set(found) - {SUMS})


def differing(directory: Path, sums: Mapping[str, str], there: list[str]) -> dict[str, str]:
    """What is missing, not listed, no plain file, or of another hash, by path."""
    found = dict.fromkeys(sorted(set(sums) - set(there)), "missing")
    for path in there:
        if path not in sums:
            found[path] = "not listed"
        elif not _plain(directory / path, directory):
            found[path] = "not a plain file"
        elif hashed(directory / path) != sums[path]:
            found[path] = "other bytes"
    return found


def _plain(path: Path, directory: Path) -> bool:
    """Whether it is a file of its own inside the directory, and no link, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and path.parent.resolve().is_relative_to(directory.resolve())
    except OSError:
        return False


def _figures(path: Path) -> dict[str, Any]:
    try:
        return _flat(read_json(path))
    except (RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"{visible(str(path))} does not hold figures; do not trust this export.") from error


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Figures by their dotted names."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in _flat(each, f"{name}.{key}".lstrip(".")).items()}
    if isinstance(value, list):
        return {k: v for i, each in enumerate(value) for k, v in _flat(each, f"{name}[{i}]").items()}
    return {name: value}


def main(
    directory: Annotated[Path, typer.Argument(help="An export.")],
    against: Annotated[Path | None, typer.Option(help="An export of the same variant, made again.")] = None,
) -> int:
    """Check an export against its reproduce/, or against another; exit status 1 where it is changed."""
    told = verify(directory) if against is None else compare(directory, against)
    print(told.grade)
    for path, what in list(told.found.items())[:50]:
        print(f"  {visible(path)[:200]}: {visible(what)[:200]}")
    if len(told.found) > 50:
        print(f"  and {len(told.found) - 50} more")
    print(f"SHA-256 of {SUMS}: {hashed(directory / SUMS)}")
    return int(told.grade == CHANGED)


if __name__ == "__main__":
    program(main)
