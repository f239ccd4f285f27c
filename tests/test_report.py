import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import browser, opened
from findings import further
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import MODELS, PARAMS, experiment

from stages import report as stage
from stages import uncertainty
from stages.pages.labels import place
from stages.pages.roles import read_roles
from stages.pages.texts import tame
from stages.pages.words import figure, inert

__all__ = ["browser"]  # a fixture


def arguments(root: Path) -> dict[str, Path]:
    names = ("evaluation", "uncertainty", "catalog", "trace", "bridges", "gates", "models", "donors", "selection")
    more = ("regressions", "counterfactual", "showcase", "cost")
    return {name: root / name for name in names + more} | {
        "plan": root / "plan" / "plan.json",
        "params": root / "params.yaml",
    }


def write(root: Path, out: Path) -> Path:
    stage.main(**arguments(root), out=out)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = experiment(tmp_path_factory.mktemp("experiment"))
    for variant in PARAMS["inject"] | PARAMS["transplant"]:
        rows, out = root / "evaluation" / variant / "items.parquet", root / "uncertainty" / f"{variant}.json"
        uncertainty.main(rows, out, root / "params.yaml")
    further(root, PARAMS["inject"] | PARAMS["transplant"])
    write(root, root / "report")
    return root


@pytest.fixture(scope="module")
def summary(made):
    return json.loads((made / "report" / "summary.json").read_text())


@pytest.fixture(scope="module")
def page(made):
    return (made / "report" / "index.html").read_text()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_opens_from_disk_draws_every_chart_and_asks_for_nothing(browser, made, width, scheme):
    tab, troubles = opened(browser, made / "report" / "index.html", width, scheme)
    drawn = tab.evaluate("[...document.querySelectorAll('.chart')].map(c => c.querySelectorAll('svg path').length)")
    assert len(drawn) == 43
    assert min(drawn) > 2
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert troubles == []
    tab.close()


def test_the_charts_can_be_read_aloud(browser, made):
    tab, _ = opened(browser, made / "report" / "index.html")
    spoken = tab.evaluate("[...document.querySelectorAll('.chart')].map(chart => chart.ariaLabel)")
    assert len(set(spoken)) == len(spoken) == 43
    assert all(spoken)
    tab.close()


def text_of(page: str) -> str:
    """What the page's body says, without markup and scripts."""
    body = re.sub(r"<script.*?</script>", "", page.split("<body>")[1], flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body.replace("<wbr>", ""))).split())


def test_page_markdown_and_json_say_the_same(made, page, summary):
    told, table = text_of(page), (made / "report" / "summary.md").read_text()
    for name, entry in (summary["donors"] | summary["variants"]).items():
        row = next(line for line in table.splitlines() if line.startswith(f"| {inert(name)} |"))
        for key in ("capability", "gain", "recovery", "retention", "perplexity_ratio", "kl_to_target"):
            assert figure(entry, key) in row
            if entry[key]:
                assert figure(entry, key) in told


def test_the_finding_names_the_best_variant_and_its_control(page):
    said = re.search("<h1>(.*?)</h1>", page)
    assert said
    assert said[1].startswith("bridged_blade raises the capability from")
    assert said[1].endswith("its control null_donor gains nothing.")


def test_sources_stand_shortened_with_the_whole_hash_beside(page):
    assert f'<abbr title="{"ab" * 32}">{"ab" * 6}</abbr>' in page


def test_a_donor_drawn_anew_is_not_said_to_have_learned(page):
    told = text_of(page)
    assert "calculator – trained calculator · recipe scratch · rank 12 · seed 0" in told
    assert "null_calculator – trained calculator · null_seed 0 blade" in told


def test_the_same_inputs_give_the_same_bytes_in_another_process(made, tmp_path):
    options = [part for name, path in arguments(made).items() for part in (f"--{name}", str(path))]
    command = [sys.executable, "-m", "stages.report", *options, "--out", str(tmp_path / "again")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("bridged_blade raises")
    for name in ("index.html", "summary.json", "summary.md", "capability.svg", "frontier.svg"):
        first = (made / "report" / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes()
        assert str(made).encode() not in first


def test_evidence_that_is_missing_is_called_not_measured(browser, made, tmp_path):
    shutil.copytree(made / "evaluation", tmp_path / "evaluation")
    shutil.copy(made / "params.yaml", tmp_path)
    shutil.rmtree(tmp_path / "evaluation" / "blade")
    path = write(tmp_path, tmp_path / "report") / "index.html"
    told = text_of(path.read_text())
    absent = ("Layers", "The plan’s path", "Calibration", "Parameters, time and memory", "Where the gate opens")
    for what in (*absent, "What got worse", "Effects on minimal pairs"):
        assert f"{what}: not measured." in told
    assert "○ not measured" in told
    tab, troubles = opened(browser, path)
    assert troubles == []
    tab.close()


TURNED = "\u202eabc \u05d0\u05d1\u05d2 🙂 [link](javascript:alert(3)) " + "x" * 5000
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_hostile_names_and_values_are_inert(browser, tmp_path):
    inject = {HOSTILE.replace("/", "∕"): {"donor": "sibling", "note": HOSTILE}, "‮[link](javascript:alert(3))|`🙂": {}}
    changed = {"closed_gate": "x" * 120, "blade": next(iter(inject)), "bridged_blade": list(inject)[1]}
    inject["x" * 120] = {"donor": "sibling", "control_for": next(iter(inject))}
    root = experiment(tmp_path, changed, inject=inject)
    plan = json.loads((root / "plan" / "plan.json").read_text())
    sibling = plan["donors"].pop("sibling")
    for step in sibling["path"]:
        step |= dict.fromkeys(("question", "answer", "figure", "needed", "remedy"), HOSTILE)
    sibling["recommendation"] |= {"note": HOSTILE, "recipe": {HOSTILE: HOSTILE}}
    plan["donors"][HOSTILE] = sibling
    plan["methods"] = dict.fromkeys(plan["methods"], HOSTILE)
    (root / "plan" / "plan.json").write_text(json.dumps(plan))
    source = root / "models" / "target" / "source.json"
    source.write_text(json.dumps({"source": HOSTILE, "revision": None, "files": {HOSTILE: HOSTILE}}))
    further(root, inject, say=HOSTILE + TURNED, prompt=HOSTILE + TURNED)
    out = write(root, root / "report")
    tab, troubles = opened(browser, out / "index.html", width=390)
    for name in inject:
        tab.select_option("#show-acts", tame(name))
    for details in tab.query_selector_all("details"):
        details.evaluate("each => { each.open = true }")
    assert "\u202e" not in tab.evaluate("document.body.innerText")
    assert troubles == []
    assert tab.evaluate("document.querySelectorAll('img, main script').length") == 0
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()
    table = (out / "summary.md").read_text()
    assert "<" not in table
    assert "[link](" not in table
    assert "\u202e" not in table
    rows = [line for line in table.split("\n\n")[1].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 1 + len(PARAMS["adopt"]) + len(inject) + len(PARAMS["transplant"])
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_settings_have_defaults_and_misspelt_ones_are_refused(made, tmp_path):
    assert stage.Report() == stage.Report(resamples=2000, confidence=0.95, seed=0, seeds={})
    arguments_ = arguments(made) | {"params": tmp_path / "params.yaml", "out": tmp_path / "report"}
    text = (made / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("resamples", "resample"))
    with pytest.raises(ValueError, match="did you mean 'resamples'"):
        stage.main(**arguments_)
    assert not (tmp_path / "report").exists()


def test_a_damaged_table_is_said_in_a_sentence_and_nothing_is_lost(made, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    (root / "catalog" / "sibling.parquet").write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"sibling\.parquet cannot be read as parquet"):
        write(root, root / "report")
    assert (root / "report" / "index.html").read_bytes() == (made / "report" / "index.html").read_bytes()


def test_every_model_is_on_the_page(page):
    told = text_of(page)
    assert all(name in told for name in MODELS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 440), st.floats(0, 360), st.sampled_from(["blade", "null_donor"])), max_size=4))
def test_names_in_a_chart_do_not_lie_on_one_another(points):
    labels = place(points, 440, 360)
    boxes = []
    for (x, y, name), label in zip(points, labels, strict=True):
        left = x - 9 - 6.6 * len(name) if label.left else x + 9
        boxes.append((left, y + label.down - 7, left + 6.6 * len(name), y + label.down + 7))
    crowded = [a for i, a in enumerate(boxes) for b in boxes[:i]
               if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] - 1e-6 and b[1] < a[3] - 1e-6]  # fmt: skip
    assert crowded == []


def test_roles_are_read_as_the_report_shows_them(made):
    assert list(read_roles(made / "params.yaml").donors) == ["sibling", "calculator", "null_calculator"]
