"""A model directory's weights tensor by tensor: read when asked for, written as they come, never all at once."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.anatomy.loading import check, load_tokenizer
from stages.errors import BadInput
from stages.storage import read_json, write_json

SHARD = 5 * 10**9
"""Bytes of a file at most, transformers' default."""


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of a directory's safetensors files by name, in order of their names; each is read at each access."""

    def __init__(self, directory: Path) -> None:
        """Raises BadInput when there is no model, or a file of it is damaged."""
        check(directory)
        self.directory = directory
        self._files, self._shapes = {}, {}
        for path in sorted(directory.glob("*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise BadInput(f"{path} is no safetensors file ({error}); fetch or make it again.") from error
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                self._files[name], self._shapes[name] = file, tuple(file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of each tensor, read from the files' headers alone."""
        return self._shapes


def write_weights(directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard: int = SHARD) -> None:
    """Safetensors files of at most `shard` bytes each (but for a larger tensor), with an index where there are several.

    Tensors are taken in turn, and a file is written as soon as it is full, so memory holds one file's.
    """
    held: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []
    total = size = 0

    def flush() -> None:
        save_file(held, directory / f"{len(files)}.safetensors", {"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard:
            flush()
            size = 0
        held[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    names = [f"model-{number + 1:05d}-of-{len(files):05d}.safetensors" for number in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    else:
        where = {name: file for file, inside in zip(names, files, strict=True) for name in inside}
        write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})
    for number, name in enumerate(names):
        (directory / f"{number}.safetensors").rename(directory / name)


def write_model(directory: Path, like: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard: int = SHARD) -> None:
    """A model directory with `tensors` in bfloat16, and everything but its weights as in the directory `like`."""
    config = {key: value for key, value in read_json(like / "config.json").items() if key != "torch_dtype"}
    write_json(directory / "config.json", config | {"dtype": "bfloat16"})
    if (generation := like / "generation_config.json").is_file():
        shutil.copyfile(generation, directory / generation.name)
    load_tokenizer(like).save_pretrained(directory)
    write_weights(directory, ((name, rounded(tensor)) for name, tensor in tensors), shard)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """In bfloat16 where it holds numbers with a point; counters and masks stay as they are."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
