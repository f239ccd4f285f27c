"""The one step that sets up a team's remote: what goes where, and what is refused before anything is written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from servers import SECRET, free_port, http

from flows.share import ShareError, settings, share, write_here

KEYS = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("share") / "empty"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    return root


@pytest.fixture
def repository(empty: Path, tmp_path: Path) -> Path:
    return shutil.copytree(empty, tmp_path / "repository")


def configs(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((root / ".dvc").glob("config*"))}


def test_what_all_share_and_what_is_this_machines_own_go_apart():
    s3 = settings("s3://bucket/team", "https://storage.example:9000", None, KEYS)
    assert s3.everyone == {"url": "s3://bucket/team", "endpointurl": "https://storage.example:9000", "verify": True}
    assert s3.here == {"access_key_id": "team", "secret_access_key": SECRET}
    ssh = settings("ssh://ann@host:2222/srv/team", None, Path("/keys/id"), KEYS)
    assert ssh.everyone == {"url": "ssh://host:2222/srv/team", "verify": True}
    assert ssh.here == {"user": "ann", "keyfile": "/keys/id"}
    web = settings("https://host/team", None, None, {"REMOTE_USER": "ann", "REMOTE_PASSWORD": SECRET})
    assert web.everyone == {"url": "https://host/team", "verify": True}
    assert web.here == {"auth": "basic", "user": "ann", "password": SECRET}


@pytest.mark.parametrize(
    ("address", "endpoint", "said"),
    [
        (f"s3://team:{SECRET}@bucket/x", None, "Expected an address without secrets for git to carry"),
        (f"https://ann:{SECRET}@host/x", None, "Expected an address without secrets for git to carry"),
        (f"ssh://ann:{SECRET}@host/x", None, "Expected an address without secrets for git to carry"),
        (f"https://host/x?token={SECRET}", None, "Expected an address without secrets for git to carry"),
        ("s3://bucket/x", f"https://team:{SECRET}@host", "secrets belong into the environment"),
        ("s3://bucket/x", "host:9000", "Expected an endpoint such as https://"),
        ("ftp://host/x", None, "Expected a directory, ssh://, s3://, http:// or https://, got ftp://"),
    ],
)
def test_an_address_that_would_carry_a_secret_is_refused_without_repeating_it(repository, address, endpoint, said):
    before = configs(repository)
    with pytest.raises(ShareError, match=said) as caught:
        share(repository, address, endpoint=endpoint)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    assert configs(repository) == before


def test_a_server_that_does_not_answer_is_told_before_anything_is_written(repository):
    before = configs(repository)
    with pytest.raises(ShareError, match=r"Expected http://127.0.0.1:\d+/team to answer, got ConnectionError"):
        share(repository, f"http://127.0.0.1:{free_port()}/team")
    assert configs(repository) == before


def test_a_server_that_asks_who_it_is_says_what_to_set(repository, tmp_path):
    with http(tmp_path) as port:
        with pytest.raises(ShareError, match="refuses whoever gives no name; set REMOTE_USER and REMOTE_PASSWORD"):
            share(repository, f"http://127.0.0.1:{port}/", environment={})
        with pytest.raises(ShareError, match="refuses this user"):
            wrong = {"REMOTE_USER": "team", "REMOTE_PASSWORD": "wrong"}
            share(repository, f"http://127.0.0.1:{port}/", environment=wrong)


def test_asked_again_it_changes_nothing(repository, tmp_path):
    share(repository, str(tmp_path / "team"), tmp_path / "cache")
    before = configs(repository)
    share(repository, str(tmp_path / "team"), tmp_path / "cache")
    share(repository)
    assert configs(repository) == before
    assert oct((tmp_path / "team").stat().st_mode & 0o2070) == oct(0o2070)


def test_without_a_remote_it_asks_for_one(repository, tmp_path):
    with pytest.raises(ShareError, match="Expected a remote, got none; name a directory"):
        share(repository)
    with pytest.raises(ShareError, match="Expected a DVC repository at .*found none"):
        share(tmp_path, str(tmp_path / "team"))


def test_secrets_are_not_written_where_git_would_carry_them(repository):
    (repository / ".dvc" / ".gitignore").write_text("/tmp\n")
    with Repo(str(repository)) as repo:
        (repository / ".dvc" / ".gitignore").write_text("/tmp\n")  # DVC mends it when it opens the repository
        with pytest.raises(ShareError, match="Expected git to ignore .*add /config.local to .dvc/.gitignore"):
            write_here(repo, {"remote": {"team": {"password": SECRET}}})
    assert not (repository / ".dvc" / "config.local").exists()


def test_one_cache_for_two_clones_holds_every_file_once(repository, tmp_path):
    (repository / "data.bin").write_bytes(os.urandom(4096))
    subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "data.bin"], cwd=repository, check=True)
    other = shutil.copytree(repository, tmp_path / "other", ignore=shutil.ignore_patterns("cache", "data.bin"))
    cache = tmp_path / "cache"
    share(repository, cache=cache)
    (stored,) = (path for path in (cache / "files").rglob("*") if path.is_file())
    assert stored.parent.stat().st_mode & 0o2070 == 0o2070

    share(other, cache=cache)
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "--quiet"], cwd=other, check=True)
    assert (other / "data.bin").read_bytes() == (repository / "data.bin").read_bytes()
    assert not list((other / ".dvc").rglob("files"))


def others_may_run(program: str) -> bool:
    """Whether every folder on the way to a program is open to all."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(program).resolve().parents)


@pytest.mark.skipif(
    os.geteuid() != 0 or not others_may_run(sys.executable), reason="needs root and a Python that other users may run"
)
def test_two_people_of_one_group_write_to_one_directory(repository, tmp_path):
    for each in [tmp_path, *tmp_path.parents[:2]]:
        each.chmod(0o755)
    team = tmp_path / "team"
    team.mkdir()
    os.chown(team, 0, 6500)
    share(repository, str(team))
    for number, name in ((6501, "ann"), (6502, "bob")):
        own = shutil.copytree(repository, tmp_path / name)
        (own / "data.txt").write_text(name)
        (own / "dvc.yaml").write_text("stages: {s: {cmd: cp data.txt out.txt, deps: [data.txt], outs: [out.txt]}}")
        for path in [own, *own.rglob("*")]:
            os.chown(path, number, 6500)
        place = {"HOME": str(own), "DVC_SITE_CACHE_DIR": str(own / "site"), "PATH": "/usr/bin:/bin"}
        place |= {"GIT_CONFIG_COUNT": "0", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
        for command in (["dvc", "repro"], ["flows.transfer", "push"]):
            done = subprocess.run(
                [sys.executable, "-m", *command], cwd=own, env=place, user=number, group=6500, extra_groups=[],
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert len([path for path in (team / "files").rglob("*") if path.is_file()]) == 2
    folders = [path for path in team.rglob("*") if path.is_dir()]
    assert {path.stat().st_gid for path in folders} == {6500}
    assert all(path.stat().st_mode & 0o2070 == 0o2070 for path in folders)
