"""Trained gates and bridges on disk, which know the models that they were trained between."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.errors import BadInput
from stages.fingerprint import fingerprint

_KEY = "models"
_NAMES = ("target", "donor")


def write_trained(path: Path, tensors: dict[str, torch.Tensor], target: Path, donor: Path) -> None:
    """Writes the tensors with the fingerprints of both models' directories, the same bytes every time."""
    models = dict(zip(_NAMES, map(fingerprint, (target, donor)), strict=True))
    save_file(tensors, path, {_KEY: json.dumps(models, sort_keys=True)})  # with a second key the order would vary


def read_trained(path: Path, models: Sequence[Path] = ()) -> dict[str, torch.Tensor]:
    """The tensors by name; `models` are the directories of the target and the donor, where they are to be checked.

    Raises BadInput where the file is missing or damaged, or is known to be trained between other models than these.
    """
    try:
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise BadInput(
            f"Expected trained gates in {path}, got none that can be read ({' '.join(str(error).split())}); run "
            "`dvc repro` to train them."
        ) from error
    for name, directory in zip(_NAMES, models, strict=False):
        if name in known and known[name] != fingerprint(directory):
            raise BadInput(
                f"Expected gates trained with the {name} {directory} in {path}, got those of another model; run "
                "`dvc repro` to train them anew."
            )
    return tensors
