"""A line that is cut, and objects that went bad at the remote: said in one sentence, and mended by the next call."""

import hashlib
from pathlib import Path

import pytest
from conftest import Remote, clone, git
from servers import Relay

from flows.dag import read_dag
from flows.share import share
from flows.soundness import damaged, unsound_runs
from flows.transfer import TransferFailed, transfer

pytestmark = [pytest.mark.servers, pytest.mark.timeout(900), pytest.mark.usefixtures("quickly")]


def objects(root: Path) -> list[Path]:
    return sorted(path for path in (root / "files" / "md5").rglob("*") if path.is_file())


@pytest.mark.parametrize("remote", ["ssh", "s3"], indirect=True)
def test_a_line_that_is_cut_costs_only_what_was_on_its_way(first, remote: Remote, tmp_path):
    assert isinstance(remote.relay, Relay)
    total = sum(path.stat().st_size for path in objects(first / ".dvc" / "cache"))
    remote.share(first)
    git(first, "commit", "--quiet", "--all", "--message", "Share")
    git(first, "push", "--quiet", "origin", "HEAD")

    remote.relay.left = total // 2
    with pytest.raises(TransferFailed, match="run `make push` again to go on"):
        transfer("push", first)
    remote.relay.mend()
    transfer("push", first)
    assert not damaged(first)
    # what was on its way may lie beside them under another name
    assert {path.name for path in objects(first / ".dvc" / "cache")} <= {
        path.name for path in objects(remote.directory)
    }

    git(tmp_path, "clone", "--quiet", "origin", "second")
    second = tmp_path / "second"
    remote.share(second, again=True)
    remote.relay.left = total // 2
    with pytest.raises(TransferFailed, match="run `make pull` again to go on"):
        transfer("pull", second)
    remote.relay.mend()
    transfer("pull", second)
    assert not read_dag(second, ["inject@blade"]).changed


def spoil(path: Path, cut: bool) -> None:
    """One bit off, or the second half gone."""
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: len(content) // 2] if cut else bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("remote", ["directory", "s3", "http"], indirect=True)
def test_what_went_bad_at_the_remote_is_named_and_mended(first, remote: Remote, tmp_path):
    second = clone(first, remote, tmp_path)
    weights = first / "data" / "models" / "target" / "model.safetensors"
    name = hashlib.md5(weights.read_bytes()).hexdigest()
    stored = remote.directory / "files" / "md5" / name[:2] / name[2:]
    for cut in (False, True):
        spoil(stored, cut)
        with pytest.raises(TransferFailed, match="holds damaged objects: .*data/models/target/model.safetensors"):
            transfer("pull", second)
        assert not (second / "data" / "models" / "target" / "model.safetensors").exists()
    (bad,) = damaged(first)
    assert bad.output.endswith("model.safetensors")
    assert stored.name in bad.path
    if remote.writes:  # over HTTP nothing can be mended
        share(first, remote.writes)
    assert damaged(first, mend=True) == []
    transfer("pull", second)
    assert (second / "data/models/target/model.safetensors").read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("remote", ["directory"], indirect=True)
def test_an_entry_of_the_run_cache_that_came_in_part_is_left_out(first, remote: Remote, tmp_path):
    second = clone(first, remote, tmp_path)
    entry = min(path for path in (remote.directory / "runs").rglob("*") if path.is_file())
    spoil(entry, cut=True)
    with pytest.raises(TransferFailed, match=rf"entries of the run-cache that are damaged: runs/../\w+/{entry.name}"):
        transfer("pull", second)
    assert not list((second / ".dvc" / "cache" / "runs").rglob(entry.name))
    assert unsound_runs(second) == unsound_runs(first) == []
