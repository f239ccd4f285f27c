"""Which of a donor's modules to take over and how far: the frontier of capability against harm, beside chance."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic
import torch

from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.outcomes import Judge
from stages.anatomy.strengths import Mixture, mixing
from stages.anatomy.vocabulary import shared
from stages.command import run
from stages.errors import BadInput
from stages.items import PROMPT, TEXT, read_items
from stages.maths.statistics import Bootstrap, Draws, Estimate, draw, estimate, mean
from stages.recipes.weights import RATIO, dealt, point
from stages.search import STEP, Descent, Found, descend
from stages.settings import Settings, read
from stages.storage import new_directory, write_json

_BUDGET = 512  # padded tokens a pass that only reads


class Select(Settings):
    """What strengths are found with, what they are checked with, and which selections are shown."""

    steps: int = pydantic.Field(default=26, gt=1)
    """Of the descent, each a forward and a backward pass over its batch."""
    prompts: int = pydantic.Field(default=12, gt=0)
    """Answers a step, of the first half of the capability's items."""
    texts: int = pydantic.Field(default=6, gt=0)
    """Pieces of text a step, of two texts in three."""
    piece: int = pydantic.Field(default=24, gt=1)
    """Tokens predicted in a piece."""
    channels: int | None = pydantic.Field(default=64, gt=0)
    """Channels of a part with a strength of its own (a head where heads are as wide, or neurons); null: whole modules.
    """
    start: float = pydantic.Field(default=0.5, gt=0, le=1)
    """The strength of every part at first."""
    prices: tuple[float, float] = (1.0, 60.0)
    """Nats of the answers' cross-entropy that a nat of divergence counts as much as, at the first step and the last."""
    rate: float = pydantic.Field(default=0.06, gt=0)
    """How far a strength moves in a step, about."""
    points: int = pydantic.Field(default=5, gt=1)
    """Selections along the descent that are shown, with a strength for each part."""
    sizes: tuple[float, ...] = (0.4, 0.7)
    """Shares of the parts in the selections with one strength for all."""
    strength: float = pydantic.Field(default=0.8, gt=0, le=1)
    """That strength."""
    draws: int = pydantic.Field(default=1, gt=0)
    """Random selections beside each."""
    check_prompts: int = pydantic.Field(default=24, gt=1)
    """Answers of the other half that every selection is judged on."""
    check_texts: int = pydantic.Field(default=12, gt=1)
    """Pieces of the other texts."""
    resamples: int = pydantic.Field(default=2000, gt=0)
    seed: int = 0

    @pydantic.field_validator("prices")
    @classmethod
    def _rise(cls, prices: tuple[float, float]) -> tuple[float, float]:
        if not 0 < prices[0] <= prices[1]:
            raise ValueError("expected two prices above 0, the second not below the first")
        return prices


@dataclass(frozen=True)
class Selection:
    """Strengths to be judged."""

    method: str
    """`strengths`: each part's own; `subset`: some parts at one strength, those that the descent kept longest and
    strongest; `gain` and `gain over harm`: those that lead by the slopes at its beginning; `random strengths` and
    `random subset`: the same dealt out blindly; `all` parts at one strength; `target` and `donor`."""
    strengths: torch.Tensor
    """[parts]"""
    passes: int
    """Forward passes that finding it took, over a batch of a step's answers and texts."""
    seed: int | None = None
    """Of a random selection."""


def selections(settings: Select, found: Sequence[Found], sizes: torch.Tensor) -> Iterator[Selection]:
    """Everything that is judged, from the steps of one descent; `sizes` [parts] are the parts' parameters."""
    count, last = len(sizes), len(found) - 1
    whole = STEP * len(found)
    for number in range(1, settings.points + 1):
        step = round(last * number / settings.points)
        before = max(0, step - max(1, len(found) // 10))
        strengths = torch.stack([each.strengths for each in found[before : step + 1]]).mean(0)
        yield Selection("strengths", strengths, STEP * (step + 1))
        for seed in range(settings.draws):
            yield Selection("random strengths", dealt(strengths, sizes, f"{settings.seed} {number} {seed}"), 0, seed)
    early = found[: max(1, len(found) // 5)]
    gain, harm = (torch.stack([getattr(each, name) for each in early]).mean(0) for name in ("gain", "harm"))
    orders = {
        "subset": (torch.stack([each.strengths for each in found]).mean(0), whole),
        "gain": (gain, STEP * len(early)),
        "gain over harm": (gain / harm.clamp(min=1e-3 * float(harm.abs().max())), STEP * len(early)),
    }
    for share in settings.sizes:
        size = max(1, round(share * count))
        for method, (worth, passes) in orders.items():
            chosen = worth.argsort(descending=True, stable=True)[:size]
            strengths = torch.zeros(count).index_fill_(0, chosen, settings.strength)
            yield Selection(method, strengths, passes)
            for seed in range(settings.draws if method == "subset" else 0):
                yield Selection("random subset", dealt(strengths, sizes, f"{settings.seed} {size} {seed}"), 0, seed)
    for method, strength in (("target", 0.0), ("all", settings.strength), ("donor", 1.0)):
        yield Selection(method, torch.full((count,), strength), 0)


def judged(mixture: Mixture, judge: Judge, selection: Selection, draws: dict[str, Draws]) -> dict[str, Any]:
    """One row of the frontier."""
    mixture.set(selection.strengths)
    outcome, tokens = judge.outcome(mixture.model), judge.tokens.double().numpy()
    moved = outcome.divergence.numpy()
    figures = {
        "capability": mean(draws["prompts"], outcome.loglikelihood.numpy()),
        "match": mean(draws["prompts"], outcome.match.numpy(), span=(0.0, 1.0)),
        "divergence": estimate(draws["texts"], lambda drawn: (drawn @ moved) / (drawn @ tokens)),
    }
    plain = {
        "capability": outcome.loglikelihood.mean(),
        "match": outcome.match.mean(),
        "divergence": moved.sum() / tokens.sum(),
    }
    strengths = selection.strengths.double().round(decimals=6)
    row: dict[str, Any] = {
        "method": selection.method,
        "seed": selection.seed,
        "size": int((strengths > 0).sum()),
        "parameters": int(mixture.sizes[strengths > 0].sum()),
        "strength": float(strengths.sum() / max(1, int((strengths > 0).sum()))),
        "passes": selection.passes,
        "prompts": len(outcome.match),
        "texts": len(moved),
    }
    for name, figure in figures.items():
        low, high = (figure.low, figure.high) if isinstance(figure, Estimate) else (None, None)
        row |= {name: float(plain[name]), f"{name}_low": low, f"{name}_high": high}
    return row


def named(strengths: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """The parts that are taken over, to six decimals."""
    return {name: round(value, 6) for name, value in zip(names, strengths.tolist(), strict=True) if round(value, 6)}


def told(found: Found) -> dict[str, float]:
    """A step of the descent as a JSON object."""
    figures = {"price": found.price, "cross_entropy": found.cross_entropy, "divergence": found.divergence}
    return {name: round(value, 6) for name, value in figures.items()} | {"size": int((found.strengths > 0).sum())}


def pieces(ids: Sequence[Sequence[int]], length: int) -> list[Sequence[int]]:
    """Texts cut into pieces of `length` tokens after the first; shorter ends of fewer than a third of it are left."""
    cut = [each[start : start + length + 1] for each in ids for start in range(0, len(each), length)]
    return [piece for piece in cut if len(piece) > max(1, length // 3)]


def main(
    target: Path, donor: Path, capability: Path, text: Path, out: Path, params: Path = Path("params.yaml")
) -> None:
    """Select among a donor's modules, as params.yaml says under `select`.

    Strengths are found on the first half of the answers and two texts in three, and judged on others.
    """
    settings = read(params, "select", Select)
    tokenizer = load_tokenizer(target)
    if not shared(tokenizer, load_tokenizer(donor)):
        raise BadInput(
            f"Selecting modules needs a donor with the target's tokenizer, got another in {donor}; "
            "use a blade with a bridge instead."
        )
    rows, texts = read_items(capability, PROMPT), read_items(text, TEXT)
    encoded = encode(tokenizer, [(row["prompt"], row["answer"]) for row in rows])
    ids = tokenizer([row["text"] for row in texts], add_special_tokens=False).input_ids
    if len(encoded) < 4 or len(ids) < 3:
        raise BadInput(
            f"Expected at least 4 answers and 3 texts to select and to check with, got {len(encoded)} and {len(ids)}; "
            "ask for more under prompts."
        )
    half = len(encoded) // 2
    seen, unseen = ([each for i, each in enumerate(ids) if (i % 3 == 0) == held] for held in (False, True))
    check = pieces(unseen, settings.piece)
    random.Random(f"pieces {settings.seed}").shuffle(check)
    ours, theirs = load(target), load(donor)
    judge = Judge(
        ours,
        answers_of(encoded[half : half + settings.check_prompts], _BUDGET),
        texts_of(check[: settings.check_texts], _BUDGET),
    )
    how = Descent(settings.steps, settings.prompts, settings.texts, settings.start, settings.prices, settings.rate,
                  settings.seed)  # fmt: skip
    bootstrap = Bootstrap(settings.resamples, seed=settings.seed)
    checked = {"prompts": len(encoded[half : half + settings.check_prompts]), "texts": len(judge.tokens)}
    draws = {name: draw(range(count), bootstrap) for name, count in checked.items()}
    with mixing(ours, theirs, settings.channels) as mixture:
        if not mixture.names:
            raise BadInput(f"Expected a donor that differs from the target, got the same weights in {donor}.")
        found = descend(mixture, encoded[:half], pieces(seen, settings.piece), how)
        names, tried = mixture.names, list(selections(settings, found, mixture.sizes))
        frontier = [{"id": number} | judged(mixture, judge, each, draws) for number, each in enumerate(tried)]
    with new_directory(out) as directory:
        pd.DataFrame(frontier).astype({"seed": "Int64"}).to_parquet(directory / "frontier.parquet", index=False)
        write_json(directory / "strengths.json", [named(each.strengths, names) for each in tried])
        write_json(
            directory / "descent.json",
            {"channels": settings.channels, "parts": len(names), "steps": [told(each) for each in found]},
        )
    best = point(pd.DataFrame(frontier), RATIO)
    ratio = math.exp(best["divergence"])
    place = "best within" if ratio <= RATIO else "none within, so the least harmful beyond"
    print(
        f"{len(tried)} selections among {len(names)} parts; {place} a ratio of {RATIO}: {best['method']}, "
        f"{best['size']} parts, {best['match']:.0%} right, ratio {ratio:.3f}"
    )


if __name__ == "__main__":
    run(main)
