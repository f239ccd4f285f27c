"""What the source itself promises: nothing unpickled, no foreign code run, no server that others can reach."""

import ast
import json
import subprocess
from pathlib import Path

import pytest
import torch

from stages.adopt import Adoption, adopt
from stages.errors import BadInput
from tests import grafts

ROOT = Path(__file__).parent.parent
SOURCES = [*sorted((ROOT / "stages").rglob("*.py")), *sorted((ROOT / "flows").rglob("*.py"))]
OWN_CODE = {"stages/anatomy/loading.py": "_is_graft(directory)"}
"""Where code from a model's directory may run, on which condition: that it is ours, letter for letter."""
TRUSTED_BY_NAME = {"stages/fetch.py": "source.trust_remote_code"}
"""And where params.yaml says so for that model."""
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def trees() -> list[tuple[str, ast.Module]]:
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in SOURCES]


def calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def given(call: ast.Call, name: str) -> str | None:
    """What the call gives for a keyword, as written."""
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def test_nothing_is_unpickled_but_tensors():
    for place, tree in trees():
        for name, call in calls(tree):
            if name == "torch.load":
                assert given(call, "weights_only") == "True", place
            if name in ("np.load", "numpy.load"):
                assert given(call, "allow_pickle") in (None, "False"), place
            assert name.partition(".")[0] not in UNPICKLERS, f"{place} calls {name}"
            assert name not in ("pd.read_pickle", "pandas.read_pickle", "eval", "exec", "yaml.load"), place


def test_a_models_own_code_runs_only_if_it_is_ours_or_trusted_by_name():
    allowed = OWN_CODE | TRUSTED_BY_NAME
    for place, tree in trees():
        for name, call in calls(tree):
            trusted = given(call, "trust_remote_code")
            assert trusted in (None, "False", allowed.get(place)), f"{place}: {name} trusts {trusted}"


def test_no_shell_sees_what_a_user_wrote():
    for place, tree in trees():
        for name, call in calls(tree):
            assert given(call, "shell") in (None, "False"), f"{place}: {name}"
            assert name not in ("os.system", "os.popen"), place


def test_no_server_listens_beyond_this_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: name.endswith((".py", ".yaml", ".md", "Makefile", ".toml")), tracked.splitlines()):
        if name != "tests/test_security.py" and (ROOT / name).is_file():
            assert "0.0.0.0" not in (ROOT / name).read_text(), name


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path):
    target = grafts.target(tmp_path / "target")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    torch.save({"a": torch.ones(1)}, adapter / "adapter_model.bin")
    with pytest.raises(BadInput, match="has no adapter_model.safetensors; save the adapter as safetensors"):
        adopt(Adoption(trained="adapter"), adapter, target, tmp_path / "out")


def test_code_beside_a_models_weights_does_not_run(tmp_path):
    from stages.anatomy.loading import load

    model = grafts.target(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load(model, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_graft_whose_code_was_changed_does_not_run_it(tmp_path):
    from stages.anatomy.loading import _is_graft

    (tmp_path / "gate.py").write_bytes((ROOT / "stages/graft/gate.py").read_bytes())
    assert _is_graft(tmp_path)
    (tmp_path / "gate.py").write_text((tmp_path / "gate.py").read_text() + "\nprint('hello')\n")
    assert not _is_graft(tmp_path)


def test_every_dependency_but_torch_is_pinned_by_digest():
    pins = (ROOT / "constraints.txt").read_text().replace("\\\n", " ").splitlines()
    bare = [pin.partition("==")[0] for pin in pins if "--hash=sha256:" not in pin]
    assert bare == ["torch"]  # its wheel differs between CPU and GPU
    assert all("==" in pin for pin in pins)
