"""Outputs appear whole or not at all, and with the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stages.errors import BadInput
from stages.storage import new_directory, new_file, read_json, read_jsonl, write_json, write_jsonl


class Crash(Exception):
    """What goes wrong in the middle of a stage."""


def crash(directory: Path) -> None:
    with new_directory(directory) as scratch:
        (scratch / "half").write_text("half")
        raise Crash


def test_a_directory_appears_whole_and_replaces_the_old_one(tmp_path):
    for name in ("one", "two"):
        with new_directory(tmp_path / "deep" / "out") as scratch:
            (scratch / name).write_text(name)
            assert not (tmp_path / "deep" / "out" / name).exists()
        assert [p.name for p in (tmp_path / "deep" / "out").iterdir()] == [name]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_files_are_as_readable_as_their_directory(tmp_path):
    with new_directory(tmp_path / "out") as scratch:
        (scratch / "private").touch(mode=0o600)
        (scratch / "program").touch(mode=0o755)
    allowed = (tmp_path / "out").stat().st_mode & 0o666
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {allowed}


def test_a_crash_leaves_the_old_directory_as_it_was(tmp_path):
    with new_directory(tmp_path / "out") as scratch:
        (scratch / "whole").write_text("old")
    with pytest.raises(Crash):
        crash(tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {"whole": "old"}


def test_a_crash_without_an_old_directory_leaves_none_and_the_next_run_has_no_half_of_it(tmp_path):
    with pytest.raises(Crash):
        crash(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with new_directory(tmp_path / "out") as scratch:
        (scratch / "whole").write_text("new")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["whole"]


def test_a_killed_process_leaves_no_output(tmp_path):
    code = (
        "import os, sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from stages.storage import new_directory, new_file\n"
        "root = pathlib.Path(sys.argv[2])\n"
        "with new_directory(root / 'directory') as d, new_file(root / 'file') as f:\n"
        "    (d / 'half').write_text('half'); f.write_text('half'); os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "file").write_text("old")
    command = [sys.executable, "-c", code, str(Path(__file__).parent.parent), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    assert not (tmp_path / "directory").exists()


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"b": 1, "a": [0.5, "é"]})
    assert path.read_text() == '{\n "a": [\n  0.5,\n  "é"\n ],\n "b": 1\n}\n'
    with pytest.raises(Crash), new_file(path) as scratch:
        scratch.write_text("half")
        raise Crash
    assert read_json(path) == {"a": [0.5, "é"], "b": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_numbers_that_are_none(tmp_path, value):
    write_json(tmp_path / "x.json", 1)
    write_jsonl(tmp_path / "x.jsonl", [{"x": 1}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"x": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(tmp_path / "x.jsonl", [{"x": 2}, {"x": value}])
    assert read_json(tmp_path / "x.json") == 1
    assert read_jsonl(tmp_path / "x.jsonl") == [{"x": 1}]


def test_rows_come_back_as_they_went_with_keys_in_order(tmp_path):
    rows = [{"b": 1, "a": "line\nbreak é"}, {"c": None}]
    write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows
    assert (tmp_path / "x.jsonl").read_bytes().startswith(b'{"a": ')
    assert (tmp_path / "x.jsonl").stat().st_size == len((tmp_path / "x.jsonl").read_bytes())
    assert os.listdir(tmp_path) == ["x.jsonl"]


@pytest.mark.parametrize("sign", ["\u2028", "\x85"])
def test_a_text_with_line_ends_that_only_unicode_knows_comes_back(tmp_path, sign):
    write_jsonl(tmp_path / "x.jsonl", [{"text": f"one{sign}two"}])
    assert read_jsonl(tmp_path / "x.jsonl") == [{"text": f"one{sign}two"}]


def test_what_cannot_be_read_is_said_with_the_file_and_the_remedy(tmp_path):
    for reader in (read_json, read_jsonl):
        with pytest.raises(BadInput, match=r"Expected .*none.json, but it is not there; run `dvc repro`"):
            reader(tmp_path / "none.json")
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(BadInput, match=r"x.json is not valid JSON .*delete it and run"):
        read_json(tmp_path / "x.json")
    with pytest.raises(BadInput, match=r"x.json, line 1: expected a JSON object, got"):
        read_jsonl(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("")
    with pytest.raises(BadInput, match="is empty; expected at least one JSON object a line"):
        read_jsonl(tmp_path / "x.json")
