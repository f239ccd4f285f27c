"""How far a capture got, so that one that was killed goes on where it stopped and ends with the same bytes."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from stages.activations import Text
from stages.errors import BadInput
from stages.storage import read_json, write_json

_SAMPLES = 1024


class Progress:
    """The batches that one process of a capture has written, in a small record beside the unfinished file."""

    def __init__(self, partial: Path, rank: int, key: Callable[[], str]) -> None:
        """`key` is what `key_of` gives, asked for when there is a record to read or write."""
        self._record, self._key = partial.with_name(f"{partial.name}.{rank}.json"), key

    def done(self) -> int:
        """Batches that a capture of this key has written; 0 when none left a whole record."""
        if not self._record.is_file():
            return 0
        try:
            record = read_json(self._record)
        except BadInput:
            return 0
        return record["batches"] if record["key"] == self._key() else 0

    def save(self, batches: int) -> None:
        """Records that this many batches are on the disk."""
        write_json(self._record, {"key": self._key(), "batches": batches})

    def remove(self) -> None:
        """Forgets them."""
        self._record.unlink(missing_ok=True)


def key_of(model: PreTrainedModel, texts: Sequence[Text], plan: object) -> str:
    """What two captures must share for one to go on with the other's file, as SHA-256.

    The model (its configuration and evenly spread samples of every parameter), what computes it (the machine's kind
    and the libraries), the texts, and `plan`, anything that JSON can hold: sites, batches, processes.
    """
    sha = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    for name, weight in model.state_dict(keep_vars=True).items():
        sha.update(f"{name} {tuple(weight.shape)} {weight.dtype} {weight.device.type}".encode())
        if weight.device.type != "meta":
            flat = weight.detach().flatten()
            sha.update(flat[:: max(1, len(flat) // _SAMPLES)].double().cpu().numpy().tobytes())
    for text in texts:
        sha.update(f"{text.id} {text.kind} {text.digest} {len(text.tokens)}".encode())
        sha.update(np.asarray(text.tokens, np.int32).tobytes() + np.asarray(text.offsets, np.int32).tobytes())
    computing = [torch.__version__, transformers.__version__, torch.get_num_threads()]
    computing += [torch.backends.cpu.get_cpu_capability()]
    computing += [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    sha.update(json.dumps([computing, plan]).encode())
    return sha.hexdigest()
