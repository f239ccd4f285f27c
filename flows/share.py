"""A team's cache set up in one step, on each machine: `python -m flows.share [REMOTE] [--cache DIR]`.

What all machines share goes into .dvc/config, for git to carry. What is this machine's own (user, key, secrets, the
cache's directory) goes into .dvc/config.local, which git ignores and nobody but its owner can read. Secrets come from
the environment alone: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3, REMOTE_USER and REMOTE_PASSWORD for HTTP.
"""

import argparse
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

import requests
from dvc.config import ConfigError
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.fs import get_cloud_fs
from dvc.repo import Repo

from flows.dag import one_line

NAME = "team"
SECONDS = 20
LINKS = "reflink,hardlink,symlink,copy"


class ShareError(ValueError):
    """The remote or cache cannot be used; the message is one sentence with the remedy."""


@dataclass(frozen=True)
class Settings:
    """A remote's settings in DVC's words."""

    everyone: dict[str, Any]
    """For .dvc/config."""
    here: dict[str, Any] = field(default_factory=dict)
    """For .dvc/config.local."""


def share(
    root: Path,
    remote: str | None = None,
    cache: Path | None = None,
    endpoint: str | None = None,
    key: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> str:
    """Set up the remote (default: the one in .dvc/config) and the cache's directory; what was set up, in a sentence.

    Asked again, it changes nothing. Raises ShareError before anything is written where the address, the secrets or the
    server are not as they should be.
    """
    try:
        with Repo(str(root)) as repo:
            known = dict(repo.config["remote"].get(NAME, {}))
            address = remote or known.get("url")
            if not address and not cache:
                raise ShareError(
                    "Expected a remote, got none; name a directory, ssh://HOST/DIR, s3://BUCKET/DIR or https://HOST/DIR."
                )
            done = []
            if address:
                wanted = settings(address, endpoint or known.get("endpointurl"), key, environment)
                reach(repo, wanted)
                write(repo, wanted)
                done.append(f"remote {NAME!r} is {wanted.everyone['url']}")
            if cache:
                done.append(f"the cache is {share_cache(repo, cache.expanduser().resolve())}")
    except NotDvcRepoError:
        raise ShareError(
            f"Expected a DVC repository at {root.resolve()}, found none; run this in a clone of it."
        ) from None
    except ConfigError as error:
        raise ShareError(f"DVC refuses these settings ({one_line(error)}); correct .dvc/config.") from error
    return "; ".join(done)


def settings(address: str, endpoint: str | None, key: Path | None, environment: Mapping[str, str]) -> Settings:
    """What the remote's address, S3's endpoint, SSH's key and the environment come to; ShareError names the flaw."""
    url = urlsplit(address)
    place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.password is not None or url.query or url.fragment or (url.username and url.scheme != "ssh"):
        raise ShareError(
            f"Expected an address without secrets for git to carry, got one with more than {place}; set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for S3, REMOTE_USER and REMOTE_PASSWORD for HTTP, and --key "
            "for SSH."
        )
    if endpoint:
        check_plain(urlsplit(endpoint))
    common = {"url": place, "verify": True}  # or DVC takes what the remote sends for what was asked
    match url.scheme:
        case "":
            return Settings(common | {"url": str(Path(address).expanduser().resolve()), "shared": "group"})
        case "ssh":
            return Settings(common, present(user=url.username, keyfile=key and str(key.expanduser().resolve())))
        case "s3":
            names = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
            own = {key: environment.get(name) for key, name in names.items()}
            return Settings(common | present(endpointurl=endpoint), present(**own))
        case "http" | "https":
            user, password = environment.get("REMOTE_USER"), environment.get("REMOTE_PASSWORD")
            own = {"auth": "basic", "user": user, "password": password} if user and password else {}
            return Settings(common, own)
    raise ShareError(
        f"Expected a directory, ssh://, s3://, http:// or https://, got {url.scheme}://; use one of these."
    )


def check_plain(endpoint: SplitResult) -> None:
    """ShareError unless the endpoint is a plain address of a server."""
    if endpoint.scheme not in ("http", "https") or endpoint.username or endpoint.query:
        raise ShareError(
            f"Expected an endpoint such as https://storage.example:9000, got {endpoint.scheme or 'no'} scheme or more "
            f"than an address for {endpoint.hostname}; secrets belong into the environment."
        )


def present(**values: Any) -> dict[str, Any]:
    """The values that there are."""
    return {name: value for name, value in values.items() if value}


def reach(repo: Repo, wanted: Settings) -> None:
    """Make sure that the remote answers; its directory is made where it is missing and this machine may make it."""
    url = wanted.everyone["url"]
    if "://" not in url:
        group_directory(Path(url))
        return
    try:
        if url.startswith("http"):
            check_answer(url, wanted.here)
            return
        kind, config, path = get_cloud_fs(repo.config, **wanted.everyone, **wanted.here)
        remote: Any = cast(Any, kind)(**config | ({"timeout": SECONDS} if url.startswith("ssh:") else {}))
        if url.startswith("s3:"):
            remote.fs.ls(urlsplit(url).netloc)
        else:
            remote.makedirs(path, exist_ok=True)
    except ShareError:
        raise
    except Exception as error:  # each protocol's client raises its own kinds, all of them mean that it cannot be used
        raise ShareError(
            f"Expected {url} to answer, got {type(error).__name__} ({one_line(error)}); check the address, that the "
            "server runs, and the key or secrets."
        ) from error


def check_answer(url: str, own: Mapping[str, Any]) -> None:
    """ShareError where the server wants another user; what else it says of a mere directory does not matter."""
    known = (own["user"], own["password"]) if own else None
    if requests.head(url, auth=known, timeout=SECONDS).status_code == requests.codes.unauthorized:
        raise ShareError(
            f"{url} refuses {'this user' if own else 'whoever gives no name'}; set REMOTE_USER and REMOTE_PASSWORD."
        )


def group_directory(path: Path) -> None:
    """The directory, made where missing, such that whoever is in its group may write into it and below."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o2070 != 0o2070:
            path.chmod(mode | 0o2070)
    except OSError as error:
        raise ShareError(
            f"Expected a directory at {path} that its group may write to, got {error.strerror or error}; let its owner "
            f"run `chmod g+rwxs {path}`."
        ) from error


def write(repo: Repo, wanted: Settings) -> None:
    """Put the settings where they belong; what someone set by hand beside them stays."""
    config: Any
    with repo.config.edit("repo") as config:
        config.setdefault("core", {})["remote"] = NAME
        remotes = config.setdefault("remote", {})
        known = remotes.get(NAME, {})
        same = urlsplit(str(known.get("url", ""))).scheme == urlsplit(wanted.everyone["url"]).scheme
        remotes[NAME] = (known if same else {}) | wanted.everyone  # another protocol refuses what the old one was told
    if wanted.here:
        write_here(repo, {"remote": {NAME: wanted.here}})
    repo.config.load()


def write_here(repo: Repo, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Put settings into .dvc/config.local, for its owner's eyes alone; ShareError if git would carry it."""
    path = Path(repo.config.files["local"])
    ignored = subprocess.run(["git", "check-ignore", "--quiet", path.name], cwd=path.parent, check=False).returncode
    if ignored == 1:
        raise ShareError(f"Expected git to ignore {path}, but it does not; add /{path.name} to .dvc/.gitignore.")
    path.touch(mode=0o600)
    path.chmod(0o600)
    config: Any
    with repo.config.edit("local") as config:
        for section, values in changes.items():
            for name, value in values.items():
                known = config.setdefault(section, {})
                if isinstance(value, Mapping):
                    known.setdefault(name, {}).update(value)
                else:
                    known[name] = value


def share_cache(repo: Repo, directory: Path) -> Path:
    """One cache for all clones on this host: what this clone's own cache holds goes along, and files become links."""
    group_directory(directory)
    before = Path(repo.cache.local.path).parents[1]
    if before != directory:
        for path in filter(Path.is_file, before.rglob("*")):
            there = directory / path.relative_to(before)
            if not there.exists():
                for parent in reversed(there.relative_to(directory).parents[:-1]):
                    group_directory(directory / parent)
                bring(path, there)
    write_here(repo, {"cache": {"dir": str(directory), "shared": "group", "type": LINKS}})
    return directory


def bring(path: Path, there: Path) -> None:
    """The file under a second name, as a link where the file system allows."""
    try:
        os.link(path, there)
    except OSError:
        partial = there.with_name(f"{there.name}.{os.getpid()}.partial")
        partial.write_bytes(path.read_bytes())
        partial.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, there)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, or 1 with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m flows.share", description="Share what the pipeline makes.")
    parser.add_argument("remote", nargs="?", help="a directory, ssh://, s3://, http(s):// (default: the one known)")
    parser.add_argument("--cache", type=Path, help="a directory that all clones on this host take as their cache")
    parser.add_argument("--endpoint", help="the address of an S3-compatible server that is not Amazon's")
    parser.add_argument("--key", type=Path, help="the private key's file, for SSH")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    options = parser.parse_args(argv)
    try:
        print(share(options.root, options.remote, options.cache, options.endpoint, options.key))
    except (ShareError, DvcException) as error:
        print(one_line(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
