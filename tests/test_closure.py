"""What dvc.yaml says of the code is what the code says of itself: an edit reruns what uses it and nothing else."""

import ast
import re
import sys
from pathlib import Path

import grimp
import pytest
import yaml

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for path in (ROOT / "stages").rglob("*.py"))
WRITTEN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in WRITTEN.items()}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
OVER = {name: stage.get("foreach", "") for name, stage in WRITTEN.items()}
KEYS = {
    name: over if isinstance(over, list) else list(PARAMS.get(over[2:-1], {})) or ["${key}"]
    for name, over in OVER.items()
}
"""The instances of a stage that there is one of for each key of a section, or for each name in a list."""


def relative(path: Path) -> str:
    """As dvc.yaml writes it."""
    return path.relative_to(ROOT).as_posix()


def named(path: Path) -> str:
    """A test's name for a module."""
    return relative(path)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("stages", cache_dir=None)


def closure(graph: grimp.ImportGraph, module: str) -> set[str]:
    """The files of a module and of all that it imports, with what lies beside a module under its name (page.html)."""
    files = set()
    for name in {module, *graph.find_upstream_modules(module)}:
        path = ROOT / Path(*name.split("."))
        if not path.is_dir():  # a package's own file holds a docstring only, as the test below says
            files |= {relative(each) for each in path.parent.glob(f"{path.name}.*")}
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_are_its_import_closure(graph, stage):
    command = re.match(r"python -m (stages\.\w+) ", STAGES[stage]["cmd"])
    assert command, f"{stage}: expected a command `python -m stages.MODULE ...`, got {STAGES[stage]['cmd']!r}"
    listed = [dep for dep in STAGES[stage]["deps"] if dep.startswith("stages/")]
    used = closure(graph, command[1])
    missing = [f"  missing:     - {dep}" for dep in sorted(used - set(listed))]
    superfluous = [f"  superfluous: - {dep}" for dep in sorted(set(listed) - used)]
    twice = [f"  twice:       - {dep}" for dep in sorted({dep for dep in listed if listed.count(dep) > 1})]
    problems = missing + superfluous + twice
    assert not problems, "\n".join([f"dvc.yaml, deps of {stage}:", *problems])


@pytest.mark.parametrize("stage", STAGES)
def test_a_path_on_the_command_line_is_a_dep_or_an_output(stage):
    """So no stage reads what DVC does not watch; a path inside a watched directory counts."""
    entry = STAGES[stage]
    outs = [next(iter(out)) if isinstance(out, dict) else out for out in entry["outs"]]
    for key in KEYS[stage]:
        paths, watched = (
            [word.replace("${key}", key) for word in words] for words in (entry["cmd"].split(), entry["deps"] + outs)
        )
        unwatched = [
            path
            for path in paths
            if path.startswith("data/") and not any(f"{path}/".startswith(f"{w}/") for w in watched)
        ]
        assert not unwatched, f"dvc.yaml, {stage}@{key}: neither dep nor output: {', '.join(unwatched)}"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=named)
def test_a_package_holds_a_docstring_only(path):
    body = ast.parse(path.read_text()).body
    assert len(body) == 1, f"{relative(path)}: expected a docstring and nothing else"
    assert ast.get_docstring(ast.parse(path.read_text())), f"{relative(path)}: expected a docstring"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nothing_is_imported_behind_the_graphs_back(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules = [name for name in modules if name != "importlib.metadata"]  # reads versions, imports nothing
        dynamic = any(name.split(".")[0] in ("importlib", "runpy", "imp") for name in modules)
        if dynamic or (isinstance(node, ast.Name) and node.id in ("__import__", "exec", "eval")):
            found.append(f"{relative(path)}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", sorted((ROOT / "stages" / "graft").glob("*.py")), ids=named)
def test_what_travels_with_a_graft_needs_torch_and_transformers_alone(path):
    siblings = {each.stem for each in path.parent.glob("*.py")} - {"__init__"}
    wrong = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            tops, fine = {alias.name.split(".")[0] for alias in node.names}, {"torch", "transformers"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            # transformers copies `from .gate import Gate` along with the model, and neither `from . import` nor `..`
            tops, fine = {f"{'.' * node.level}{node.module or ''}"}, {f".{name}" for name in siblings}
        elif isinstance(node, ast.ImportFrom):
            tops, fine = {(node.module or "").split(".")[0]}, {"torch", "transformers"}
        else:
            continue
        wrong += [f"{relative(path)}, line {node.lineno}: {top}" for top in tops - fine - set(sys.stdlib_module_names)]
    assert not wrong, "\n".join(wrong)


def test_a_graft_is_flat():
    assert not [path for path in (ROOT / "stages" / "graft").iterdir() if path.is_dir() and path.name != "__pycache__"]
