"""What the README tells a reader to type does what it says, on the toy experiment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_python_block_loads_a_graft_and_lets_it_answer(built, tmp_path):
    code = blocks("python")[0]
    away = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    away |= {"HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "data").symlink_to(built.root / "data")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=away, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What is 417 plus 286? Answer:")


def test_the_second_python_block_changes_a_layer_while_the_model_answers(built, tmp_path):
    (tmp_path / "data").symlink_to(built.root / "data")
    code, here = blocks("python")[1], os.environ | {"PYTHONPATH": str(README.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What is 417 plus 286? Answer:")


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_every_shell_command_names_something_that_exists(line):
    command, root = line.split("#")[0].split(), README.parent
    if command[0] == "make":
        planned = subprocess.run(["make", "--dry-run", command[1]], cwd=root, capture_output=True, text=True)
        assert planned.returncode == 0, planned.stderr
    elif command[0] == "python":
        assert (root / command[2].replace(".", "/")).with_suffix(".py").is_file()
    else:
        assert command == ["dvc", "repro"]
