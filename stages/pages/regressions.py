"""What got worse: the items that the target has right and a variant has wrong, counted by task, some of them shown."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from stages.pages.evidence import Evidence
from stages.pages.texts import shown

View = dict[str, Any]

_ROWS, _ON_PAGE = 200, 2000


def regressions(evidence: Evidence) -> dict[str, View]:
    """For each variant whose regressions were written: how many of how many by task, and the rows that the page has.

    At most 200 rows a variant and 2,000 on the page, the same number from each task first; `total` counts them all.
    """
    had = _right(evidence.items["target"]) if "target" in evidence.items else {}
    most = min(_ROWS, max(_ON_PAGE // max(len(evidence.regressions), 1), 20))
    found = {}
    for name, rows in evidence.regressions.items():
        by = {str(task): [row for row in rows if str(row["task"]) == str(task)] for task in _tasks(rows)}
        counts = [{"task": task, "lost": len(lost), "had": had.get(task)} for task, lost in by.items()]
        counts += [{"task": task, "lost": 0, "had": n} for task, n in had.items() if task not in by]
        kept = [_row(row) for row in _dealt(list(by.values()), most)]
        found[name] = {"total": len(rows), "counts": counts, "rows": kept, "tasks": list(by)}
    return found


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _right(items: pd.DataFrame) -> dict[str, int]:
    """Test items that the model has right, by task that has right and wrong."""
    tested = items.loc[items.split == "test"] if "split" in items else items
    right = tested.loc[tested.right.notna()]
    return {str(task): int(part.right.sum()) for task, part in right.groupby("task")}


def _dealt(piles: Sequence[list[Any]], most: int) -> list[Any]:
    """At most `most` things, one from each pile in turn, then in the piles' order."""
    taken = [0] * len(piles)
    while sum(taken) < min(most, sum(map(len, piles))):
        for pile, things in enumerate(piles):
            if taken[pile] < len(things) and sum(taken) < most:
                taken[pile] += 1
    return [thing for pile, count in zip(piles, taken, strict=True) for thing in pile[:count]]


def _row(row: Mapping[str, Any]) -> View:
    return {key: shown(row.get(key)) for key in ("task", "id", "prompt", "expected", "target", "variant")}
