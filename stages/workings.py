"""What a model does inside on a few of the texts that were captured: states, attention, neurons, early predictions."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from stages.activations import Activations
from stages.anatomy.attention import attending
from stages.anatomy.encoding import pad
from stages.anatomy.head import logits_at
from stages.anatomy.hooks import watching
from stages.anatomy.lens import lens
from stages.anatomy.names import kind_of, layer_of
from stages.anatomy.sites import sites_of
from stages.maths.predictions import divergence, top_agreement


@dataclass(frozen=True)
class Sample:
    """Some texts of an activation file as one batch, and the tokens in it that figures are taken on."""

    ids: Int[Tensor, "batch tokens"]
    """Padded on the right."""
    row: Int[Tensor, "rows"]
    column: Int[Tensor, "rows"]
    """Where each token stands in the batch."""
    lens: Bool[Tensor, "rows"]
    """Those at which predictions are read."""


@dataclass
class Workings:
    """What passed at the rows of a sample; heads, neurons and predictions by block."""

    states: dict[str, Float[Tensor, "rows width"]] = field(default_factory=dict)
    """By site: blocks, attentions, MLPs."""
    patterns: dict[int, Float[Tensor, "heads rows keys"]] = field(default_factory=dict)
    neurons: dict[int, Float[Tensor, "rows neurons"]] = field(default_factory=dict)
    agreement: dict[int, float] = field(default_factory=dict)
    """How often the block's early prediction puts the model's own first token first."""
    divergence: dict[int, float] = field(default_factory=dict)
    """KL of the block's early prediction from the model's own, nats."""


def sample(activations: Activations, rows: Int[Tensor, "rows"], answers: Mapping[str, int], positions: int) -> Sample:
    """The texts that `rows` of the file lie in, each up to the last of them.

    Predictions are read where an answer's token comes next: `answers` gives the number of characters before the answer
    by prompt id. In a text of no answer they are read at `positions` of its rows, evenly spaced.
    """
    prompts, index = activations.prompt[rows].unique(return_inverse=True)
    starts = activations.starts[prompts]
    column = rows - starts[index]
    lengths = torch.zeros(len(prompts), dtype=torch.long).scatter_reduce(0, index, column + 1, "amax")
    spans = zip(starts.tolist(), lengths.tolist(), strict=True)
    ids = pad([activations.tokens[start : start + length].tolist() for start, length in spans])
    read = torch.zeros(len(rows), dtype=torch.bool)
    for number, prompt in enumerate(prompts.tolist()):
        own = (index == number).nonzero()[:, 0]
        before = answers.get(activations.ids[prompt])
        if before is None:
            read[own[torch.linspace(0, len(own) - 1, min(positions, len(own))).round().long()]] = True
        else:
            following = rows[own] + 1
            inside = following < activations.starts[prompt + 1]
            read[own[inside]] = activations.offsets[following[inside], 1] > before
    return Sample(ids, index, column, read)


@torch.inference_mode()
def workings(model: PreTrainedModel, given: Sample) -> Workings:
    """What `model` does on a sample, in one pass and, for the early predictions, one of its head a block."""
    found, device = Workings(), model.device
    row, column = given.row.to(device), given.column.to(device)
    sites = [site for site in sites_of(model) if kind_of(site) in ("block", "attention", "mlp", "neurons")]

    def keep(site: str, state: Tensor) -> None:
        layer, rows = layer_of(site), state[row, column].float()
        if kind_of(site) == "neurons" and layer is not None:
            found.neurons[layer] = rows
        else:
            found.states[site] = rows

    def attend(layer: int, pattern: Tensor) -> None:
        found.patterns[layer] = pattern[row, :, column].transpose(0, 1).float()

    with ExitStack() as stack:
        stack.enter_context(attending(model, attend))
        stack.enter_context(watching(model, {site: lambda state, site=site: keep(site, state) for site in sites}))
        final = logits_at(model, given.ids, row[given.lens], column[given.lens]).float()
    if len(final):
        for site, states in found.states.items():
            layer = layer_of(site)
            if kind_of(site) == "block" and layer is not None:
                early = lens(model, states[given.lens]).float()
                found.agreement[layer] = top_agreement(final, early)
                found.divergence[layer] = divergence(final, early)
    return found
