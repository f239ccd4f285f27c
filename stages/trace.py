"""What each block of a donor causes, on the capability and on what must not be lost, by exact patching."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pydantic
import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.outcomes import Judge, Outcome
from stages.anatomy.restart import swapped
from stages.anatomy.vocabulary import shared
from stages.command import run
from stages.errors import BadInput
from stages.maths.statistics import Bootstrap, Draws, Estimate, draw, estimate
from stages.settings import Settings, read
from stages.storage import new_file, read_jsonl


class Trace(Settings):
    """What effects are measured on, and how their intervals are drawn."""

    prompts: int = pydantic.Field(default=24, ge=2)
    """Capability items, from the top of the file."""
    texts: int = pydantic.Field(default=8, ge=2)
    """Retention texts, from the top of the file."""
    text_tokens: int = pydantic.Field(default=16, gt=0)
    """Positions read from the beginning of each text."""
    batch_tokens: int = pydantic.Field(default=128, gt=0)
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


def trace(settings: Trace, target: PreTrainedModel, donor: PreTrainedModel, judge: Judge) -> pa.Table:
    """The effects of each block, in the columns of SCHEMA; the first row is the whole donor in the target's place.

    For each block l: `states` lets the donor's residual stream leave block l of the target; `weights_in` runs the
    donor's block l inside the target, `weights_out` the target's block l inside the donor. All are exact, and each
    restarts from cached states, so that only what differs runs. Raises BadInput when the architectures differ.
    """
    check_alike(target, donor)
    effects = _Effects(settings, judge, {"target": judge.outcome(target), "donor": judge.outcome(donor)})
    ours, theirs = judge.states(target), judge.states(donor)
    rows = [effects.row(None, "donor", "target", judge.outcome(donor))]
    for layer in range(len(ours)):
        rows.append(effects.row(layer, "states", "target", judge.outcome(target, layer, theirs[layer])))
        for name, host_name, host, guest, kept in (
            ("weights_in", "target", target, donor, ours),
            ("weights_out", "donor", donor, target, theirs),
        ):
            with swapped(host, layer, blocks(guest)[layer]):
                outcome = judge.outcome(host, layer - 1, kept[layer - 1]) if layer else judge.outcome(host)
            rows.append(effects.row(layer, name, host_name, outcome))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class _Effects:
    """Outcomes as rows: differences from the unpatched host with their intervals, all from the same draws."""

    def __init__(self, settings: Trace, judge: Judge, hosts: dict[str, Outcome]) -> None:
        self._hosts = hosts
        self._tokens = judge.tokens.double()
        bootstrap = Bootstrap(settings.resamples, seed=settings.seed)
        self._prompts = draw(range(len(hosts["target"].match)), bootstrap)
        self._texts = draw(range(len(self._tokens)), bootstrap)

    def row(self, layer: int | None, intervention: str, host: str, outcome: Outcome) -> dict[str, Any]:
        """One row of the table."""
        unpatched = self._hosts[host]
        one = torch.ones_like(outcome.match)
        figures = {
            "capability": _mean(self._prompts, outcome.loglikelihood - unpatched.loglikelihood, one),
            "match": _mean(self._prompts, outcome.match - unpatched.match, one, span=(-1.0, 1.0)),
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
    draws: Draws, sums: torch.Tensor, counts: torch.Tensor, span: tuple[float, float] | None = None
) -> dict[str, float | None]:
    """Σ sums / Σ counts over items with its interval, whose ends are null where it has none."""
    values, weights = sums.numpy(), counts.numpy()
    found = estimate(draws, lambda drawn: (drawn @ values) / (drawn @ weights), span)
    low, high = (found.low, found.high) if isinstance(found, Estimate) else (None, None)
    return {"": float(values.sum() / weights.sum()), "_low": low, "_high": high}


def main(
    target: Path, donor: Path, capability: Path, text: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    """Trace a donor's blocks, as params.yaml says under `trace`."""
    settings = read(params, "trace", Trace)
    tokenizer = load_tokenizer(target)
    if not shared(tokenizer, load_tokenizer(donor)):
        raise BadInput(
            f"Tracing needs a donor with the target's tokenizer, got another in {donor}; leave it out of `trace`."
        )
    items, told = read_jsonl(capability)[: settings.prompts], read_jsonl(text)[: settings.texts]
    answers = encode(tokenizer, [(row["prompt"], row["answer"]) for row in items])
    encoded = tokenizer([row["text"] for row in told], add_special_tokens=False).input_ids
    cut = [ids[: settings.text_tokens + 1] for ids in encoded if len(ids) > 1]
    ours, theirs = load(target), load(donor)
    judge = Judge(ours, answers_of(answers, settings.batch_tokens), texts_of(cut, settings.batch_tokens))
    table = trace(settings, ours, theirs, judge)
    with new_file(out) as scratch:
        pyarrow.parquet.write_table(table, scratch)
    print(f"{table.num_rows} interventions on {len(answers)} prompts and {len(cut)} texts")


if __name__ == "__main__":
    run(main)
