"""Experiments, a graft by name and version, and garbage: nothing that a colleague needs is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import dvc, git

from flows.garbage import GarbageError, collect
from flows.share import share

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]
STAGES = {
    "blade": {
        "cmd": "python -c \"import pathlib, yaml; pathlib.Path('blade.txt').write_text("
        "'%s' % yaml.safe_load(open('params.yaml'))['alpha'])\"",
        "params": ["alpha"],
        "outs": ["blade.txt"],
    }
}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clones, `ann` and `bob`, of a bare `origin`, around a directory; one stage that writes what alpha says."""
    place = tmp_path_factory.mktemp("team")
    ann = place / "ann"
    ann.mkdir()
    git(ann, "init", "--quiet", "--initial-branch", "main")
    git(ann, "config", "user.name", "ann")
    git(ann, "config", "user.email", "ann@example.org")
    dvc(ann, "init", "--quiet")
    about = {"path": "blade.txt", "type": "model", "desc": "A blade for arithmetic"}
    (ann / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES, "artifacts": {"blade": about}}))
    share(ann, str(place / "store"))
    alpha(ann, 1.0)
    git(place, "clone", "--quiet", "--bare", "ann", "origin")
    git(ann, "remote", "add", "origin", str(place / "origin"))
    git(ann, "push", "--quiet", "--set-upstream", "origin", "main")
    dvc(ann, "push", "--quiet")
    return place


def alpha(root: Path, value: float) -> None:
    """Reproduce and commit with this alpha."""
    (root / "params.yaml").write_text(f"alpha: {value}\n")
    dvc(root, "repro", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", f"Take alpha {value}")


def clone(team: Path, name: str) -> Path:
    git(team, "clone", "--quiet", "origin", name)
    git(team / name, "config", "user.name", name)
    git(team / name, "config", "user.email", f"{name}@example.org")
    return team / name


def stored(team: Path) -> set[str]:
    """What the objects at the remote hold."""
    return {path.read_text() for path in (team / "store" / "files" / "md5").rglob("*") if path.is_file()}


def test_a_graft_is_registered_by_name_and_version_and_got_by_it(team):
    ann = team / "ann"
    gto = Path(sys.executable).with_name("gto")
    subprocess.run([gto, "register", "blade", "--version", "v1.0.0"], cwd=ann, check=True)
    git(ann, "push", "--quiet", "origin", "--tags")
    away = team / "away"
    away.mkdir()
    dvc(away, "artifacts", "get", str(team / "origin"), "blade", "--rev", "v1.0.0", "--out", "by_name.txt")
    dvc(away, "get", str(team / "origin"), "blade.txt", "--rev", "blade@v1.0.0", "--out", "by_tag.txt")
    assert (away / "by_name.txt").read_text() == (away / "by_tag.txt").read_text() == "1.0"


def test_an_experiment_goes_to_a_colleague_and_garbage_leaves_what_anyone_uses(team):
    ann, bob = team / "ann", clone(team, "bob")
    dvc(bob, "pull", "--quiet")
    dvc(bob, "exp", "run", "--quiet", "--set-param", "alpha=2.0", "--name", "two")
    dvc(bob, "exp", "push", "--quiet", "origin", "two")
    dvc(bob, "push", "--quiet")
    dvc(ann, "exp", "pull", "--quiet", "origin", "two")
    assert "two" in dvc(ann, "exp", "list")
    dvc(ann, "exp", "apply", "two", "--quiet")
    assert (ann / "blade.txt").read_text() == "2.0"
    git(ann, "checkout", "--quiet", "--force", "main")
    dvc(ann, "checkout", "--quiet", "--force")

    git(bob, "checkout", "--quiet", "--force", "-b", "three")  # a branch that ann never fetched
    alpha(bob, 3.0)
    git(bob, "push", "--quiet", "origin", "three")
    alpha(bob, 4.0)  # a commit under a tag alone
    git(bob, "tag", "four")
    git(bob, "push", "--quiet", "origin", "four")
    dvc(bob, "push", "--quiet", "--all-commits")
    git(bob, "reset", "--quiet", "--hard", "HEAD~1")
    alpha(bob, 5.0)  # and one that a force push takes away
    dvc(bob, "push", "--quiet")
    git(bob, "reset", "--quiet", "--hard", "HEAD~1")
    assert stored(team) == {"1.0", "2.0", "3.0", "4.0", "5.0"}

    assert "emove" in collect(ann, cloud=True, dry=True)
    assert stored(team) == {"1.0", "2.0", "3.0", "4.0", "5.0"}
    collect(ann, cloud=True)
    assert stored(team) == {"1.0", "2.0", "3.0", "4.0"}


def test_garbage_waits_for_a_git_remote_that_does_not_answer(team):
    lost = clone(team, "lost")
    git(lost, "remote", "add", "gone", str(team / "nowhere"))
    before = stored(team)
    with pytest.raises(GarbageError, match="Expected git to list every branch, tag and experiment .*nothing was rem"):
        collect(lost, cloud=True)
    assert stored(team) == before


def test_a_cache_that_several_clones_share_is_not_cleaned_for_one(team):
    alone = clone(team, "alone")
    share(alone, cache=team / "cache")
    shutil.copytree(alone, team / "beside")
    with pytest.raises(GarbageError, match="name the clones by --clones"):
        collect(alone)
    alpha(team / "beside", 6.0)
    git(team / "beside", "reset", "--quiet", "--soft", "HEAD~1")  # uncommitted, and used all the same
    collect(alone, clones=[team / "beside"])
    held = {path.read_text() for path in (team / "cache" / "files").rglob("*") if path.is_file()}
    assert "6.0" in held
