"""DVC's plots open offline: the page has its scripts inside, and DVC's own have no place in it."""

import configparser
import re
import shutil
from pathlib import Path

import pytest
from dvc_render.html import HTML
from dvc_render.vega import VegaRenderer
from playwright.sync_api import sync_playwright

from stages import plots_page

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A plot of two points as DVC would put it into the page."""
    place = tmp_path_factory.mktemp("plots") / "index.html"
    plots_page.main(place.with_name("template.html"))
    points = [{"step": i, "value": i * i, "rev": "workspace"} for i in range(2)]
    renderer = VegaRenderer(points, "curve", x="step", y="value", revs_with_datapoints=["workspace"])
    document = HTML(place.with_name("template.html").read_text())
    document.with_scripts(renderer.SCRIPTS)
    document.with_element(renderer.generate_html(html_path=str(place)))
    place.write_text(document.embed())
    return place


def test_no_script_comes_from_elsewhere(filled):
    told = filled.read_text()
    assert not re.search(r"<script[^>]+src=|<link|cdn\.jsdelivr\.net/npm/vega@", told)
    assert '"step"' in told and "{plot_divs}" not in told and "{scripts}" not in told


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_it_without_a_request(filled):
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if "input spec" in message.text else None)
        page.goto(filled.as_uri())
        page.wait_for_selector("canvas, svg.marks", timeout=60_000)
        browser.close()
    assert asked == [filled.as_uri()] and not said


def test_dvc_is_told_of_the_page():
    config = configparser.ConfigParser()
    config.read_string(re.sub(r"^\s+", "", (ROOT / ".dvc" / "config").read_text(), flags=re.M))
    named = (ROOT / ".dvc" / config["plots"]["html_template"]).resolve()
    assert named == ROOT / "data" / "plots.html"
    assert f"--out {named.relative_to(ROOT)}" in (ROOT / "dvc.yaml").read_text()
