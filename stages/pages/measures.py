"""The figures of one model: what it can do, and how that differs from the target on the same items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.maths import statistics
from stages.maths.statistics import Bootstrap, Draws, Estimate, Totals, Undefined, draw

Figure = Estimate | Undefined
Model = Mapping[str, pd.DataFrame]
"""Task → one model's rows."""

CORE = ("capability", "retention", "text")
"""The tasks that every experiment has; each is of the kind that it is called."""


@dataclass(frozen=True)
class Part:
    """Some items of a task, and what each model makes of them."""

    draws: Draws
    scores: Mapping[str, np.ndarray]
    """Model → 1 where it is right, 0 where it is wrong, or what the task gives in between [items]."""
    sums: Mapping[str, Totals]


@dataclass(frozen=True)
class Ground:
    """What every model is measured on; all models share the draws over the items."""

    tasks: Mapping[str, Part]
    """Tasks whose items are right or wrong."""
    roles: Mapping[str, str]
    """Task → capability, retention or text."""
    seen: Part | None
    """Items of the capability in phrasings that occur in training."""
    unseen: Part | None
    cells: Mapping[tuple[str, int], Part]
    """Operation and digits → the capability's items of that kind."""
    texts: Mapping[str, Draws]
    """Tasks whose items are texts."""
    models: Mapping[str, Model]


def lay(models: Mapping[str, Model], bootstrap: Bootstrap) -> Ground:
    """The parts of the target's items, with the sums of all models that were judged on them."""
    target = models["target"]
    roles = {task: _role(task, rows) for task, rows in target.items()}

    def part(task: str, keep: np.ndarray | None = None) -> Part | None:
        if task not in target or not len(target[task]):
            return None
        rows = np.arange(len(target[task])) if keep is None else np.flatnonzero(keep)
        if not len(rows):
            return None
        draws = draw(target[task].cluster.to_numpy()[rows], bootstrap)
        scores = {name: _scores(model[task])[rows] for name, model in models.items() if task in model}
        totals = draws.totals(np.stack(list(scores.values()), axis=-1))
        return Part(draws, scores, dict(zip(scores, totals, strict=True)))

    found = {task: part(task) for task, role in roles.items() if role != "text"}
    asked = target.get("capability", pd.DataFrame(columns=["seen", "digits", "group"]))
    seen = asked.seen.astype("boolean")
    told = asked.loc[asked.digits.notna()]
    kinds = sorted(set(zip(told.group, told.digits.astype(int), strict=True)))
    alike = {kind: part("capability", _where((asked.group == kind[0]) & (asked.digits == kind[1]))) for kind in kinds}
    return Ground(
        tasks={task: each for task, each in found.items() if each},
        roles=roles,
        seen=part("capability", _where(seen)),
        unseen=part("capability", _where(~seen)),
        cells={kind: each for kind, each in alike.items() if each},
        texts={t: draw(target[t].cluster.to_numpy(), bootstrap) for t, role in roles.items()
               if role == "text" and len(target[t])},
        models=models,
    )  # fmt: skip


def on_capability(ground: Ground, model: str) -> dict[str, Figure]:
    """Accuracy on all items and by phrasing; gain = model − target and tir = model / target, paired by item."""
    whole = ground.tasks.get("capability")
    parts = {"capability": whole, "capability_seen": ground.seen, "capability_unseen": ground.unseen}
    figures = {name: paired(part, statistics.accuracy, model) for name, part in parts.items()}
    figures["gain"] = paired(whole, statistics.difference, model, "target")
    figures["tir"] = paired(whole, statistics.ratio, model, "target")
    return figures


def as_graft(part: Part | None, graft: str, donor: str | None, controls: Sequence[str]) -> dict[str, Figure]:
    """recovery = (graft − target) / (donor − target), and over_control: the lead over the control nearest to it."""
    figures: dict[str, Figure] = {"recovery": Undefined("its donor was not measured")}
    if part and donor in part.sums:
        figures["recovery"] = paired(part, statistics.recovery, graft, donor, "target")
    leads = [paired(part, statistics.difference, graft, each) for each in controls if part and each in part.sums]
    found = [lead for lead in leads if isinstance(lead, Estimate)]
    figures["over_control"] = min(found, key=lambda e: e.low) if found else Undefined("no control was measured")
    return figures


def on_retention(ground: Ground, model: str) -> dict[str, Figure]:
    """Accuracy on the questions that should not be lost, and its change from the target, paired by question."""
    part = ground.tasks.get("retention")
    return {
        "retention": paired(part, statistics.accuracy, model),
        "retention_change": paired(part, statistics.difference, model, "target"),
    }


def on_text(ground: Ground, model: str, task: str = "text") -> dict[str, Figure]:
    """Perplexity per token of the model's own tokenizer, its ratio to the target's, KL(target ‖ model) in nats a token,
    and the share of tokens where both models' first choice agrees; the last three need the target's tokens."""
    if task not in ground.texts or task not in ground.models[model]:
        return dict.fromkeys(("perplexity", "perplexity_ratio", "kl_to_target", "agreement"), Undefined("no texts"))
    draws, text, reference = ground.texts[task], ground.models[model][task], ground.models["target"][task]
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


def paired(part: Part | None, measure: Callable[..., Figure], *models: str) -> Figure:
    """`measure` on what `models` make of the same items."""
    if part is None:
        return Undefined("no such items")
    absent = [name for name in models if name not in part.sums]
    return Undefined("not measured") if absent else measure(part.draws, *(part.sums[name] for name in models))


def _role(task: str, rows: pd.DataFrame) -> str:
    """What a task stands for: as its rows say; one that is not of the core and does not say is a capability."""
    told = rows["role"].iloc[0] if "role" in rows and len(rows) else None
    return told if isinstance(told, str) else task if task in CORE else "capability"


def _scores(rows: pd.DataFrame) -> np.ndarray:
    right = rows.right.to_numpy(dtype=np.float64, na_value=np.nan)
    return rows.score.to_numpy(dtype=np.float64, na_value=np.nan) if "score" in rows else right


def _where(keep: pd.Series) -> np.ndarray:
    return keep.to_numpy(dtype=bool, na_value=False)
