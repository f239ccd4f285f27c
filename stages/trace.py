"""What each block of a donor causes, on the capability and on what must not be lost, by exact patching."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pydantic
import torch
from torch import nn
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.hooks import reading
from stages.anatomy.likelihood import Encoded, batches, encode, pad, score
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.restart import resumed
from stages.anatomy.vocabulary import shared
from stages.command import run
from stages.errors import BadInput
from stages.maths.statistics import Bootstrap, Draws, Estimate, draw, estimate
from stages.settings import Settings, read
from stages.storage import new_file, read_jsonl


class Trace(Settings):
    """What effects are measured on, and how their intervals are drawn."""

    prompts: int = pydantic.Field(default=32, ge=2)
    """Capability items, from the top of the file."""
    texts: int = pydantic.Field(default=8, ge=2)
    """Retention texts, from the top of the file."""
    text_tokens: int = pydantic.Field(default=40, ge=2)
    """Tokens read from the beginning of each text."""
    batch_tokens: int = pydantic.Field(default=1024, gt=0)
    """Tokens a forward pass, pads included."""
    resamples: int = pydantic.Field(default=2000, gt=0)
    seed: int = 0


_EFFECTS = ("capability", "match", "retention", "retention_change")
SCHEMA = pa.schema(
    [
        ("site", pa.string()),
        ("layer", pa.int32()),
        ("intervention", pa.string()),
        ("host", pa.string()),
        ("prompts", pa.int32()),
        ("texts", pa.int32()),
        *((f"{effect}{end}", pa.float64()) for effect in _EFFECTS for end in ("", "_low", "_high")),
    ]
)
"""The columns of a trace. `capability` is the change of an answer's log-likelihood (nats) and `match` of its exact
match, both against the unpatched host; `retention` is the mean KL divergence a token (nats) from the target's
next-token distribution, `retention_change` that less the unpatched host's. Ends of 95 % intervals beside each."""


@dataclass(frozen=True)
class Batch:
    """Items that one forward pass reads."""

    ids: torch.Tensor
    """[batch, tokens], padded on the right"""
    answers: Sequence[Encoded] = ()
    """The capability items in the order of the rows; none for texts."""
    lengths: Sequence[int] = ()
    """Real tokens of each text; none for capability items."""


@dataclass(frozen=True)
class Outcome:
    """What a model does on all items, in the order of their batches."""

    loglikelihood: np.ndarray
    """[prompts], nats"""
    match: np.ndarray
    """[prompts], 0 or 1"""
    divergence: np.ndarray
    """[texts], KL from the target summed over tokens, nats"""


def batched(answers: list[Encoded], texts: list[list[int]], budget: int) -> list[Batch]:
    """All items in batches of like length; capability items that read the same tokens count once."""
    distinct = list({item.ids[:-1]: item for item in answers}.values())
    groups = [[distinct[i] for i in group] for group in batches([len(e.ids) - 1 for e in distinct], budget)]
    capability = [Batch(pad([item.ids[:-1] for item in group]), answers=group) for group in groups]
    groups_of_texts = [[texts[i] for i in group] for group in batches([len(ids) for ids in texts], budget)]
    return capability + [Batch(pad(group), lengths=[len(ids) for ids in group]) for group in groups_of_texts]


class Judge:
    """Measures a model on the batches; the target's distributions on the texts are computed once and kept."""

    def __init__(self, target: PreTrainedModel, every: list[Batch]) -> None:
        self.batches = every
        self._probabilities = {i: self._logits(target, b).softmax(-1) for i, b in enumerate(every) if b.lengths}
        self._entropies = {i: torch.special.entr(p).sum(-1) for i, p in self._probabilities.items()}

    @staticmethod
    @torch.inference_mode()
    def _logits(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        return model(input_ids=batch.ids.to(model.device), use_cache=False).logits.float()

    @torch.inference_mode()
    def outcome(self, model: PreTrainedModel, layer: int = -1, states: Sequence[torch.Tensor] | None = None) -> Outcome:
        """What `model` does; with `states` (one tensor a batch) leaving block `layer`, only later blocks run."""
        told: list[torch.Tensor] = []
        matched: list[torch.Tensor] = []
        divergence: list[float] = []
        for i, batch in enumerate(self.batches):
            with resumed(model, layer, states[i]) if states is not None else contextlib.nullcontext():
                if batch.answers:
                    scores = score(model, batch.answers, budget=batch.ids.numel())
                    told.append(scores.loglikelihood)
                    matched.append(scores.greedy)
                    continue
                logits = self._logits(model, batch)
            crossed = logits.logsumexp(-1) - torch.einsum("btv,btv->bt", self._probabilities[i], logits)
            per_token = (crossed - self._entropies[i]).clamp(min=0)  # below 0 by rounding alone
            divergence += [per_token[row, :length].sum().item() for row, length in enumerate(batch.lengths)]
        return Outcome(torch.cat(told).numpy(), torch.cat(matched).double().numpy(), np.array(divergence))

    @torch.inference_mode()
    def states(self, model: PreTrainedModel) -> list[list[torch.Tensor]]:
        """[layer][batch] → states [batch, tokens, width] leaving that block."""
        sites = [f"layers.{layer}" for layer in range(len(blocks(model)))]
        kept: list[dict[str, torch.Tensor]] = []
        for batch in self.batches:
            with reading(model, sites) as states:
                model.base_model(input_ids=batch.ids.to(model.device), use_cache=False)
            kept.append(states)
        return [[states[site] for states in kept] for site in sites]


@contextlib.contextmanager
def swapped(model: PreTrainedModel, layer: int, block: nn.Module) -> Iterator[None]:
    """Inside the block, `block` stands in the place of the model's block `layer`."""
    inner = blocks(model)
    own = inner[layer]
    inner[layer] = block
    try:
        yield
    finally:
        inner[layer] = own


def check_alike(target: PreTrainedModel, donor: PreTrainedModel) -> None:
    """Raises BadInput unless each block of the donor fits in the place of the target's."""
    ours, theirs = blocks(target), blocks(donor)
    shapes = [[{name: p.shape for name, p in block.named_parameters()} for block in each] for each in (ours, theirs)]
    if type(ours[0]) is not type(theirs[0]) or shapes[0] != shapes[1]:
        raise BadInput(
            "Tracing needs a donor of the target's architecture and equal widths, got "
            f"{len(theirs)} × {type(theirs[0]).__name__} of width {donor.config.hidden_size} for "
            f"{len(ours)} × {type(ours[0]).__name__} of width {target.config.hidden_size}; leave it out of `trace`."
        )


def trace(settings: Trace, target: PreTrainedModel, donor: PreTrainedModel, every: list[Batch]) -> pa.Table:
    """The effects of each block, in the columns of SCHEMA; the first row is the whole donor in the target's place.

    For each block l: `states` lets the donor's residual stream leave block l of the target; `weights_in` runs the
    donor's block l inside the target, `weights_out` the target's block l inside the donor. All are exact, and each
    restarts from cached states, so that only what differs runs. Raises BadInput when the architectures differ.
    """
    check_alike(target, donor)
    judge = Judge(target, every)
    hosts = {"target": judge.outcome(target), "donor": judge.outcome(donor)}
    ours, theirs = judge.states(target), judge.states(donor)
    effects = Effects(settings, every, hosts)
    rows = [effects.row(None, "donor", "target", hosts["donor"])]
    for layer in range(len(ours)):
        rows.append(effects.row(layer, "states", "target", judge.outcome(target, layer, theirs[layer])))
        before = layer - 1, ours[layer - 1] if layer else None
        with swapped(target, layer, blocks(donor)[layer]):
            rows.append(effects.row(layer, "weights_in", "target", judge.outcome(target, *before)))
        before = layer - 1, theirs[layer - 1] if layer else None
        with swapped(donor, layer, blocks(target)[layer]):
            rows.append(effects.row(layer, "weights_out", "donor", judge.outcome(donor, *before)))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class Effects:
    """Outcomes as rows: differences from the unpatched host with their intervals, all from the same draws."""

    def __init__(self, settings: Trace, every: list[Batch], hosts: dict[str, Outcome]) -> None:
        self._hosts = hosts
        self._tokens = np.array([length for batch in every for length in batch.lengths], float)
        bootstrap = Bootstrap(settings.resamples, seed=settings.seed)
        self._prompts = draw(range(len(hosts["target"].match)), bootstrap)
        self._texts = draw(range(len(self._tokens)), bootstrap)

    def row(self, layer: int | None, intervention: str, host: str, outcome: Outcome) -> dict[str, Any]:
        """One row of the table."""
        unpatched = self._hosts[host]
        one = np.ones_like(outcome.match)
        figures = {
            "capability": _mean(self._prompts, outcome.loglikelihood - unpatched.loglikelihood, one),
            "match": _mean(self._prompts, outcome.match - unpatched.match, one, span=(-1, 1)),
            "retention": _mean(self._texts, outcome.divergence, self._tokens),
            "retention_change": _mean(self._texts, outcome.divergence - unpatched.divergence, self._tokens),
        }
        return {
            "site": None if layer is None else f"layers.{layer}",
            "layer": layer,
            "intervention": intervention,
            "host": host,
            "prompts": len(one),
            "texts": len(self._tokens),
            **{f"{name}{end}": value for name, ends in figures.items() for end, value in ends.items()},
        }


def _mean(
    draws: Draws, values: np.ndarray, weights: np.ndarray, span: tuple[float, float] | None = None
) -> dict[str, float | None]:
    """Σ values / Σ weights over prompts with its interval, whose ends are null where it has none."""
    found = estimate(draws, lambda w: (w @ values) / (w @ weights), span)
    value = float(values.sum() / weights.sum())
    low, high = (found.low, found.high) if isinstance(found, Estimate) else (None, None)
    return {"": value, "_low": low, "_high": high}


def main(
    target: Path, donor: Path, capability: Path, text: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    """Trace a donor's blocks, as params.yaml says under `trace`."""
    settings = read(params, "trace", Trace)
    tokenizer = load_tokenizer(target)
    if not shared(tokenizer, load_tokenizer(donor)):
        raise BadInput(f"Tracing needs a donor with the target's tokenizer, got another in {donor}; leave it out of `trace`.")
    items, told = read_jsonl(capability)[: settings.prompts], read_jsonl(text)[: settings.texts]
    answers = encode(tokenizer, [(row["prompt"], row["answer"]) for row in items])
    cut = [ids[: settings.text_tokens] for ids in tokenizer([r["text"] for r in told], add_special_tokens=False).input_ids]
    table = trace(settings, load(target), load(donor), batched(answers, cut, settings.batch_tokens))
    with new_file(out) as scratch:
        pyarrow.parquet.write_table(table, scratch)
    print(f"{table.num_rows} interventions on {len(items)} prompts and {len(cut)} texts")


if __name__ == "__main__":
    run(main)
