"""Pages opened in a real browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; the tests that need one are skipped where there is none, but not where CI runs."""
    if CHROMIUM is None:
        assert "CI" not in os.environ, "Expected chromium on PATH, found none; install it."
        pytest.skip("no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        running = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield running
        running.close()


def opened(browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page once all charts are drawn, and everything that it complained of or asked for."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    troubles: list[str] = []
    tab.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda asked: troubles.append(asked.url) if asked.url != path.as_uri() else None)
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-drawn]", timeout=60_000)
    return tab, troubles
