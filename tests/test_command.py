"""A stage's command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from stages.command import run
from stages.errors import BadInput

ROOT = Path(__file__).parent.parent


def called(monkeypatch, main, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stage", *options])
    with pytest.raises(SystemExit) as ended:
        run(main)
    return int(ended.value.code or 0)


def test_parameters_are_options_and_those_without_default_are_required(monkeypatch, capsys):
    told = []

    def main(donor: str, out_file: Path, params: Path = Path("params.yaml")) -> None:
        told.append((donor, out_file, params))

    assert called(monkeypatch, main, "--donor", "a", "--out-file", "x/y") == 0
    assert called(monkeypatch, main, "--donor", "a", "--out-file", "x", "--params", "p") == 0
    assert told == [("a", Path("x/y"), Path("params.yaml")), ("a", Path("x"), Path("p"))]
    assert called(monkeypatch, main, "--donor", "a") == 2
    assert called(monkeypatch, main, "a", "x") == 2
    assert len(told) == 2
    assert "--out-file" in capsys.readouterr().err


def test_bad_input_is_one_line_and_code_two_and_another_error_is_not_hidden(monkeypatch, capsys):
    def bad() -> None:
        raise BadInput("Expected a, got b; do c.")

    def broken() -> None:
        raise RuntimeError("a bug")

    assert called(monkeypatch, bad) == 2
    assert capsys.readouterr().err == "graftline: Expected a, got b; do c.\n"
    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(RuntimeError, match="a bug"):
        run(broken)


def test_a_stage_ends_with_one_sentence_and_code_two_and_keeps_what_was_there(tmp_path):
    (tmp_path / "params.yaml").write_text("prompts: {trian: 3}\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    options = [
        "--questions",
        "q",
        "--text",
        "t",
        "--out",
        str(tmp_path / "out"),
        "--params",
        str(tmp_path / "params.yaml"),
    ]
    command = [sys.executable, "-m", "stages.prompts", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("graftline: prompts: ")
    assert done.stderr.count("\n") == 1
    assert "unknown key 'trian', did you mean 'train'?" in done.stderr
    assert (tmp_path / "out" / "old").read_text() == "old"
