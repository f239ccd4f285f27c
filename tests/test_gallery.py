"""The gallery: every way's variants judged on a survey's items, and a page of what their making showed."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from synthetic import items

from stages import gallery as stage
from stages.errors import BadInput
from stages.pages.gallery import WAYS
from stages.pages.roles import read_roles
from stages.pages.verdict import Rules
from stages.report import Report

PARAMS = {
    "adopt": {"sibling": {"trained": "sibling"}},
    "specialists": {"moe": {"trained": "moe"}},
    "report": {"resamples": 200},
    "verdict": {},
    "merge": {
        "half": {"donors": {"sibling": 0.5}, "method": "linear"},
        "noise": {"control_for": "half", "donors": {"sibling": 0.5}, "method": "random"},
    },
    "blades": {"units_blade": {"donor": "sibling"}},
    "swap": {"moved": {"target": "moe", "donor": "moe"}},
}
MAKING = {
    "way": "merge",
    "donors": ["sibling"],
    "recipe": {"method": "<b>linear</b>"},
    "parameters": {"moved": 1234567, "added": 0},
    "figures": {"mean_change": 0.25, "left_open": None},
    "curves": {"KL over strength": {"x": "strength", "y": "nats", "points": [[0.5, 0.1], [1.0, 0.3], [2.0, None]]}},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gallery")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    known = {"target": "target", "sibling": "sibling", "half": "blade", "noise": "closed_gate", "units_blade": "blade"}
    for name, like in known.items():
        rows = items(like)
        if name in ("half", "noise", "units_blade"):  # a survey of every third item
            rows = rows.iloc[::3]
        if name == "units_blade":
            asked = rows.loc[rows.task == "capability"]
            rows = pd.concat([rows.loc[rows.task != "retention"], asked.assign(task="units", right=True)])
        folder = root / ("evaluation" if name in ("target", "sibling") else "survey") / name
        folder.mkdir(parents=True)
        rows.reset_index(drop=True).to_parquet(folder / "items.parquet", index=False)
    (root / "making").mkdir()
    (root / "making" / "half.json").write_text(json.dumps(MAKING))
    (root / "synergy").mkdir()
    return {name: root / name for name in ("evaluation", "survey", "making", "synergy")} | {
        "out": root / "out",
        "params": root / "params.yaml",
    }


@pytest.fixture(scope="module")
def made(places) -> Path:
    stage.main(**places)
    return places["out"]


def test_variants_are_judged_on_the_surveys_items_beside_target_and_control(made):
    summary = json.loads((made / "gallery.json").read_text())["summary"]
    whole, third = items("target"), items("target").iloc[::3]
    asked = third.loc[third.task == "capability"]
    assert summary["target"]["capability"]["n"] == len(asked) < (whole.task == "capability").sum()
    assert summary["target"]["capability"]["value"] == pytest.approx(asked.right.mean(), abs=1e-6)
    assert summary["variants"]["half"]["recovery"]["value"] > 0.5
    assert summary["variants"]["half"]["donor"] == "sibling"
    assert summary["variants"]["noise"]["verdict"].startswith("control")


def test_models_asked_about_several_domains_have_a_row_and_others_none(made):
    rows = json.loads((made / "gallery.json").read_text())["domains"]
    assert [row["name"] for row in rows] == ["units_blade"]
    assert rows[0]["cells"]["units"]["value"] == 1.0
    assert rows[0]["cells"]["dates"] is None


def test_the_page_shows_what_making_showed_and_escapes_it(made):
    page = (made / "index.html").read_text()
    assert "1,234,567" in page
    assert "&lt;b&gt;linear&lt;/b&gt;" in page and "<b>linear</b>" not in page
    assert "KL over strength" in page
    assert "mean change" in page and "left open" not in page.split("How to read")[0]


def test_the_same_input_gives_the_same_bytes(places, made, tmp_path):
    stage.main(**places | {"out": tmp_path / "again"})
    for name in ("gallery.json", "gallery.md", "index.html"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_a_survey_on_other_items_is_refused(places, tmp_path):
    rows = items("blade").iloc[::3]
    rows = rows.assign(id=rows.id + "x")
    (tmp_path / "half").mkdir()
    rows.to_parquet(tmp_path / "half" / "items.parquet", index=False)
    with pytest.raises(BadInput, match="items that the target was evaluated on"):
        stage.main(**places | {"survey": tmp_path, "out": tmp_path / "out"})


def test_nothing_surveyed_is_refused(places, tmp_path):
    with pytest.raises(BadInput, match="Expected surveyed variants, got none"):
        stage.main(**places | {"survey": tmp_path / "empty", "out": tmp_path / "out"})


def surveyed(like: str, units: float) -> pd.DataFrame:
    """A survey of every third item and of conversions, of which a share is right."""
    rows = items(like).iloc[::3]
    asked = rows.loc[rows.task == "capability"].assign(task="units")
    asked["right"] = pd.array([i < units * len(asked) for i in range(len(asked))], dtype="boolean")
    return pd.concat([rows, asked], ignore_index=True)


def test_a_specialists_blade_is_judged_on_its_domain_and_seeds_of_other_sections_are_pooled(tmp_path):
    blades = {"units_blade": {"donor": "units", "prompts": "domains/units"},
              "null": {"donor": "units", "prompts": "domains/units", "control_for": "units_blade"}}  # fmt: skip
    params = PARAMS | {"specialists": {"units": {"trained": "units"}}, "blades": blades, "merge": {}, "swap": {}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    roles = read_roles(tmp_path / "params.yaml", tuple(WAYS), ("adopt", "specialists"))
    evaluated = {name: items(name) for name in ("target", "sibling")}
    survey = {"target": surveyed("target", 0.1), "units": surveyed("sibling", 0.9),
              "units_blade": surveyed("closed_gate", 0.8), "null": surveyed("closed_gate", 0.1),
              "blade": surveyed("blade", 0.1), "blade_2": surveyed("bridged_blade", 0.1)}  # fmt: skip
    settings = Report(resamples=200, seeds={"blade": ("blade_2",)})
    summary, _ = stage.gallery(settings, Rules(), roles, evaluated, survey)
    entry = summary["variants"]["units_blade"]
    assert entry["verdict"] == "better"
    assert entry["gain"]["value"] == 0
    assert entry["tasks"]["units"]["recovery"]["value"] == pytest.approx(0.7 / 0.8)
    assert summary["variants"]["null"]["verdict"] == "control: fails as it should"
    assert summary["donors"]["units"]["tasks"]["units"]["change"]["value"] == pytest.approx(0.8)
    assert summary["seeds"]["blade"]["gain"]["seeds"] == 2
