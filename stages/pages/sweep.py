"""A sweep's page and tables: which points are best by each goal, what each costs the other, how factors interact.

A table is `{"commit", "targets", "factors": {key: [value]}, "goals": [{"name", "way"}], "points": [{"name", "values":
{key: value}, "figures": {name: number}, "failure": why or None}]}`, as flows/sweep.py makes it.
"""

import csv as spreadsheet
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import altair as alt
import numpy as np

from stages.errors import BadInput, nearest
from stages.maths.interaction import interaction
from stages.pages.plots import INKS, LINES, Plot, among, numbers, plot
from stages.pages.shell import Charts, page
from stages.pages.words import DASH, inert, number, span

Table = Mapping[str, Any]
Row = Mapping[str, Any]
Goal = Mapping[str, str]

WAYS = {"gain": "max", "capability": "max", "retention": "max", "perplexity": "min"}
"""Figures that are goals unless others are named, by the last part of the name, and which way is better."""


def goals(found: Sequence[Mapping[str, float]], asked: Sequence[str]) -> list[dict[str, str]]:
    """The goals that are asked for (max:NAME or min:NAME), or those of WAYS that differ between points.

    The last parts of a figure's name will do, where no other figure ends in them. Raises BadInput for a name that fits
    none or several.
    """
    names = sorted(set().union(*found))
    if not names:
        return []
    chosen = []
    for goal in asked:
        way, _, name = goal.partition(":")
        fitting = [each for each in names if each == name] or [each for each in names if each.endswith(f".{name}")]
        if len(fitting) != 1:
            hint = f"it may be {' or '.join(fitting)}" if fitting else nearest(name, names)
            raise BadInput(f"Expected a goal that names one figure of the points, got {name!r}; {hint}.")
        chosen.append({"name": fitting[0], "way": way})
    if asked:
        return chosen
    usual = [(key, name) for key in WAYS for name in names if name.split(".")[-1] == key and ".items." not in name]
    differing = [(key, name) for key, name in usual if len({each.get(name) for each in found}) > 1]
    return [{"name": name, "way": WAYS[key]} for key, name in differing or usual]


def done(table: Table, *names: str) -> list[Row]:
    """The points that have all of these figures."""
    return [row for row in table["points"] if not row["failure"] and all(name in row["figures"] for name in names)]


def figure(row: Row, name: str) -> dict[str, float] | None:
    """`{"value", "low", "high", "n"}` as far as there are; None without the figure."""
    known = row["figures"]
    if name not in known:
        return None
    also = {"low": f"{name}_low", "high": f"{name}_high", "n": name.replace(".accuracy.", ".items.")}
    return {"value": known[name]} | {
        key: known[key_of] for key, key_of in also.items() if key_of in known and key_of != name
    }


def cell(row: Row, name: str) -> str:
    """value [low, high], or a dash."""
    found = figure(row, name)
    if not found:
        return DASH
    return number(found["value"]) + (f" {span(found)}" if "low" in found and "high" in found else "")


def best(table: Table, goal: Goal) -> list[Row]:
    """The points that are best by the goal; several where they are equal."""
    rows = done(table, goal["name"])
    if not rows:
        return []
    top = (max if goal["way"] == "max" else min)(row["figures"][goal["name"]] for row in rows)
    return [row for row in rows if row["figures"][goal["name"]] == top]


def undominated(table: Table, both: Sequence[Goal]) -> list[Row]:
    """The points than which no other is as good by both goals and better by one: the Pareto frontier."""
    rows = done(table, *(goal["name"] for goal in both))
    signs = np.array([1 if goal["way"] == "max" else -1 for goal in both])
    at = (
        np.array([[row["figures"][goal["name"]] for goal in both] for row in rows]).reshape(len(rows), len(both))
        * signs
    )
    beaten = [bool(((at >= each).all(1) & (at > each).any(1)).any()) for each in at]
    return [row for row, less in zip(rows, beaten, strict=True) if not less]


def short(keys: Sequence[str]) -> dict[str, str]:
    """Each key with its last part, or with all of it where another ends in the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def label(table: Table, row: Row) -> str:
    """What tells the point apart: its values of the factors."""
    names = short(list(table["factors"]))
    return ", ".join(f"{names[key]}={row['values'][key]}" for key in names if key in row["values"]) or row["name"]


def frontier(table: Table) -> Plot | None:
    """One goal against the other, the points of the frontier named; None without two goals and two points."""
    both = table["goals"][:2]
    if len(both) < 2 or len(done(table, *(goal["name"] for goal in both))) < 2:
        return None
    names = [goal["name"] for goal in both]
    top = {row["name"] for row in undominated(table, both)}
    rows = [
        {"point": label(table, row), "x": row["figures"][names[1]], "y": row["figures"][names[0]]}
        | {"place": "on the frontier" if row["name"] in top else "behind it"}
        for row in done(table, *names)
    ]
    wide = alt.Scale(zero=False, padding=24)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("x:Q", title=names[1], scale=wide), y=alt.Y("y:Q", title=names[0], scale=wide)
    )
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        color=alt.Color("place:N", title=None, scale=among(["on the frontier", "behind it"], [INKS[2], INKS[0]])),
        tooltip=["point:N", *numbers("x", "y")],
    )
    text = (
        base.transform_filter("datum.place === 'on the frontier'").mark_text(dy=-12, fontSize=11).encode(text="point:N")
    )
    ways = " and ".join(f"{'more' if goal['way'] == 'max' else 'less'} {goal['name']}" for goal in both)
    caption = f"Better is {ways}. On the frontier no other point is as good in both and better in one."
    return plot("What one goal costs the other", caption, points + text, 340)


def together(table: Table, goal: Goal, first: str, second: str) -> Plot | None:
    """The goal over one factor, a line for each value of another; None unless all pairs of values have equally many."""
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in done(table, goal["name"]):
        if first in row["values"] and second in row["values"]:
            cells[row["values"][first], row["values"][second]].append(row["figures"][goal["name"]])
    levels, lines = table["factors"][first], table["factors"][second]
    if any(len(cells[a, b]) != len(cells[levels[0], lines[0]]) or not cells[a, b] for a in levels for b in lines):
        return None
    means = np.array([[np.mean(cells[a, b]) for b in lines] for a in levels])
    names = short([first, second])
    shares = interaction(means)
    if shares is None:
        caption = "All are equal, so there is nothing to explain."
    else:
        told = {names[first]: shares.first, names[second]: shares.second, "both together": shares.together}
        parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in told.items())
        caption = f"Parallel lines: no interaction. Of the differences between these means explains: {parts}."
    each = len(cells[levels[0], lines[0]])
    caption += f" {'One point' if each == 1 else f'Means of {each} points'} each."
    rows = [
        {"at": a, "line": b, "value": round(float(means[i, j]), 6)}
        for i, a in enumerate(levels)
        for j, b in enumerate(lines)
    ]
    drawn = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(point=alt.OverlayMarkDef(filled=True, size=40), strokeWidth=1.8)
        .encode(
            x=alt.X("at:N", title=first, sort=list(levels), axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title=goal["name"], scale=alt.Scale(zero=False)),
            color=alt.Color("line:N", title=names[second], legend=LINES, scale=among(list(lines))),
            tooltip=["at:N", "line:N", *numbers("value")],
        )
    )
    return plot(f"{names[first]} and {names[second]}: {goal['name']}", caption, drawn)


def columns(table: Table) -> list[str]:
    """The figures that a reader sees in the table: the goals."""
    return [goal["name"] for goal in table["goals"]]


def csv(table: Table) -> str:
    """Every point with its values and all its figures, for a spreadsheet."""
    rows = table["points"]
    keys = list(dict.fromkeys(key for row in rows for key in row["values"]))
    names = sorted({name for row in rows for name in row["figures"]})
    out = io.StringIO()
    writer = spreadsheet.writer(out, lineterminator="\n")
    writer.writerow(["experiment", *keys, *names, "failure"])
    for row in rows:
        values = [row["values"].get(key, "") for key in keys]
        writer.writerow([row["name"], *values, *(row["figures"].get(name, "") for name in names), row["failure"] or ""])
    return out.getvalue()


def markdown(table: Table) -> str:
    """The points with their goals in Markdown, failed ones with the reason."""
    names = columns(table)
    lines = [f"| point | {' | '.join(map(inert, names)) or 'state'} |", "|---" * (max(1, len(names)) + 1) + "|"]
    for row in table["points"]:
        failed = f"failed: {inert(row['failure'])}" if row["failure"] else ""
        cells = [cell(row, name) for name in names] or ["done"]
        lines.append(f"| {inert(label(table, row))} | {' | '.join([failed, *cells[1:]] if failed else cells)} |")
    return "\n".join(lines) + "\n"


def render(table: Table) -> str:
    """The page as HTML that loads nothing."""
    charts = Charts()
    pairs = list(combinations(table["factors"], 2))
    told = [together(table, goal, *pair) for goal in table["goals"] for pair in pairs]
    uneven = bool(pairs and table["goals"]) and not all(told)
    rows = [
        {"row": row, "label": label(table, row), "cells": [figure(row, name) for name in columns(table)]}
        for row in table["points"]
    ]
    tops = [
        {
            "goal": goal,
            "n": len(done(table, goal["name"])),
            "rows": [(label(table, r), figure(r, goal["name"])) for r in top],
        }
        for goal in table["goals"]
        if (top := best(table, goal))
    ]
    return page(
        "sweep.html",
        charts,
        table=table,
        rows=rows,
        tops=tops,
        failed=sum(bool(row["failure"]) for row in table["points"]),
        frontier=charts.placed([frontier(table)]),
        pairs=charts.placed(told),
        uneven=uneven,
    )
