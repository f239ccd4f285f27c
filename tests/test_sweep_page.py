"""A sweep's page: best by goal, the frontier, two factors together; and its tables."""

import csv
import io
import random

import pytest

from stages.errors import BadInput
from stages.pages import sweep


def table(count: int = 12, seed: int = 0) -> dict:
    """Points of a 3 × 2 grid, over and over, with two figures that pull in no particular direction."""
    draw = random.Random(seed)
    points = [
        {
            "name": f"point-{i}",
            "values": {"inject.blade.layer": "abc"[i % 3], "inject.blade.gate": "xy"[i // 3 % 2]},
            "figures": {
                "blade.accuracy.capability": draw.randrange(6) / 10,
                "blade.accuracy.retention": draw.randrange(6) / 10,
                "blade.items.capability": 50,
                "blade.gain": i / 100,
                "blade.gain_low": i / 100 - 0.1,
                "blade.gain_high": i / 100 + 0.1,
            },
            "failure": None,
        }
        for i in range(count)
    ]
    goals = [
        {"name": f"blade.accuracy.{name}", "way": way} for name, way in (("capability", "max"), ("retention", "min"))
    ]
    factors = {"inject.blade.layer": list("abc"), "inject.blade.gate": list("xy")}
    return {"commit": "c" * 40, "targets": ["report"], "factors": factors, "goals": goals, "points": points}


@pytest.mark.parametrize("seed", range(5))
def test_the_frontier_holds_exactly_the_points_that_no_other_dominates(seed):
    given = table(seed=seed)
    at = {row["name"]: (row["figures"]["blade.accuracy.capability"], -row["figures"]["blade.accuracy.retention"])
          for row in given["points"]}  # fmt: skip
    kept = {
        name for name, (x, y) in at.items()
        if not any(u >= x and v >= y and (u, v) != (x, y) for u, v in at.values())
    }  # fmt: skip
    assert {row["name"] for row in sweep.undominated(given, given["goals"])} == kept


def test_the_best_are_all_that_share_the_best_value_and_failed_points_do_not_count():
    given = table()
    for row, value in zip(given["points"], [0.9, 0.3, 0.9] + [0.1] * 9, strict=True):
        row["figures"]["blade.accuracy.capability"] = value
    assert [row["name"] for row in sweep.best(given, given["goals"][0])] == ["point-0", "point-2"]
    given["points"][0] |= {"failure": "gone", "figures": {}}
    assert [row["name"] for row in sweep.best(given, given["goals"][0])] == ["point-2"]


def test_goals_go_by_the_end_of_a_name_and_default_to_what_differs():
    found = [row["figures"] for row in table()["points"]]
    assert sweep.goals(found, ["min:retention"]) == [{"name": "blade.accuracy.retention", "way": "min"}]
    assert [goal["name"] for goal in sweep.goals(found, [])] == [
        "blade.gain", "blade.accuracy.capability", "blade.accuracy.retention",
    ]  # fmt: skip
    assert [
        goal["name"] for goal in sweep.goals([{"a.gain": 1.0, "a.capability": each} for each in (0.1, 0.2)], [])
    ] == ["a.capability"]
    with pytest.raises(
        BadInput, match="got 'capability'; it may be blade.accuracy.capability or blade.items.capability"
    ):
        sweep.goals(found, ["max:capability"])
    with pytest.raises(BadInput, match="did you mean 'blade.gain'"):
        sweep.goals(found, ["max:blade.gian"])
    assert sweep.goals([], ["max:anything"]) == []


def test_two_factors_are_drawn_by_means_and_left_out_where_combinations_are_missing():
    given = table()
    for row in given["points"]:  # additive, so no interaction
        row["figures"]["blade.accuracy.capability"] = {"a": 0.1, "b": 0.2, "c": 0.6}[
            row["values"]["inject.blade.layer"]
        ]
    drawn = sweep.together(given, given["goals"][0], *given["factors"])
    assert drawn is not None and "layer 100 %, gate 0 %, both together 0 %. Means of 2 points each." in drawn.caption
    given["points"][0] |= {"failure": "gone", "figures": {}}
    assert sweep.together(given, given["goals"][0], *given["factors"]) is None
    assert "their shares are undefined" in sweep.render(given)


def test_a_page_escapes_what_it_is_given_and_loads_nothing():
    given = table()
    given["points"][1] |= {"failure": "<b>no</b>", "figures": {}}
    given["factors"]["inject.blade.gate"][0] = given["points"][0]["values"]["inject.blade.gate"] = "<i>"
    html = sweep.render(given)
    assert html == sweep.render(given)
    assert "&lt;b&gt;no" in html and "<b>no" not in html and "<i>" not in html
    assert "default-src 'none'" in html and "<b>1 failed</b>" in html
    assert "|" not in sweep.markdown(given).splitlines()[3].replace(" | ", "").strip("|")


def test_tables_hold_every_point_and_the_spreadsheet_every_figure():
    given = table()
    rows = list(csv.DictReader(io.StringIO(sweep.csv(given))))
    assert [row["experiment"] for row in rows] == [row["name"] for row in given["points"]]
    assert float(rows[3]["blade.gain_low"]) == 3 / 100 - 0.1
    given["goals"] = [{"name": "blade.gain", "way": "max"}]
    assert "| layer=b, gate=x | 0.010 [−0.090, 0.110] |" in sweep.markdown(given)
    assert len(sweep.markdown(given).splitlines()) == 2 + len(rows)
