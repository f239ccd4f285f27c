"""The figures of one model: what it can do, and how that differs from the target on the same items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.maths import statistics
from stages.maths.statistics import Bootstrap, Draws, Estimate, Undefined, draw

Figure = Estimate | Undefined


@dataclass(frozen=True)
class Model:
    """One model's rows by task."""

    capability: pd.DataFrame
    retention: pd.DataFrame
    text: pd.DataFrame


@dataclass(frozen=True)
class Part:
    """Some items of a task, and the draws over their clusters."""

    rows: np.ndarray
    draws: Draws

    def right(self, frame: pd.DataFrame) -> np.ndarray:
        """1 where the model is right, else 0."""
        return frame.right.to_numpy(dtype=np.float64)[self.rows]


@dataclass(frozen=True)
class Ground:
    """What every model is measured on: the items, and the draws that all models share."""

    target: Model
    capability: Part | None
    seen: Part | None
    """Items in phrasings that occur in training."""
    unseen: Part | None
    cells: Mapping[tuple[str, int], Part | None]
    """Operation and digits → the capability's items of that kind."""
    retention: Part | None
    text: Part | None


def lay(target: Model, bootstrap: Bootstrap) -> Ground:
    """The parts of the target's items; None for a part without items."""

    def part(frame: pd.DataFrame, keep: pd.Series | None = None) -> Part | None:
        rows = np.flatnonzero(np.ones(len(frame)) if keep is None else keep.to_numpy(dtype=bool, na_value=False))
        return Part(rows, draw(frame.cluster.to_numpy()[rows], bootstrap)) if len(rows) else None

    asked = target.capability
    seen = asked.seen.astype("boolean")
    told = asked.loc[asked.digits.notna()]
    kinds = sorted(set(zip(told.group, told.digits.astype(int), strict=True)))
    cells = {(group, digits): part(asked, (asked.group == group) & (asked.digits == digits)) for group, digits in kinds}
    return Ground(
        target, part(asked), part(asked, seen), part(asked, ~seen), cells, part(target.retention), part(target.text)
    )


def on_capability(ground: Ground, model: Model) -> dict[str, Figure]:
    """Accuracy on all items and by phrasing; gain = model − target and tir = model / target, paired by item."""
    parts = {"capability": ground.capability, "capability_seen": ground.seen, "capability_unseen": ground.unseen}
    figures = {name: _paired(part, statistics.accuracy, model) for name, part in parts.items()}
    figures["gain"] = _paired(ground.capability, statistics.difference, model, ground.target)
    figures["tir"] = _paired(ground.capability, statistics.ratio, model, ground.target)
    return figures


def as_graft(ground: Ground, graft: Model, donor: Model | None, controls: Sequence[Model]) -> dict[str, Figure]:
    """recovery = (graft − target) / (donor − target), and over_control: the lead over the control nearest to it."""
    whole = ground.capability
    figures: dict[str, Figure] = {"recovery": Undefined("its donor was not measured")}
    if donor:
        figures["recovery"] = _paired(whole, statistics.recovery, graft, donor, ground.target)
    leads = [_paired(whole, statistics.difference, graft, control) for control in controls]
    found = [lead for lead in leads if isinstance(lead, Estimate)]
    figures["over_control"] = min(found, key=lambda e: e.low) if found else Undefined("no control was measured")
    return figures


def on_retention(ground: Ground, model: Model) -> dict[str, Figure]:
    """Accuracy on the questions that should not be lost, and its change from the target, paired by question."""
    return {
        "retention": _paired(ground.retention, statistics.accuracy, model, task="retention"),
        "retention_change": _paired(ground.retention, statistics.difference, model, ground.target, task="retention"),
    }


def on_text(ground: Ground, model: Model) -> dict[str, Figure]:
    """Perplexity per token of the model's own tokenizer, its ratio to the target's, KL(target ‖ model) in nats a token,
    and the share of tokens where both models' first choice agrees; the last three need the target's tokens."""
    if ground.text is None:
        return dict.fromkeys(("perplexity", "perplexity_ratio", "kl_to_target", "agreement"), Undefined("no texts"))
    draws, text, reference = ground.text.draws, model.text, ground.target.text
    tokens, likely = (text[column].to_numpy(dtype=np.float64) for column in ("tokens", "loglikelihood"))
    figures: dict[str, Figure] = dict.fromkeys(
        ("perplexity_ratio", "kl_to_target", "agreement"), Undefined("another tokenizer than the target's")
    )
    figures["perplexity"] = statistics.perplexity_ratio(draws, likely, np.zeros(len(likely)), tokens)
    if (text.tokens == reference.tokens).all():
        figures["perplexity_ratio"] = statistics.perplexity_ratio(draws, likely, reference.loglikelihood, tokens)
    for name, column in (("kl_to_target", "kl"), ("agreement", "agreement")):
        a_token = text[column].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(a_token).all():
            figures[name] = statistics.ratio(draws, a_token * tokens, tokens)
    return figures


def _paired(part: Part | None, measure: Callable[..., Figure], *models: Model, task: str = "capability") -> Figure:
    """`measure` on the right answers of `models` to the same items."""
    if part is None:
        return Undefined("no such items")
    return measure(part.draws, *(part.right(getattr(m, task)) for m in models))
