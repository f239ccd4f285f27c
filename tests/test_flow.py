"""The drawn strategy flow: what is highlighted is the way that the plan took."""

import json

import pytest
from test_plan import ROUTES, SETTINGS

from stages.pages.flow import flows
from stages.plan import METHODS, plan


def drawn(route: str) -> dict:
    """The view of one donor, from the plan as it is read from its file, whose keys are sorted."""
    found = {"donors": {"d": plan(SETTINGS, "d", **ROUTES[route][0])}, "methods": METHODS}
    (flow,) = flows(json.loads(json.dumps(found, sort_keys=True)))
    return flow


@pytest.mark.parametrize("route", ROUTES)
def test_one_method_is_highlighted_and_it_is_the_recommended_one(route):
    flow = drawn(route)
    ways = [row[side] for row in flow["rows"] for side in ("aside", "onward")]
    assert {way["to"] for way in ways if way["to"]} == set(METHODS.values())
    assert [way["to"] for way in ways if way["to"] and way["taken"]] == [METHODS[ROUTES[route][1][-1]]]
    assert flow["method"] == METHODS[ROUTES[route][1][-1]]


@pytest.mark.parametrize("route", ROUTES)
def test_each_fork_on_the_way_is_left_by_the_answer_that_it_shows(route):
    for row in drawn(route)["rows"]:
        left = [side for side in ("aside", "onward") if row[side]["taken"] and not row[side]["detour"]]
        assert len(left) == row["step"]["taken"]
        assert not left or row["step"]["answer"] in row[left[0]]["answers"] or row["aside"]["detour"]


def test_the_bridge_stands_beside_the_fork_that_sends_there_and_leads_back():
    for route, (_, way) in ROUTES.items():
        first, *others = drawn(route)["rows"]
        assert first["aside"]["detour"]["taken"] == first["aside"]["taken"] == ("bridge" in way)
        assert first["aside"]["answers"] == "no or not measured"
        assert first["onward"]["taken"]
        assert not any(row["aside"]["detour"] for row in others)


def test_without_a_plan_nothing_is_drawn():
    assert flows({}) == []
