"""What a model computes on prompts and texts: the states of many sites in one HDF5 file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydantic
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.activations import Text, create, digest
from stages.anatomy.encoding import batches, pad
from stages.anatomy.hooks import watching
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.names import matching
from stages.anatomy.sites import sites_of
from stages.command import run
from stages.errors import BadInput
from stages.settings import Settings, read
from stages.storage import new_file, read_jsonl


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


def texts_of(tokenizer: PreTrainedTokenizerBase, settings: Capture, capability: Path, text: Path) -> list[Text]:
    """The first prompts and texts of two JSONL files, tokenized without special tokens, with character offsets.

    Raises BadInput when a row lacks a key or has no token.
    """
    prompts, told = read_jsonl(capability)[: settings.prompts], read_jsonl(text)[: settings.texts]
    try:
        pairs = [(row["id"], "capability", row["prompt"] + row["answer"]) for row in prompts]
        pairs += [(row["id"], "text", row["text"]) for row in told]
    except KeyError as error:
        raise BadInput(
            f"Expected rows with id, prompt and answer in {capability} and id and text in {text}; {error} is missing."
        ) from None
    encoded = tokenizer([whole for *_, whole in pairs], add_special_tokens=False, return_offsets_mapping=True)
    empty = [name for (name, *_), ids in zip(pairs, encoded.input_ids, strict=True) if not ids]
    if empty:
        raise BadInput(
            f"Expected at least one token in each text, got none in {', '.join(empty[:5])}; remove these rows."
        )
    return [
        Text(name, kind, digest(whole), ids, offsets)
        for (name, kind, whole), ids, offsets in zip(pairs, encoded.input_ids, encoded.offset_mapping, strict=True)
    ]


@torch.inference_mode()
def capture(model: PreTrainedModel, texts: list[Text], sites: list[str], out: Path, batch_tokens: int = 2048) -> None:
    """Writes the states of `sites` on `texts` to the HDF5 file `out`, rounded to bfloat16.

    The language-model head does not run, one site's states are held at a time, and memory does not grow with the
    number of texts beyond their token ids. Raises BadInput for a text longer than the model's context and for a site
    that does not run.
    """
    context = getattr(model.config, "max_position_embeddings", None) or max(len(t.tokens) for t in texts)
    if long := next((t for t in texts if len(t.tokens) > context), None):
        raise BadInput(f"Expected texts of at most {context} tokens, got {len(long.tokens)} in {long.id}; shorten it.")
    starts = np.cumsum([0, *(len(text.tokens) for text in texts)])
    with new_file(out) as scratch:
        arrays = create(scratch, texts, _widths(model, sites))
        for group in batches([len(text.tokens) for text in texts], batch_tokens):
            lengths = [len(texts[i].tokens) for i in group]
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in group])
            ids = pad([texts[i].tokens for i in group], model.device)
            real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
            with watching(model, {site: _writer(array, rows, real) for site, array in arrays.items()}):
                model.base_model(input_ids=ids, use_cache=False)
        for array in arrays.values():
            array.flush()


def _writer(array: np.memmap, rows: np.ndarray, real: torch.Tensor) -> Callable[[torch.Tensor], None]:
    """Writes the real tokens of a state [batch, tokens, width] to their rows of a site."""

    def write(state: torch.Tensor) -> None:
        array[rows] = state[real.to(state.device)].to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16)

    return write


def _widths(model: PreTrainedModel, sites: list[str]) -> dict[str, int]:
    """Channels of each site, from a pass of one token."""
    widths: dict[str, int] = {}
    with watching(model, {site: lambda state, site=site: widths.update({site: state.shape[-1]}) for site in sites}):
        model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    return {site: widths[site] for site in sites}


def main(model: Path, capability: Path, text: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Capture a model's states as params.yaml says under `capture`."""
    settings = read(params, "capture", Capture)
    texts = texts_of(load_tokenizer(model), settings, capability, text)
    network = load(model)
    sites = matching(settings.sites, sites_of(network))
    capture(network, texts, sites, out, settings.batch_tokens)
    print(f"{len(sites)} sites on {sum(len(t.tokens) for t in texts)} tokens of {len(texts)} texts")


if __name__ == "__main__":
    run(main)
