"""What a reader does with the page: chooses, turns pages, reads gates; and how it takes much evidence, or none."""

import importlib.util
import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from browsing import browser, opened
from findings import further, regressions, showcase
from synthetic import PARAMS, experiment

from benchmarks import page as large
from stages import report as stage
from stages.pages import compare, texts, words
from stages.pages.evidence import Places, gather
from stages.pages.page import render
from stages.pages.regressions import regressions as losses
from stages.pages.roles import Roles, read_roles
from stages.pages.showcase import showcases
from stages.pages.verdict import Rules
from stages.storage import read_json

__all__ = ["browser"]  # a fixture
AXE = importlib.util.find_spec("axe_playwright_python")
VARIANTS = list(PARAMS["inject"] | PARAMS["transplant"])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = experiment(tmp_path_factory.mktemp("page"), report={"resamples": 100})
    further(root, VARIANTS)
    names = ("evaluation", "uncertainty", "catalog", "trace", "bridges", "gates", "models", "donors", "selection")
    more = ("regressions", "counterfactual", "showcase", "cost")
    places = {name: root / name for name in names + more} | {"plan": root / "plan" / "plan.json"}
    stage.main(**places, out=root / "report", params=root / "params.yaml")
    return root


@pytest.fixture(scope="module")
def roles(root) -> Roles:
    return read_roles(root / "params.yaml")


@pytest.fixture(scope="module")
def evidence(root, roles):
    names = (
        "evaluation uncertainty catalog trace bridges gates plan/plan.json models donors selection regressions "
        "counterfactual showcase cost"
    )
    return gather(Places(*(root / name for name in names.split())), roles)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_nothing_to_mend(browser, root, width, scheme):
    if AXE is None:
        assert "CI" not in os.environ, "Expected axe-playwright-python, found none; install requirements.in."
        pytest.skip("no axe-core here")
    from axe_playwright_python.sync_playwright import Axe

    tab, _ = opened(browser, root / "report" / "index.html", width, scheme)
    kinds = ("#cost details.rows", "#pairs details.rows", "#acts article:nth-of-type(1) details",
             "#acts article:nth-of-type(2) details", "#confidence details.topic")  # fmt: skip
    for kind in kinds:
        tab.locator(kind).first.evaluate("each => { each.open = true }")
    found = Axe().run(tab).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found] == []
    tab.close()


def test_variants_are_compared_by_keyboard_in_one_table_and_in_every_chart(browser, root):
    tab, troubles = opened(browser, root / "report" / "index.html")

    def columns() -> list[str]:
        return tab.evaluate(
            "[...document.querySelectorAll('.compared thead [data-of]:not([hidden])')].map(each => each.dataset.of)"
        )

    def drawn() -> str:
        return tab.evaluate("[...document.querySelectorAll('#compare .chart')].map(each => each.textContent).join(' ')")

    assert columns() == [name for name in VARIANTS if not PARAMS["inject"].get(name, {}).get("control_for")][:-1]
    assert "null_donor" not in drawn()
    for name in ("null_donor", "blade"):
        tab.focus(f"input[value={name}]")
        tab.keyboard.press("Space")
    charts = "[...document.querySelectorAll('#compare .chart')].map(each => each.textContent)"
    tab.wait_for_function(f"{charts}.every(words => words.includes('null_donor') && !/\\bblade/.test(words))")
    assert columns() == ["bridged_blade", "null_donor", "published_blade", "transplant"]
    tab.focus("#show-acts")
    tab.keyboard.press("ArrowUp")
    chosen = tab.evaluate("document.querySelector('#show-acts').value")
    assert {chosen} == set(tab.evaluate("[...document.querySelectorAll('select.show')].map(each => each.value)"))
    assert troubles == []
    tab.close()


def test_losses_are_turned_page_by_page_and_told_by_task(browser, root):
    tab, _ = opened(browser, root / "report" / "index.html")
    tab.select_option("#show-worse", "transplant")
    told = tab.locator("#worse .pager [role=status]")
    rows = tab.locator("#worse .paged tbody tr:visible")
    assert (told.inner_text(), rows.count()) == ("1 to 20 of 200", 20)
    tab.get_by_role("button", name="Next").click()
    assert told.inner_text() == "21 to 40 of 200"
    tab.select_option("#worse select.task", "capability")
    assert told.inner_text() == "1 to 20 of 53"
    tab.select_option("#show-worse", "random_transplant")
    assert tab.locator("#worse .slot").inner_text() == "random_transplant: not measured."
    tab.close()


def test_each_token_is_shaded_by_the_gate_of_the_chosen_part(browser, root):
    tab, _ = opened(browser, root / "report" / "index.html")
    tab.select_option("#show-acts", "closed_gate")

    def shade() -> float:
        return float(
            tab.locator("#acts .tokens span", has_text="123").first.evaluate("t => t.style.getPropertyValue('--gate')")
        )

    assert shade() == 0.9
    tab.select_option("#acts select.part", "1")
    assert shade() == 0.6
    answers = " ".join(tab.locator("#acts .answers").first.inner_text().split())
    assert answers == "expected 579 target ✗ wrong 57 donor ✓ right 579 graft ✓ right 579"
    tab.close()


def test_what_was_not_measured_of_one_variant_is_said_in_every_section(root, evidence, roles):
    page = (root / "report" / "index.html").read_text()
    last = re.findall(r'<template data-of="random_transplant">(.*?)</template>', page, re.S)
    assert len(last) == 4
    assert all("not measured." in each for each in last)
    summary = read_json(root / "report" / "summary.json")
    cells = {words_: cells for _, rows in compare.lines(summary, roles, evidence) for words_, cells in rows}
    assert cells["parameters added"]["random_transplant"] == "not measured"
    assert cells["parameters added"]["blade"] == "200,000, 0.15 % of the target’s"


def test_comparison_markdown_and_summary_say_the_same_figures(root, evidence, roles):
    summary, told = read_json(root / "report" / "summary.json"), (root / "report" / "summary.md").read_text()
    topics = dict(compare.lines(summary, roles, evidence))
    for words_, cells in topics["Verdict"][1:]:
        key = next(key for key, name in compare.FIGURES.items() if name == words_)
        assert cells == {name: words.figure(summary["variants"][name], key) for name in VARIANTS}
    for heading in ("Cost", "Minimal pairs", "Confidence", "Items that got worse"):
        assert f"## {heading}\n" in told
        for name in compare.at_first(summary, roles):
            assert all(cells[name] in told for _, cells in topics[heading])


def test_losses_are_dealt_evenly_from_tasks_and_counted_whole(evidence):
    many = replace(evidence, regressions={f"v{i}": regressions(400) for i in range(50)})
    found = losses(many)
    assert {len(view["rows"]) for view in found.values()} == {40}
    first = found["v0"]
    assert first["total"] == 500
    assert [(c["task"], c["lost"]) for c in first["counts"]] == [("retention", 400), ("capability", 100)]
    assert sorted(pd.Series(row["task"] for row in first["rows"]).value_counts()) == [20, 20]
    assert losses(replace(evidence, regressions={"v": []}))["v"]["rows"] == []


def test_only_test_items_count_as_what_the_target_had_right(evidence):
    rows = evidence.items["target"].assign(split="calibration")
    rows.loc[rows.task == "retention", "split"] = "test"
    view = losses(replace(evidence, items={"target": rows}, regressions={"v": regressions(4)}))["v"]
    right = int(rows.loc[rows.task == "retention", "right"].sum())
    assert {count["task"]: count["had"] for count in view["counts"]} == {"retention": right, "capability": None}


def test_gates_are_shaded_up_to_their_largest_and_texts_are_capped():
    told = showcase()
    told["texts"][0]["tokens"][0]["gates"] = [3.6]
    told["texts"][0]["tokens"][1]["gates"] = [None]
    view = showcases({"v": told})["v"]
    shades = [token["shades"][0] for token in view["texts"][0]["tokens"]]
    assert (view["top"], shades[:3]) == (3.6, [1.0, 0.0, 0.25])
    many = {"parts": [], "texts": told["texts"] * 40}
    view = showcases({"v": many})["v"]
    assert (len(view["texts"]), view["left_out"]) == (12, 108)
    assert not showcases({"v": {"parts": [], "texts": [told["texts"][2] | {"tokens": [{"text": "a", "gates": []}]}]}})[
        "v"
    ]["gates"]


def test_text_that_turns_the_line_around_is_told_by_its_code_point_and_long_text_is_cut():
    assert texts.shown("a\u202eb\x1b[31m\r\nאב🙂") == "a‹U+202E›b‹U+001B›[31m\nאב🙂"
    assert texts.shown("x" * 500, 10) == "x" * 10 + "… (500 characters in all)"
    assert texts.shown(None) == ""


def test_fifty_variants_on_a_hundred_thousand_items_make_a_page_within_its_limits(browser, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(large.build(variants=50, items=100_000))
    assert path.stat().st_size < 10_000_000
    tab, troubles = opened(browser, path)
    assert tab.evaluate("document.querySelectorAll('.paged tbody tr').length") <= 200
    assert tab.evaluate("document.querySelectorAll('.compared thead [data-of]:not([hidden])').length") == 5
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = tab.locator(".choices input:not(:checked)")
    for _ in range(3):
        boxes.first.check()
    assert boxes.first.is_disabled()
    assert troubles == []
    tab.close()


def test_an_experiment_without_variants_still_has_a_page(evidence):
    summary = {"target": large.entry(0.1, 0), "donors": {}, "variants": {}}
    settings = stage.Report().model_dump() | Rules().model_dump()
    page = render(summary, Roles({}, {}), replace(evidence, regressions={}, showcase={}, cost={}), settings)
    assert "No variant was built, so there is nothing to judge." in page
