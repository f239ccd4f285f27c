"""An export is whole, checks itself, and says what differs; a hostile one cannot lead the check astray."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.errors import BadInput
from stages.export import Sources, command, export, figures_of, lineage
from stages.storage import write_json
from stages.sums import SUMS, hashed, sums
from stages.verify import CHANGED, IDENTICAL, SAME_FIGURES, compare, listed, main, verify
from tests import grafts

SUMMARY = {
    "target": {"capability": {"value": 0.0, "low": 0.0, "high": 0.1, "n": 20}},
    "donors": {"sibling": {"capability": None}, "other": {"capability": None}},
    "variants": {
        "blade": {"donor": "sibling", "control_for": None, "gain": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 20}},
        "closed": {"donor": "sibling", "control_for": "blade", "gain": None},
        "another": {"donor": "other", "control_for": None, "gain": None},
    },
}


def out(path: str) -> dict:
    return {"path": path, "hash": "md5", "md5": "0" * 32}


LOCK = {
    "schema": "2.0",
    "stages": {
        "fetch@target": {"cmd": "x", "outs": [out("data/models/target")]},
        "adopt@sibling": {"cmd": "x", "deps": [out("data/models/target")], "outs": [out("data/models/sibling")]},
        "adopt@other": {"cmd": "x", "deps": [out("data/models/target")], "outs": [out("data/models/other")]},
        "inject@blade": {
            "cmd": "x", "deps": [out("data/models/sibling"), out("stages/inject.py")],
            "outs": [out("data/grafts/blade")],
        },
        "inject@another": {"cmd": "x", "deps": [out("data/models/other")], "outs": [out("data/grafts/another")]},
        "evaluate_target": {"cmd": "x", "outs": [out("data/evaluation/target")]},
        "evaluate_inject@blade": {
            "cmd": "x", "deps": [out("data/grafts/blade"), out("data/evaluation/target/text.safetensors")],
            "outs": [out("data/evaluation/blade")],
        },
        "report": {"cmd": "x", "deps": [out("data/evaluation")], "outs": [out("data/report")]},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    root = tmp_path_factory.mktemp("repository")
    places = Sources(root / "grafts", root / "cards", root / "summary.json", root / "params.yaml", root / "dvc.lock")
    _, graft = grafts.built(root / "made", grafts.target(root), grafts.target(root, seed=1))
    shutil.copytree(graft, places.grafts / "blade")
    places.cards.mkdir()
    (places.cards / "blade.md").write_text("# blade\n")
    write_json(places.summary, SUMMARY)
    places.params.write_text("inject: {blade: {donor: sibling}}\n")
    places.lock.write_text(yaml.safe_dump(LOCK))
    return places


@pytest.fixture(scope="module")
def made(sources, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("export") / "blade"
    export("blade", sources, place)
    return place


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def test_an_export_is_the_graft_its_card_and_the_notes(made, sources):
    graft = {path.name: path.read_bytes() for path in (sources.grafts / "blade").iterdir()}
    assert graft and all((made / name).read_bytes() == content for name, content in graft.items())
    assert {path.name for path in made.iterdir()} == {*graft, "README.md", "reproduce"}
    assert (made / "README.md").read_text() == "# blade\n"
    assert {path.name for path in (made / "reproduce").iterdir()} == {
        "params.yaml", "dvc.lock", "versions.json", "figures.json", "command.sh", "SHA256SUMS",
    }  # fmt: skip
    figures = json.loads((made / "reproduce" / "figures.json").read_text())
    assert figures == {
        "variant": "blade", "target": SUMMARY["target"], "donors": {"sibling": SUMMARY["donors"]["sibling"]},
        "variants": {name: SUMMARY["variants"][name] for name in ("blade", "closed")},
    }  # fmt: skip


def test_the_lock_holds_what_made_the_variant_and_nothing_else(made):
    kept = yaml.safe_load((made / "reproduce" / "dvc.lock").read_text())
    assert kept["schema"] == "2.0"
    assert set(kept["stages"]) == set(LOCK["stages"]) - {"adopt@other", "inject@another"}
    assert all(kept["stages"][name] == LOCK["stages"][name] for name in kept["stages"])


def test_a_dep_that_is_the_folder_of_outputs_brings_their_makers():
    stages = {
        "one": {"outs": [out("data/parts/one")]},
        "join@x": {"deps": [out("data/parts")], "outs": [out("data/x")]},
        "join@y": {"deps": [out("data/parts")], "outs": [out("data/y")]},
        "survey@x": {"deps": [out("data/x")], "outs": [out("data/survey/x")]},
        "cards": {"deps": [out("data/x/figures.json"), out("data/y")], "outs": [out("data/cards")]},
    }
    assert set(lineage(stages, "x")) == {"one", "join@x", "cards"}  # and not what judges it for another page


def test_the_same_sources_give_the_same_bytes(made, sources, tmp_path):
    export("blade", sources, tmp_path / "again")
    assert (tmp_path / "again" / SUMS).read_bytes() == (made / SUMS).read_bytes()
    assert compare(made, tmp_path / "again").grade == IDENTICAL


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_sha256sum_reads_the_sums(made):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=made, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_command_is_one_that_a_shell_reads(tmp_path):
    told = command("it's", ["inject@it's", "report"], {"commit": "abc", "changed": True})
    assert "git checkout abc\n" in told and """dvc repro 'inject@it'"'"'s' cards\n""" in told
    (tmp_path / "command.sh").write_text(told)
    assert subprocess.run(["sh", "-n", "command.sh"], cwd=tmp_path).returncode == 0


def test_an_untouched_export_is_identical(copy, capsys):
    assert verify(copy).grade == IDENTICAL and not verify(copy).found
    assert main(copy) == 0
    assert capsys.readouterr().out == f"identical\nSHA-256 of {SUMS}: {hashed(copy / SUMS)}\n"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("act", "found"),
    [
        (lambda d: flip(d / "model.safetensors"), {"model.safetensors": "other bytes"}),
        (lambda d: flip(d / "README.md"), {"README.md": "other bytes"}),
        (lambda d: flip(d / "reproduce" / "figures.json"), {"reproduce/figures.json": "other bytes"}),
        (lambda d: (d / "gate.py").unlink(), {"gate.py": "missing"}),
        (lambda d: (d / "more.py").write_text(""), {"more.py": "not listed"}),
        (lambda d: linked(d / "config.json"), {"config.json": "not a plain file", "elsewhere": "not listed"}),
        (lambda d: (d / "up").symlink_to("/"), {"up": "not listed"}),
        (lambda d: (d / "README.md").unlink() or os.mkfifo(d / "README.md"), {"README.md": "not a plain file"}),
    ],
)  # fmt: skip
def test_whatever_is_changed_is_named(copy, act, found, capsys):
    act(copy)
    assert verify(copy).found == found
    assert main(copy) == 1
    said = capsys.readouterr().out
    assert said.startswith("changed\n") and all(f"  {path}: {what}\n" in said for path, what in found.items())


def test_a_folder_that_became_a_link_is_not_followed(copy, tmp_path):
    (copy / "reproduce" / "params.yaml").rename(copy / "params.yaml")
    (copy / "sub").symlink_to(tmp_path)
    (copy / SUMS).write_text((copy / SUMS).read_text() + f"{'0' * 64}  sub/copy/README.md\n")
    found = verify(copy).found
    assert found["sub"] == "not listed" and found["sub/copy/README.md"] == "missing"


@pytest.mark.parametrize(
    "path",
    ["../outside", "/etc/hostname", "a/../../b", "./README.md", "a//b", "C:/x", "a\\..\\b", "\x1b[2Jx/../..", ".."],
)
def test_a_path_that_leads_elsewhere_is_refused(copy, path):
    (copy / SUMS).write_text(f"{'0' * 64}  {path}\n")
    with pytest.raises(BadInput, match="line 1: expected a path inside the export") as refused:
        verify(copy)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense\n", "line 1: expected a hash and a path, got nonsense"),
        (f"{'0' * 64}  a\n{'1' * 64}  a\n", "line 2: expected a path inside the export, once"),
        ("0" * (2 << 20), "at most 1048576 bytes"),
    ],
)
def test_broken_sums_are_refused(copy, text, said):
    (copy / SUMS).write_text(text)
    with pytest.raises(BadInput, match=said):
        verify(copy)


def test_sums_behind_a_link_are_refused(copy, tmp_path):
    (copy / SUMS).rename(tmp_path / "sums")
    (copy / SUMS).symlink_to(tmp_path / "sums")
    with pytest.raises(BadInput, match="Expected an export with reproduce/SHA256SUMS"):
        verify(copy)


def again(directory: Path) -> None:
    """Makes the sums fit what is there."""
    (directory / SUMS).write_text(sums(directory))


def test_other_bytes_with_the_same_figures_are_told_apart_from_other_figures(made, copy):
    flip(copy / "model.safetensors")
    again(copy)
    told = compare(made, copy)
    assert (told.grade, told.found) == (SAME_FIGURES, {"model.safetensors": "other bytes"})
    assert main(made, copy) == 0

    figures = json.loads((copy / "reproduce" / "figures.json").read_text())
    figures["variants"]["blade"]["gain"]["value"] = 0.1
    write_json(copy / "reproduce" / "figures.json", figures)
    again(copy)
    told = compare(made, copy)
    assert (told.grade, told.found) == (CHANGED, {"figures.json: variants.blade.gain.value": "0.9 is 0.1 in the other"})
    assert main(made, copy) == 1


@pytest.mark.parametrize("content", ["[" * 100_000, "\udce9"])
def test_figures_that_are_none_are_refused(made, copy, content):
    (copy / "reproduce" / "figures.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    again(copy)
    with pytest.raises(BadInput):
        compare(made, copy)


def test_one_that_was_tampered_with_is_no_reproduction(made, copy):
    flip(copy / "model.safetensors")
    assert compare(made, copy).grade == compare(copy, made).grade == CHANGED


def test_what_is_missing_is_refused_before_anything_is_written(sources, tmp_path, made):
    with pytest.raises(BadInput, match="got 'blad'; did you mean 'blade'"):
        export("blad", sources, tmp_path / "new")
    with pytest.raises(BadInput, match=r"another.md, but it is not there|Expected a model directory"):
        export("another", sources, tmp_path / "new")
    with pytest.raises(BadInput, match="Expected nothing or an empty directory"):
        export("blade", sources, made)
    assert not list(tmp_path.iterdir())
    assert figures_of("another", SUMMARY)["donors"] == {"other": {"capability": None}}


def test_a_name_that_sums_cannot_hold_is_refused(tmp_path):
    (tmp_path / "a\nb").write_text("")
    with pytest.raises(BadInput, match="without line ends"):
        sums(tmp_path)


def test_the_programs_say_bad_input_in_a_sentence_and_end_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "stages.verify", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("graftline: Expected an export with") and done.stderr.count("\n") == 1


def test_a_listing_reads_binary_mode_too(copy):
    (copy / SUMS).write_text((copy / SUMS).read_text().replace("  ", " *"))
    assert verify(copy).grade == IDENTICAL and "README.md" in listed(copy)
