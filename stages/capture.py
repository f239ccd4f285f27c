"""What a model computes on prompts and texts: the states of many sites in one HDF5 file."""

import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic
from transformers import PreTrainedTokenizerBase

from stages.activations import Text, digest
from stages.anatomy.devices import join, own_device, spread
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.names import matching
from stages.anatomy.sites import sites_of
from stages.command import run
from stages.errors import BadInput
from stages.fingerprint import fingerprint
from stages.items import PROMPT, TEXT, read_items
from stages.recording import capture
from stages.settings import Settings, read

_AT_ONCE = 1000
"""Texts that the tokenizer reads at once; its answer takes far more memory than what is kept of it."""


class Capture(Settings):
    """Where and on what a model is watched."""

    sites: list[str] = ["layers.*", "layers.*.self_attn", "layers.*.mlp", "norm"]
    """Patterns of sites; `*` stands for one part of a name."""
    prompts: int = pydantic.Field(default=128, gt=0)
    """Capability prompts, read with their answers, from the top of the file."""
    texts: int = pydantic.Field(default=8, ge=0)
    """Retention texts, from the top of the file."""
    batch_tokens: int = pydantic.Field(default=2048, gt=0)
    """Tokens a forward pass, pads included."""
    spread: bool = False
    """Whether one model is spread over all GPUs, as for one that no GPU holds; `accelerate launch` and `torchrun`
    instead give each GPU a model and its share of the batches."""


def texts_of(tokenizer: PreTrainedTokenizerBase, settings: Capture, capability: Path, text: Path) -> list[Text]:
    """The first prompts and texts of two JSONL files, tokenized without special tokens, with character offsets.

    Raises BadInput when a row lacks a key, or has no words or no token.
    """
    prompts = read_items(capability, ("id", *PROMPT), settings.prompts)
    pairs = [(row["id"], "capability", row["prompt"] + row["answer"]) for row in prompts]
    pairs += [(row["id"], "text", row["text"]) for row in read_items(text, ("id", *TEXT), settings.texts)]
    parts = [pairs[i : i + _AT_ONCE] for i in range(0, len(pairs), _AT_ONCE)]
    texts = [text for part in parts for text in _tokenized(tokenizer, part)]
    empty = [text.id for text in texts if not text.tokens]
    if empty:
        raise BadInput(
            f"Expected at least one token in each text, got none in {', '.join(empty[:5])}; remove these rows."
        )
    return texts


def _tokenized(tokenizer: PreTrainedTokenizerBase, rows: Sequence[tuple[str, str, str]]) -> list[Text]:
    """Texts of (id, kind, text), their tokens as machine integers."""
    encoded = tokenizer([whole for *_, whole in rows], add_special_tokens=False, return_offsets_mapping=True)
    return [
        Text(name, kind, digest(whole), array.array("i", ids), np.array(offsets, np.int32).reshape(-1, 2))
        for (name, kind, whole), ids, offsets in zip(rows, encoded.input_ids, encoded.offset_mapping, strict=True)
    ]


def main(model: Path, capability: Path, text: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Capture a model's states as params.yaml says under `capture`."""
    settings = read(params, "capture", Capture)
    rank, _ = join()
    texts = texts_of(load_tokenizer(model), settings, capability, text)
    network = spread(load(model, device="cpu")) if settings.spread else load(model, device=own_device())
    sites = matching(settings.sites, sites_of(network))
    capture(network, texts, sites, out, settings.batch_tokens, fingerprint=fingerprint(model))
    if rank == 0:
        print(f"{len(sites)} sites on {sum(len(t.tokens) for t in texts)} tokens of {len(texts)} texts")


if __name__ == "__main__":
    run(main)
