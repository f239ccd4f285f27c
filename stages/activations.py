"""A model's states on a set of texts, as one HDF5 file: ragged by prompt, bfloat16, one dataset a site."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from stages.errors import BadInput, nearest
from stages.fingerprint import fingerprint

_FORMAT = "graftline activations 1"


@dataclass(frozen=True)
class Text:
    """A text as one model's tokenizer reads it."""

    id: str
    kind: str
    """`capability` (a prompt with its answer) or `text`."""
    digest: str
    """SHA-256 of the text, the same for every model."""
    tokens: Sequence[int]
    offsets: Sequence[tuple[int, int]] | np.ndarray
    """Half-open ranges of characters, [tokens, 2]."""


def digest(text: str) -> str:
    """What tells whether two files hold the same text."""
    return hashlib.sha256(text.encode()).hexdigest()


def create(
    path: Path, texts: Sequence[Text], widths: dict[str, int], model: str | None = None, blocks: int | None = None
) -> dict[str, np.memmap]:
    """Lays out a whole file for `texts` and gives, per site, an array [tokens, width] of uint16 to write states into.

    `model` is the fingerprint of the model's directory and `blocks` how many blocks the model has, where known. Rows
    come prompt after prompt in the order of `texts`, without pads. The bytes depend on the content alone.
    """
    starts = np.cumsum([0, *(len(text.tokens) for text in texts)])
    with h5py.File(path, "w") as file:
        file.attrs["format"] = _FORMAT
        file.attrs.update({name: each for name, each in (("model", model), ("blocks", blocks)) if each is not None})
        file["tokens"] = np.concatenate([np.asarray(text.tokens, np.int32) for text in texts])
        file["offsets"] = np.concatenate([np.asarray(text.offsets, np.int32) for text in texts])
        file["starts"] = starts
        for name, values in (("ids", [t.id for t in texts]), ("kinds", [t.kind for t in texts])):
            encoded = [value.encode() for value in values]
            file[name] = np.array(encoded, f"S{max(map(len, encoded))}")
        file["digests"] = np.array([text.digest for text in texts], "S64")
        sites = file.create_group("sites", track_order=True)
        for site, width in widths.items():
            _allocate(sites, site, (int(starts[-1]), width))
    return mapped(path)


def mapped(path: Path) -> dict[str, np.memmap]:
    """Per site, an array [tokens, width] of uint16 in a file that `create` laid out; BadInput when it is cut off."""
    places = Activations(path)._places
    return {
        site: np.memmap(path, np.uint16, "r+", offset=offset, shape=shape) for site, (offset, shape) in places.items()
    }


def _allocate(group: h5py.Group, name: str, shape: tuple[int, int]) -> None:
    """A contiguous dataset that has its place in the file at once, so that it can be mapped into memory."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    made = h5py.h5d.create(
        group.id, name.encode(), h5py.h5t.NATIVE_UINT16, h5py.h5s.create_simple(shape), dcpl=properties
    )
    h5py.Dataset(made).attrs["dtype"] = "bfloat16"


def _places(file: h5py.File) -> dict[str, tuple[int, tuple[int, int]]]:
    """Where each site's states begin in the file, in bytes, and their shape; sites in the order of writing."""
    sites = file["sites"]
    if not isinstance(sites, h5py.Group):
        raise KeyError("sites")
    return {site: (each.id.get_offset(), each.shape) for site, each in sites.items() if isinstance(each, h5py.Dataset)}


def _read(file: h5py.File, name: str) -> np.ndarray:
    """A whole dataset; KeyError where the file has none of this name."""
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise KeyError(name)
    return found[:]


class Activations:
    """An activation file, opened: its index is read at once, each site when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises BadInput when `path` is missing, truncated or no activation file."""
        if not path.is_file():
            raise BadInput(f"Expected an activation file at {path}, but it is not there; run `dvc repro` to make it.")
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != _FORMAT:
                    raise BadInput(
                        f"{path} is HDF5 but not an activation file of this version; delete it and capture again."
                    )
                self.tokens = torch.from_numpy(_read(file, "tokens"))
                """[tokens]"""
                self.offsets = torch.from_numpy(_read(file, "offsets"))
                """[tokens, 2], half-open ranges of characters in the token's text"""
                self.starts = torch.from_numpy(_read(file, "starts").astype(np.int64))
                """[prompts + 1], the row at which each prompt begins, and the number of rows"""
                self.ids = [value.decode() for value in _read(file, "ids")]
                self.kinds = [value.decode() for value in _read(file, "kinds")]
                self.digests = [value.decode() for value in _read(file, "digests")]
                self._places = _places(file)
                self.model: str | None = file.attrs.get("model")
                """Fingerprint of the directory of the model whose states these are; None where not known"""
                blocks = file.attrs.get("blocks")
                self.blocks: int | None = None if blocks is None else int(blocks)
                """Of that model; None where not known"""
        except (OSError, KeyError) as error:
            raise BadInput(
                f"{path} is not a whole activation file ({' '.join(str(error).split())}); delete it and capture again."
            ) from error
        self.path = path
        end = max((offset + 2 * shape[0] * shape[1] for offset, shape in self._places.values()), default=0)
        if path.stat().st_size < end:
            raise BadInput(
                f"{path} is cut off: expected {end} bytes, got {path.stat().st_size}; delete it, capture again."
            )

    def check_model(self, directory: Path) -> None:
        """Raises BadInput when these are known to be states of another model than the one in `directory`."""
        if self.model is not None and self.model != fingerprint(directory):
            raise BadInput(
                f"Expected states of the model {directory} in {self.path}, got those of another one; check that donor "
                "and target are not exchanged, or capture again."
            )

    @property
    def sites(self) -> list[str]:
        """The sites in the order in which a forward pass reaches them."""
        return list(self._places)

    def width(self, site: str) -> int:
        """Channels of a site; BadInput names the nearest when the file lacks it."""
        if site not in self._places:
            raise BadInput(f"{self.path} has no site {site!r}; {nearest(site, self._places)}")
        return self._places[site][1][1]

    def site(self, name: str) -> torch.Tensor:
        """States [tokens, width] in float32, read from the file now; BadInput as from `width`."""
        return self.mapped(name).float()

    def mapped(self, name: str) -> torch.Tensor:
        """States [tokens, width] in bfloat16, of which only what is looked at is read from the file.

        Writing to them changes no file. BadInput as from `width`.
        """
        self.width(name)
        offset, shape = self._places[name]
        raw = np.memmap(self.path, np.uint16, "c", offset=offset, shape=shape)
        return torch.from_numpy(raw).view(torch.bfloat16)

    @property
    def prompt(self) -> torch.Tensor:
        """[tokens], the index of each row's prompt."""
        return torch.repeat_interleave(torch.arange(len(self.ids)), self.starts.diff())

    @property
    def first(self) -> torch.Tensor:
        """[tokens], whether a row is the first token of its prompt, whose state is often massive and tells nothing."""
        mask = torch.zeros(len(self.tokens), dtype=torch.bool)
        mask[self.starts[:-1]] = True
        return mask

    def of_kind(self, kind: str) -> torch.Tensor:
        """[tokens], whether a row belongs to a text of this kind."""
        return torch.tensor([each == kind for each in self.kinds])[self.prompt]
