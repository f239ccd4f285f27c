"""A mixture whose routers prefer the experts of one domain, as a graft, and what that does at each strength."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.routing import Routed, experts_of, raised, routed, routers_of, share
from stages.assembly import write_graft
from stages.command import run
from stages.graft.router import RouterBias
from stages.making import Curve, curve, write_making
from stages.maths.statistics import Bootstrap, Draws, Estimate, Undefined, draw, estimate, ratio
from stages.recipes.router import Effect, Questions, RouterRecipe, chosen, effects, questions
from stages.settings import read
from stages.storage import write_json


def selectivity(recipe: RouterRecipe, taken: torch.Tensor, effect: Effect, pools: tuple[Questions, Questions]):
    """A token's mass on the experts in `taken` in `toward` over that in `away`, a mean over layers."""
    inside, outside = (share(each, taken).numpy() for each in (effect.inside, effect.outside))
    own, other = (each.tokens.numpy() for each in (effect.inside, effect.outside))
    n = len(inside)
    draws = draw([*pools[0].clusters, *pools[1].clusters], Bootstrap(recipe.resamples, seed=recipe.seed))

    def quotient(weights: np.ndarray) -> np.ndarray:
        first, second = weights[:, :n], weights[:, n:]
        with np.errstate(divide="ignore", invalid="ignore"):
            return ((first @ inside) / (first @ own)) / ((second @ outside) / (second @ other))

    return estimate(draws, quotient)


def preferences(recipe: RouterRecipe, taken: torch.Tensor, pools: Mapping[str, tuple[Routed, Draws]]) -> list[dict]:
    """For each expert of each mixture, in order, its mean mass in each domain with its interval."""
    layers, experts = next(iter(pools.values()))[0].mass.shape[1:]
    return [
        {"layer": layer, "expert": expert, "chosen": expert in taken[layer]}
        | {name: _told(ratio(draws, each.mass[:, layer, expert], each.tokens)) for name, (each, draws) in pools.items()}
        for layer in range(layers)
        for expert in range(experts)
    ]


def _apart(one: dict[str, float] | None, other: dict[str, float] | None) -> bool:
    """Whether two intervals share nothing."""
    return one is not None and other is not None and (one["low"] > other["high"] or other["low"] > one["high"])


def _told(figure: Estimate | Undefined) -> dict[str, float | int] | None:
    return figure.rounded() if isinstance(figure, Estimate) else None


def _three(name: str, figure: Estimate | Undefined) -> dict[str, float | None]:
    known = isinstance(figure, Estimate)
    return {
        name: figure.value if known else None,
        f"{name}_low": figure.low if known else None,
        f"{name}_high": figure.high if known else None,
    }


def curves(recipe: RouterRecipe, taken: torch.Tensor, found: Mapping[float, Effect], usual: Mapping[str, Routed]):
    """What the page draws: by strength masses, their quotient, harm and right answers; by expert the usual mass."""
    toward, away = recipe.toward, recipe.away
    masses = {
        strength: [float(share(each, taken).sum() / each.tokens.sum()) for each in (effect.inside, effect.outside)]
        for strength, effect in found.items()
    }
    lines: dict[str, tuple[str, Mapping[float, float]]] = {
        "Selectivity": (f"mass in {toward} / mass in {away}", {s: a / b for s, (a, b) in masses.items() if b}),
        f"Routing mass on the chosen experts, {toward}": ("share", {s: a for s, (a, _) in masses.items()}),
        f"Routing mass on the chosen experts, {away}": ("share", {s: b for s, (_, b) in masses.items()}),
        f"Divergence from the unbiased model, {away}": ("nats a token", {s: _harm(e) for s, e in found.items()}),
        f"Right answers, {toward}": ("share", {s: float(e.right_inside.float().mean()) for s, e in found.items()}),
        f"Right answers, {away}": ("share", {s: float(e.right_outside.float().mean()) for s, e in found.items()}),
    }
    told: dict[str, Curve] = {
        title: curve("strength", y, sorted(points.items())) for title, (y, points) in lines.items()
    }
    for name, each in usual.items():
        points = list(enumerate(each.mean().flatten().tolist()))
        told[f"Routing mass of each expert, {name}"] = curve("expert, from the first mixture on", "share", points)
    return told


def _harm(effect: Effect) -> float:
    """Mean divergence a token; an item counts by its tokens after the first."""
    tokens = effect.outside.tokens.numpy() - 1
    return float(np.average(effect.divergence, weights=tokens))


def main(variant: str, target: Path, out: Path, making: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `route`."""
    recipe = read(params, f"route.{variant}", RouterRecipe)
    model, tokenizer = load(target), load_tokenizer(target)
    routers, count = routers_of(model), experts_of(model)
    names = (recipe.toward, recipe.away)
    known = {name: questions(tokenizer, name, "calibration", recipe.calibration) for name in names}
    usual = {name: routed(model, each.whole) for name, each in known.items()}
    taken = chosen(recipe, usual[recipe.toward], usual[recipe.away])
    asked = (questions(tokenizer, names[0], "test", recipe.test), questions(tokenizer, names[1], "test", recipe.test))
    found = effects(model, taken, [*recipe.strengths, recipe.strength], *asked)

    bootstrap = Bootstrap(recipe.resamples, seed=recipe.seed)
    table = preferences(recipe, taken, {n: (usual[n], draw(known[n].clusters, bootstrap)) for n in names})
    at, unbiased = found[recipe.strength], found[0.0]
    outside = draw(asked[1].clusters, bootstrap)
    told = at.outside.tokens.numpy() - 1
    figures = {
        **_three("selectivity", selectivity(recipe, taken, at, asked)),
        **_three("selectivity_unbiased", selectivity(recipe, taken, unbiased, asked)),
        **_three("divergence_away", ratio(outside, np.array(at.divergence) * told, told)),
        "right_toward": float(at.right_inside.float().mean()),
        "right_away": float(at.right_outside.float().mean()),
        "right_toward_unbiased": float(unbiased.right_inside.float().mean()),
        "right_away_unbiased": float(unbiased.right_outside.float().mean()),
        "experts": count * len(routers),
        "experts_that_differ": sum(_apart(*(row[name] for name in names)) for row in table),
        "items": recipe.test,
    }
    write_making(making, "route", [], recipe, 0, count * len(routers), figures, curves(recipe, taken, found, usual))
    part = RouterBias(list(routers.values()), count)
    part.bias.copy_(raised(taken, count, recipe.strength))
    spec = {"kind": "router", "routers": part.routers, "experts": count}
    write_graft(model, tokenizer, [], [(part, spec)], out)
    write_json(out / "routing.json", table)


if __name__ == "__main__":
    run(main)
