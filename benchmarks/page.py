"""How long the report's page takes to open when an experiment is large: 50 variants judged on 100,000 items.

    python -m benchmarks.page --out /tmp/large.html

The page is made of invented figures in the formats of the stages, then opened from disk in Chromium, each time in a
fresh tab. Printed are its bytes, the seconds until it can be read (loaded, laid out, with the charts in sight drawn),
and those until the last chart further down is drawn too.
"""

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from stages.pages.evidence import Evidence
from stages.pages.page import render
from stages.pages.roles import Role, Roles
from stages.pages.summary import FIGURES
from stages.report import Report

CATEGORIES = ("agreement", "negation", "number", "entity", "operand")
SCORES = ("max_probability", "entropy", "margin", "mean_loglikelihood", "gate", "divergence")


def figure(value: float, n: int) -> dict[str, float]:
    return {"value": round(value, 6), "low": round(value - 0.01, 6), "high": round(value + 0.01, 6), "n": n}


def entry(share: float, items: int) -> dict[str, Any]:
    """A model's figures in the summary, around `share`."""
    kinds = [(group, digits) for group in ("addition", "subtraction") for digits in (1, 2, 3)]
    by = [{"group": group, "digits": digits, **figure(share, items // 6)} for group, digits in kinds]
    found = {name: figure(share, items) for name in FIGURES} | {"perplexity_ratio": figure(1 + share / 50, items)}
    return found | {"undefined": {}, "capability_by": by, "mcnemar_p": 0.01}


def build(variants: int, items: int) -> str:
    """The page as HTML."""
    rng = np.random.default_rng(0)
    names = [f"variant_{i:02d}" for i in range(variants)]
    shares = dict(zip(names, rng.uniform(0.05, 0.95, variants), strict=True))
    roles = Roles(
        {"donor": {}},
        {name: Role(donor="donor", control_for=names[i - 1] if i % 2 else None) for i, name in enumerate(names)},
    )
    summary: dict[str, Any] = {"target": entry(0.02, items), "donors": {"donor": entry(0.98, items)}}
    summary["variants"] = {
        name: entry(share, items)
        | {"donor": "donor", "control_for": roles.variants[name].control_for, "reasons": ["it gains"]}
        | {"verdict": "control: fails as it should" if roles.variants[name].control_for else "better"}
        for name, share in shares.items()
    }
    return render(summary, roles, _evidence(shares, items), Report().model_dump())


def _evidence(shares: dict[str, float], items: int) -> Evidence:
    rows = pd.DataFrame({"task": "capability", "right": np.arange(items) % 2 == 0})
    return Evidence(
        items={"target": rows},
        uncertainty={name: _trust(share) for name, share in shares.items()},
        catalog={}, trace={}, agreement={}, bridges={}, selection={},
        curves={name: [{"step": s, "cross_entropy": 1 / (1 + s), "kl": 0.1 / (1 + s)} for s in range(0, 150, 2)]
                for name in shares},
        built={}, plan={}, sources={}, trained={},
        regressions={name: _losses(items // len(shares)) for name in shares},
        counterfactual={name: _pairs(share) for name, share in shares.items()},
        showcase={name: _texts() for name in shares},
        cost={name: {"parameters": 10**9, "added_parameters": 10**6, "ms_per_token": 12.0, "target_ms_per_token": 10.0}
              for name in shares},
        digests={name: "ab" * 32 for name in shares},
    )  # fmt: skip


def _trust(share: float) -> dict[str, Any]:
    ends = np.linspace(0.03, 0.97, 15)
    bins = [{"confidence": float(c), "accuracy": float(c * share), "low": 0.0, "high": 1.0, "n": 66} for c in ends]
    curve = [{"coverage": float(c), "risk": float((1 - share) * c)} for c in np.linspace(0.01, 1, 100)]
    points = [{"threshold": float(t), "coverage": float(t), "accuracy": share, "cost": float(2 - t)}
              for t in np.linspace(0, 1, 101)]  # fmt: skip
    task = {
        "n": 1000, "ece_if_calibrated": 0.02, "bins": bins, "curve": curve, "undefined": {},
        **{name: figure(share, 1000) for name in ("ece", "brier", "aurc", "excess_aurc", "auroc")},
        "scores": {name: {"auroc": figure(share, 1000)} for name in SCORES},
        "calibration": {name: {"ece": figure(0.02, 1000), "bins": bins} for name in ("raw", "temperature", "isotonic")},
        "conformal": {name: {"alpha": 0.1, "coverage": figure(0.9, 1000), "size": figure(1.2, 1000)}
                      for name in ("lac", "aps")},
    }  # fmt: skip
    return {"capability": task, "retention": task, "routing": {"curve": points, "chosen": {"threshold": 0.5}}}


def _losses(count: int) -> list[dict[str, str]]:
    prompt = "A question of some length about nothing in particular, as questions of a test are? " * 3
    return [
        {"task": "capability", "id": f"test-{i:05d}", "prompt": prompt, "expected": "1", "target": "1", "variant": "2"}
        for i in range(count)
    ]


def _pairs(share: float) -> dict[str, Any]:
    parts = ("target", "donor", "graft", "difference", "consistency")
    rows = [{"category": name, "moves": True, "n": 1000} | {part: figure(share, 1000) for part in parts}
            for name in CATEGORIES]  # fmt: skip
    return {"categories": rows, "overall": {"difference": figure(share, 5000)}, "specificity": {}, "undefined": {}}


def _texts() -> dict[str, Any]:
    tokens = [{"text": f" word{i}", "gates": [i % 10 / 10], "answer": i > 90} for i in range(100)]
    answers, right = (
        dict.fromkeys(("target", "donor", "graft"), "12"),
        dict.fromkeys(("target", "donor", "graft"), True),
    )
    text = {"prompt": "", "expected": "12", "tokens": tokens, "answers": answers, "right": right}
    return {
        "parts": ["layers.26"],
        "texts": [text | {"kind": kind} for kind in ("capability", "retention", "text")] * 3,
    }


def opening(path: Path) -> tuple[float, float]:
    """Seconds from asking for the page until it can be read, and until its last chart is drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        tab.goto(path.as_uri())
        tab.wait_for_selector("html[data-ready]", timeout=120_000)
        ready = time.perf_counter() - began
        tab.wait_for_selector("html[data-drawn]", timeout=120_000)
        done = time.perf_counter() - began
        browser.close()
    return ready, done


def main(out: Annotated[Path, typer.Option()], variants: int = 50, items: int = 100_000, times: int = 3) -> None:
    """Make the page at `out`, and print its bytes and the least of several openings."""
    began = time.perf_counter()
    out.write_text(build(variants, items), encoding="utf-8")
    print(f"{variants} variants, {items:,} items: {out.stat().st_size:,} bytes in {time.perf_counter() - began:.1f} s")
    openings = [opening(out.resolve()) for _ in range(times)]
    for words, found in zip(("readable", "all charts drawn"), zip(*openings, strict=True), strict=True):
        print(f"{words}: {min(found):.2f} s, at most {max(found):.2f} s in {times} openings")


if __name__ == "__main__":
    typer.run(main)
