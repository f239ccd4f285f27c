"""A graft made of weights alone: the target's directory, with the donor's weights mixed into the chosen modules."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.channels import Piece, alike
from stages.anatomy.channels import chosen as named
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.geometry import check_geometry
from stages.anatomy.loading import load, load_config, load_tokenizer
from stages.anatomy.outcomes import Judge
from stages.anatomy.strengths import Mixture
from stages.anatomy.transplanting import relative_change, transplanted
from stages.command import run
from stages.items import PROMPT, TEXT, read_items
from stages.making import Curve, curve, write_making
from stages.moves import Moves
from stages.recipes.weights import Sweep, WeightsRecipe, chosen, redrawn
from stages.saving import save
from stages.settings import read
from stages.storage import new_directory, read_json, write_json
from stages.tables import read_table

_BUDGET = 1024  # padded tokens a pass
Figures = dict[str, float | None]


def judge_of(
    sweep: Sweep, target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, capability: Path, text: Path
) -> Judge:
    """What a sweep is judged by: answers, and beginnings of texts."""
    rows, texts = read_items(capability, PROMPT, sweep.prompts), read_items(text, TEXT, sweep.texts)
    ids = tokenizer([row["text"] for row in texts], add_special_tokens=False).input_ids
    encoded = encode(tokenizer, [(row["prompt"], row["answer"]) for row in rows])
    kept = [each[: sweep.tokens + 1] for each in ids if len(each) > 1]
    return Judge(target, answers_of(encoded, _BUDGET), texts_of(kept, _BUDGET))


def swept(
    sweep: Sweep, target: PreTrainedModel, donor: PreTrainedModel, sites: Mapping[str, tuple[Piece, ...]], judge: Judge
) -> tuple[Figures, dict[str, Curve]]:
    """Exact match and KL(target ‖ graft) over the number of components, a curve for each strength, and the n behind."""
    order = sorted(sites, key=lambda site: -relative_change(target, donor, sites[site]))
    tokens = int(judge.tokens.sum())
    curves: dict[str, Curve] = {}
    for strength in sweep.strengths:
        right, harm = [], []
        for count in sorted({max(1, round(share * len(order))) for share in sweep.shares}):
            pieces = [piece for site in order[:count] for piece in sites[site]]
            with transplanted(target, donor, pieces, strength):
                outcome = judge.outcome(target)
            right.append((count, float(outcome.match.mean())))
            harm.append((count, float(outcome.divergence.sum()) / tokens))
        curves[f"answers right at strength {strength:g}"] = curve("components", "exact match", right)
        curves[f"divergence at strength {strength:g}"] = curve("components", "KL(target ‖ graft), nats a token", harm)
    answers = len({int(item) for batch in judge.answers for item in batch.item})
    return {"sweep_prompts": answers, "sweep_tokens": tokens}, curves


def of_frontier(frontier: pd.DataFrame, row: Mapping[str, Any]) -> tuple[Figures, dict[str, Curve]]:
    """What the selection found at the point that is taken, and every selection that it tried by its size."""
    kept = ("size", "strength", "capability", "match", "divergence", "prompts", "texts")
    figures: Figures = {f"selection_{key}": float(row[key]) for key in kept}
    curves = {}
    for method, rows in frontier.sort_values("size", kind="stable").groupby("method"):
        for column, label in (("match", "exact match"), ("divergence", "KL(target ‖ graft), nats a token")):
            points = list(zip(rows["size"].astype(float), rows[column].astype(float), strict=True))
            curves[f"{column} by {method}"] = curve("parts", label, points)
    return figures, curves


def write_graft(
    out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, told: Mapping[str, Any],
    starts: Iterable[tuple[torch.nn.Parameter, torch.Tensor]],
) -> Moves:  # fmt: skip
    """The model directory, `told` in transplant.json, and how far its parameters are from `starts`."""
    moves, before = Moves(), {id(parameter): start for parameter, start in starts}
    for name, parameter in model.named_parameters():
        start = before.get(id(parameter), parameter)
        moves.note(name, start.to(torch.bfloat16), parameter.to(torch.bfloat16))
    with new_directory(out) as directory:
        save(model, tokenizer, directory)
        write_json(directory / "transplant.json", told)
    return moves


def main(
    variant: str, target: Path, donor: Path, selection: Path, out: Path, making: Path, capability: Path, text: Path,
    params: Path = Path("params.yaml"), section: str = "transplant",
) -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `transplant`, or in another section like it.

    Linear modules, heads, neurons, norms and experts inside the blocks can be taken over; embeddings, the last norm and
    the head stay the target's. Sweeps are judged on items of `capability` and `text`.
    """
    recipe = read(params, f"{section}.{variant}", WeightsRecipe)
    check_geometry(load_config(target), load_config(donor), recipe.donor)
    receiving, giving, tokenizer = load(target, device="cpu"), load(donor, device="cpu"), load_tokenizer(target)
    told: dict[str, Any] = {"donor": recipe.donor}
    figures: Figures
    if recipe.select == "modules":
        assert recipe.strength is not None
        sites = named(receiving, recipe.modules)
        if recipe.drawn:
            sites = named(receiving, redrawn(sites, alike(receiving, sites), recipe.seed))
        figures, curves = {}, {}
        if recipe.sweep is not None:
            judge = judge_of(recipe.sweep, receiving, tokenizer, capability, text)
            figures, curves = swept(recipe.sweep, receiving, giving, sites, judge)
        told |= {"strengths": dict.fromkeys(sites, recipe.strength), "point": {}}
        pieces = [piece for some in sites.values() for piece in some]
        with transplanted(receiving, giving, pieces, recipe.strength) as starts:
            moves = write_graft(out, receiving, tokenizer, told,
                                ((receiving.get_parameter(name), start) for name, start in starts.items()))  # fmt: skip
    else:
        mixture = Mixture(receiving, giving, read_json(selection / "descent.json")["channels"])
        sizes = dict(zip(mixture.names, mixture.sizes.tolist(), strict=True))
        frontier = read_table(selection / "frontier.parquet")
        taken, row = chosen(recipe, sizes, frontier, read_json(selection / "strengths.json"))
        mixture.set(torch.tensor([taken.get(name, 0.0) for name in mixture.names]))
        told |= {"strengths": taken, "point": row}
        moves = write_graft(out, receiving, tokenizer, told, mixture.starts)
        figures, curves = of_frontier(frontier, row)
    strengths = told["strengths"]
    figures |= moves.figures | {"components": len(strengths)}
    figures["mean_strength"] = sum(strengths.values()) / max(1, len(strengths))
    write_making(making, "transplant", [recipe.donor], recipe, moves.moved, 0, figures, {**moves.curves, **curves})
    print(f"{len(strengths)} components at a mean strength of {figures['mean_strength']:.2f}; {moves.moved:,} moved")


if __name__ == "__main__":
    run(main)
