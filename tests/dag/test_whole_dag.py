"""The whole pipeline on toy models: it completes, does nothing twice, and reruns what an edit reaches and no more."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import toy
import yaml

from flows.dag import read_dag
from flows.outcome import StageFailed
from flows.runner import run
from stages.anatomy.loading import load
from stages.export import Sources, export
from stages.recipes.blade import BladeRecipe
from stages.storage import read_json
from stages.verify import verify

pytestmark = pytest.mark.timeout(900)  # the first test waits for the whole pipeline


TOLD = {"report", "cards", "metrics"}
"""The stages that tell of figures."""


def outcomes(root: Path, *targets: str) -> dict[str, set[str]]:
    """Brings the repository up to date; the stages by what became of them."""
    ended = run(read_dag(root, targets or None), workers=2)
    return {
        outcome: {stage for stage, result in ended.items() if result.outcome == outcome}
        for outcome in ("ran", "cached", "unchanged")
    }


def outputs(root: Path) -> dict[str, bytes]:
    """What the stages have written, by path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}


def test_every_stage_runs_and_the_report_is_there(built):
    frozen = {stage for stage in built.ended if stage.startswith(("specialize@", "further@"))}
    assert {stage for stage, result in built.ended.items() if result.outcome != "ran"} == frozen
    page = (built.root / "data" / "report" / "index.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    summary = json.loads((built.root / "data" / "report" / "summary.json").read_text())
    assert list(summary["donors"]) == ["calculator", "sibling"]
    assert set(summary["variants"]) == {"blade", "bridged_blade", "chosen_blade", "closed_gate", "transplant"}
    gallery = json.loads((built.root / "data" / "gallery" / "gallery.json").read_text())
    assert {"merge", "adapter", "implant", "fusion", "steering_vector", "debate"} < set(gallery["summary"]["variants"])
    for entry in (summary["target"], *summary["donors"].values(), *summary["variants"].values()):
        for figure in ("capability", "recovery", "retention", "perplexity_ratio", "kl_to_target"):
            if entry[figure] is None:
                assert entry["undefined"][figure]
            else:
                assert entry[figure].keys() == {"value", "low", "high", "n"}
    for name in ("target", "blade", "bridged_blade", "chosen_blade", "closed_gate", "transplant"):
        entry = summary["variants"].get(name) or summary["target"]
        assert (entry["capability"]["n"], entry["retention"]["n"]) == (20, 12)
        assert name == "target" or entry["kl_to_target"]["value"] >= 0


def test_what_is_shown_has_its_texts_and_costs(built):
    data = built.root / "data"
    for name in toy.PARAMS["shown"]:
        shown = read_json(data / "showcase" / f"{name}.json")
        assert len(shown["parts"]) == (name != "transplant")
        assert {each["kind"] for each in shown["texts"]} == {"capability", "retention", "text"}
        assert read_json(data / "cost" / f"{name}.json")["parameters"] > 0


def test_every_variant_is_carded_and_its_export_checks_itself(built, tmp_path):
    data = built.root / "data"
    for name in ("blade", "bridged_blade", "chosen_blade", "closed_gate", "transplant"):
        assert read_json(data / "metrics" / f"{name}.json")["verdict"]
        sources = Sources(data / "grafts", data / "cards", data / "report" / "summary.json", built.root / "params.yaml",
                          built.root / "dvc.lock")  # fmt: skip
        export(name, sources, tmp_path / name)
        assert verify(tmp_path / name).grade == "identical"
        load(tmp_path / name)
    made = yaml.safe_load((tmp_path / "transplant" / "reproduce" / "dvc.lock").read_text())["stages"]
    assert {"transplant@transplant", "select@sibling", "specialize@sibling", "fetch@target", "report"} < made.keys()
    assert not [name for name in made if name.partition("@")[2] in ("calculator", "blade", "moe")]


def test_a_closed_gate_answers_every_item_as_the_target_does(built):
    target, closed, blade = (
        pd.read_parquet(built.root / "data" / "evaluation" / name / "items.parquet").drop(columns=["kl", "agreement"])
        for name in ("target", "closed_gate", "blade")
    )
    pd.testing.assert_frame_equal(target, closed)
    assert not target.equals(blade)


def test_no_half_output_is_left_behind(built):
    assert not list((built.root / "data").rglob("*.partial"))


def test_a_second_run_runs_nothing(built):
    assert not read_dag(built.root).changed
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=built.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Running" not in done.stdout
    assert "up to date" in done.stdout


def test_a_comment_in_uncertainty_reruns_uncertainty_and_nothing_after_it(repository, quickly):
    before = outputs(repository)
    with (repository / "stages" / "uncertainty.py").open("a") as file:
        file.write("# a comment\n")
    ran = outcomes(repository)["ran"]
    assert ran == {"uncertainty@blade", "uncertainty@transplant"}
    assert outputs(repository) == before
    assert not read_dag(repository).changed


def test_a_gate_option_reruns_its_variant_and_the_report_and_nothing_else(repository, quickly):
    toy.configure(repository, {"inject.blade.alpha": 0.9})
    became = outcomes(repository)
    looked_into = ("signals", "uncertainty", "weigh", "counterfactual", "showcase", "cost")
    stages = ("train_gates", "inject", "evaluate_inject", *looked_into)
    asked = {"survey_blade@blade", "synergy@pair", "gallery", "ensemble@blades", "regressions"}
    assert became["ran"] == {*(f"{stage}@blade" for stage in stages), *TOLD, *asked}
    assert not became["cached"]

    toy.configure(repository)
    assert not outcomes(repository)["ran"]  # DVC has not forgotten what alpha: 1.0 gave


CHOSEN = {f"{stage}_auto@chosen_blade" for stage in ("train_gates", "inject", "evaluate")} | {
    "ensemble@blades", "regressions",
}  # fmt: skip


def test_a_variant_that_follows_the_plan_is_what_the_plan_recommends(built):
    data = built.root / "data"
    planned = read_json(data / "plan" / "plan.json")["donors"]["sibling"]["recommendation"]["recipe"]
    assert read_json(data / "gates" / "chosen_blade" / "training.json")["recipe"] == (
        BladeRecipe.model_validate(planned | {"alpha": 0.9}).model_dump()
    )
    (graft,) = read_json(data / "grafts" / "chosen_blade" / "config.json")["parts"]
    assert (graft["layer"], graft["alpha"]) == (planned["layer"], 0.9)
    page = (data / "report" / "index.html").read_text()
    assert f"layer {planned['layer']}" in page
    assert "strategy auto" in page


def test_a_plan_that_recommends_the_same_rebuilds_nothing_and_another_only_what_follows_it(repository, quickly):
    toy.configure(repository, {"plan.bridged_r2": 0.49})
    assert outcomes(repository)["ran"] == {"plan", "choose@chosen_blade", "report"}

    shorter = toy.TRAINING | {"steps": 1}
    toy.configure(repository, {"plan.training": shorter, "plan.bridging": shorter})
    assert outcomes(repository)["ran"] == {"plan", "choose@chosen_blade", "gallery", *TOLD, *CHOSEN}
    trained = read_json(repository / "data" / "gates" / "chosen_blade" / "training.json")
    assert trained["recipe"]["training"]["steps"] == len(trained["curve"]) == 1


def test_no_variant_has_to_follow_the_plan(repository, quickly):
    toy.configure(repository, {"auto": None, "plan.bridged_r2": 0.49})
    with (repository / "params.yaml").open("a") as file:
        file.write("auto: {}\n")
    assert outcomes(repository)["ran"] == {"plan", "regressions", *TOLD}
    assert "chosen_blade" not in read_json(repository / "data" / "report" / "summary.json")["variants"]


def test_a_misspelt_key_is_named_and_costs_nothing(repository):
    before = outputs(repository)
    toy.configure(repository, {"inject.blade.alpha": None, "inject.blade.aplha": 0.9})
    command = [sys.executable, "-m", "flows.runner", "--root", str(repository)]
    done = subprocess.run(command, cwd=toy.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "graftline: inject.blade: unknown key 'aplha', did you mean 'alpha'?" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    kept = outputs(repository)
    assert kept == {path: content for path, content in before.items() if not path.startswith("data/gates/blade/")}

    toy.configure(repository)
    assert not outcomes(repository)["ran"]
    assert outputs(repository) == before


def test_a_killed_stage_leaves_no_half_output_and_the_next_run_completes(repository):
    out = repository / "data" / "activations" / "target.h5"
    toy.configure(repository, {"capture": {"prompts": 400, "texts": 3, "batch_tokens": 1}})
    killer = threading.Thread(target=kill_in_the_middle, args=(repository, out), daemon=True)
    killer.start()
    with pytest.raises(StageFailed, match="capture@target"):
        outcomes(repository, "capture@target")
    killer.join()
    assert not out.exists()
    assert out.with_name("target.h5.partial").exists()  # it was in the middle

    assert outcomes(repository, "capture@target")["ran"] == {"capture@target"}
    assert out.exists()
    assert not list(out.parent.glob("*.partial"))


def kill_in_the_middle(root: Path, out: Path) -> None:
    """SIGKILL for the stage that is writing `out`, as soon as it has begun to."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if out.with_name(f"{out.name}.partial").exists():
            for process in psutil.process_iter(["cmdline"]):
                command = process.info["cmdline"] or []
                if command[1:3] == ["-m", "stages.capture"] and Path(process.cwd()) == root:
                    process.send_signal(signal.SIGKILL)
                    return
        time.sleep(0.01)
