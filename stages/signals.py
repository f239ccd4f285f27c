"""What a run of the graft tells of each item: how far its gates open, how far models are apart, what it samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pydantic
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.encoding import batches, pad
from stages.anatomy.gating import gated, opening
from stages.anatomy.head import logits_at
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.vocabulary import shared
from stages.command import run
from stages.errors import BadInput
from stages.maths.disagreement import jensen_shannon
from stages.meaning import agreement
from stages.settings import Settings, read
from stages.storage import new_file, read_jsonl
from stages.tables import read_table

COLUMNS = ("gate", "divergence", "shift", "agreement_of_samples")


class Signals(Settings):
    """How many items the graft is run on, and how."""

    items: int = pydantic.Field(default=48, ge=0)
    """Of the capability's test items."""
    calibration: int = pydantic.Field(default=0, ge=0)
    """Of its calibration items."""
    questions: int = pydantic.Field(default=36, ge=0)
    """Of the retention questions."""
    budget: int = pydantic.Field(default=256, gt=0)
    """Padded tokens a forward pass."""
    samples: int = pydantic.Field(default=0, ge=0)
    """Answers sampled for each of the capability's items; 0 for none, since each costs as much as answering."""
    temperature: float = pydantic.Field(default=0.7, gt=0)
    """Of the samples."""
    tokens: int = pydantic.Field(default=8, gt=0)
    """Most tokens of a sample."""
    seed: int = 0


@dataclass(frozen=True)
class Places:
    """Where the models lie."""

    graft: Path
    target: Path
    donor: Path


@dataclass(frozen=True)
class Asked:
    """An item as the graft was asked it."""

    prompt: str
    answer: str
    """Its own, as it follows the prompt; nothing where it is not known."""
    free: bool
    """Whether it could have answered anything."""


def signals(places: Places, items: pd.DataFrame, prompts: Path, settings: Signals) -> pd.DataFrame:
    """A row an item, at even distances in the order of the items' kinds: task, id, split and four figures, or NaN.

    Each is a mean over the places where the tokens of the graft's own answer are decided, the first of them the
    prompt's end, and of that place alone where `items` (evaluate's rows of the graft) have no `answered`. `gate`: how
    much the gates let through, a closed one nothing; NaN for a graft without gates. `divergence`: the Jensen–Shannon
    divergence of donor and target, NaN where they do not share a tokenizer; `shift`: of graft and target; nats.
    `agreement_of_samples`: the share of sampled answers that say what the answer does.
    """
    chosen = _chosen(items, settings)
    asked = _asked(prompts, chosen)
    graft, target, tokenizer = load(places.graft), load(places.target), load_tokenizer(places.graft)
    donor = load(places.donor) if shared(load_tokenizer(places.donor), tokenizer) else None
    read_at = [_place(tokenizer, each) for each in asked]
    found = {name: [float("nan")] * len(asked) for name in COLUMNS}
    for group in batches([len(ids) for ids, _ in read_at], settings.budget):
        for name, values in _read(graft, target, donor, [read_at[i] for i in group]).items():
            for i, value in zip(group, values, strict=True):
                found[name][i] = value
    if settings.samples:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            for i, each in enumerate(asked):
                if each.free and each.answer:
                    samples = _sampled(graft, tokenizer, each.prompt, settings)
                    found["agreement_of_samples"][i] = agreement(each.answer, samples)
    table = chosen.loc[:, ["task", "id", "split"]].assign(**found)
    return table.astype(dict.fromkeys(COLUMNS, "float64")).round(6).sort_values(["task", "id"], ignore_index=True)


def _chosen(items: pd.DataFrame, settings: Signals) -> pd.DataFrame:
    items = items if "split" in items else items.assign(split="test")
    counts = {
        ("capability", "test"): settings.items,
        ("capability", "calibration"): settings.calibration,
        ("retention", "test"): settings.questions,
    }
    parts = []
    for (task, split), count in counts.items():
        rows = items.loc[(items.task == task) & (items.split == split)].sort_values(["group", "digits", "id"])
        count = min(count, len(rows))
        parts.append(rows.iloc[[(2 * k + 1) * len(rows) // (2 * count) for k in range(count)]])
    return pd.concat(parts, ignore_index=True)


def _asked(prompts: Path, chosen: pd.DataFrame) -> list[Asked]:
    """Raises BadInput when an item has no prompt."""
    files = {
        ("capability", "test"): "capability/test.jsonl",
        ("capability", "calibration"): "capability/calibration.jsonl",
        ("retention", "test"): "retention/questions.jsonl",
    }
    known = {
        kind: {row["id"]: row for row in read_jsonl(prompts / files[kind])}
        for kind in sorted(set(zip(chosen.task, chosen.split, strict=True)))
    }
    asked = []
    for row in chosen.to_dict("records"):
        kind = row["task"], row["split"]
        found = known[kind].get(row["id"])
        if found is None:
            raise BadInput(f"Expected the item {row['id']!r} in {prompts / files[kind]}, got none; rerun evaluate.")
        answered = row.get("answered")
        answered = answered if isinstance(answered, str) else ""
        if row["task"] == "retention":  # as data/tasks/retention.yaml puts it
            asked.append(Asked(f"Question: {found['question']}\nAnswer:", f" {answered}" if answered else "", False))
        else:
            asked.append(Asked(found["prompt"], answered, True))
    return asked


def _place(tokenizer: PreTrainedTokenizerBase, asked: Asked) -> tuple[list[int], int]:
    """The ids to read, and the first place that decides a token of the answer: those of all but the last token."""
    before, whole = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (asked.prompt, asked.prompt + asked.answer)
    )
    ids = whole[:-1] if len(whole) > len(before) else before
    return ids, min(len(before), len(ids)) - 1


@torch.inference_mode()
def _read(
    graft: PreTrainedModel,
    target: PreTrainedModel,
    donor: PreTrainedModel | None,
    group: Sequence[tuple[list[int], int]],
) -> dict[str, list[float]]:
    """The figures of some items, each a mean over its places."""
    ids = pad([ids for ids, _ in group])
    places = [(row, column) for row, (own, first) in enumerate(group) for column in range(first, len(own))]
    row, column = torch.tensor(places).T
    counts = [len(own) - first for own, first in group]
    with opening(graft) as last:
        ours = logits_at(graft, ids, row, column)
        open_at = last() if gated(graft) else None
    theirs = logits_at(target, ids, row, column)
    told = {"shift": jensen_shannon(ours, theirs)}
    if open_at is not None:
        told["gate"] = open_at.mean(-1).expand(ids.shape)[row, column].double()
    if donor is not None:
        width = theirs.shape[-1]  # of padded embeddings, one may have more rows
        others = logits_at(donor, ids, row, column)
        told["divergence"] = jensen_shannon(others[:, :width], theirs[:, : others.shape[-1]])
    return {name: [float(part.mean()) for part in each.cpu().split(counts)] for name, each in told.items()}


@torch.inference_mode()
def _sampled(graft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, settings: Signals) -> list[str]:
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids], device=graft.device)
    end = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    made = graft.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=settings.temperature, top_k=0,
        top_p=1.0, max_new_tokens=settings.tokens, num_return_sequences=settings.samples, pad_token_id=end,
    )  # fmt: skip
    return tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)


def main(graft: Path, target: Path, donor: Path, items: Path, prompts: Path, out: Path,
         params: Path = Path("params.yaml")) -> None:  # fmt: skip
    """Run one graft over a few items and read its gates, as params.yaml says under `signals`."""
    settings = read(params, "signals", Signals)
    made = signals(Places(graft, target, donor), read_table(items), prompts, settings)
    with new_file(out) as scratch:
        made.to_parquet(scratch, index=False)


if __name__ == "__main__":
    run(main)
