"""Passes over texts whose states at many sites go into one file, batch after batch."""

import functools
import os
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from stages.activations import Text, create, mapped
from stages.anatomy.blocks import blocks
from stages.anatomy.devices import entry_of, share, together
from stages.anatomy.encoding import batches, pad
from stages.anatomy.hooks import watching
from stages.errors import BadInput
from stages.progress import Progress, key_of
from stages.recorder import Recorder, Rows


@torch.inference_mode()
def capture(
    model: PreTrainedModel,
    texts: list[Text],
    sites: list[str],
    out: Path,
    batch_tokens: int = 2048,
    save_every: float = 30.0,
    fingerprint: str | None = None,
) -> None:
    """Writes the states of `sites` on `texts` to the HDF5 file `out`, rounded to bfloat16.

    The language-model head does not run, a few states are held at a time, and memory does not grow with the number of
    texts beyond their token ids. A capture that was killed goes on from what it last saved, every `save_every` seconds,
    and ends with the same bytes; one of another model, other texts or other sites begins anew. Where several processes
    have joined, each runs its share of the batches on its own copy of the model, and all write to one file. The file
    keeps the `fingerprint` of the model's directory, so that others can tell whose states it holds.
    Raises BadInput for a text longer than the model's context and for a site that does not run.
    """
    context = getattr(model.config, "max_position_embeddings", None) or max(len(t.tokens) for t in texts)
    if long := next((t for t in texts if len(t.tokens) > context), None):
        raise BadInput(f"Expected texts of at most {context} tokens, got {len(long.tokens)} in {long.id}; shorten it.")
    widths, (rank, count) = _widths(model, sites), share()
    starts = np.cumsum([0, *(len(text.tokens) for text in texts)])
    plan = list(batches([len(text.tokens) for text in texts], batch_tokens))
    key = functools.cache(lambda: key_of(model, texts, [list(widths.items()), plan, count, fingerprint]))
    partial = out.with_name(out.name + ".partial")
    progress = Progress(partial, rank, key)
    if rank == 0 and not (progress.done() and _whole(partial)):
        for each in range(count):
            Progress(partial, each, key).remove()
        out.parent.mkdir(parents=True, exist_ok=True)
        create(partial, texts, widths, fingerprint, len(blocks(model)))
    together()
    done = progress.done()
    if left := plan[rank::count][done:]:
        recorder, saved = Recorder(mapped(partial)), time.monotonic()
        watchers = {site: functools.partial(recorder.take, site) for site in sites}
        with recorder, watching(model, watchers):
            for number, group in enumerate(left, start=done + 1):
                recorder.expect(Rows.of(group, starts))
                model.base_model(input_ids=pad([texts[i].tokens for i in group], entry_of(model)), use_cache=False)
                if time.monotonic() - saved >= save_every:
                    recorder.settle()
                    progress.save(number)
                    saved = time.monotonic()
    together()
    if rank == 0:
        os.replace(partial, out)
    progress.remove()
    together()


def _whole(partial: Path) -> bool:
    """Whether an unfinished file has all its places."""
    try:
        return bool(mapped(partial))
    except BadInput:
        return False


def _widths(model: PreTrainedModel, sites: list[str]) -> dict[str, int]:
    """Channels of each site, from a pass of one token."""
    widths: dict[str, int] = {}
    with watching(model, {site: lambda state, site=site: widths.update({site: state.shape[-1]}) for site in sites}):
        model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=entry_of(model)), use_cache=False)
    return {site: widths[site] for site in sites}
