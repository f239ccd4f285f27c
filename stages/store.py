"""A graft without its donor: what the donor's states differ by, or features of the target's own, stored and added."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from stages.anatomy.loading import load_config
from stages.assembly import write_graft
from stages.blades import first, keep, learning, logits
from stages.command import run
from stages.errors import BadInput
from stages.graft.stored import Features, Stored, Vector
from stages.kept import asked, told
from stages.making import Curve, curve, write_making
from stages.maths.autoencoder import Autoencoder, autoencoder
from stages.maths.massive import massive
from stages.published import published_autoencoder, published_vector
from stages.recipes.blade import BladeRecipe, Parts, parts
from stages.recipes.stored import StoredRecipe, chosen, direction, scaling
from stages.settings import read
from stages.training import Kept, train


@dataclass(frozen=True)
class States:
    """What target and donor computed on the items that a blade is made from, and judged by."""

    asked: list[Kept]
    """Training prompts with their answers"""
    told: list[Kept]
    """Texts"""
    judged: list[Kept]
    """Calibration prompts with their answers"""

    def answers(self, of: Callable[[Kept], torch.Tensor]) -> torch.Tensor:
        """[rows, width], the states where the training answers' tokens are predicted: `own` or `given`."""
        return torch.cat([of(k)[k.start - 1 : -1] for k in self.asked])

    def usual(self) -> torch.Tensor:
        """[rows, width], the target's states on text."""
        return ordinary([k.h for k in self.told])


def own(kept: Kept) -> torch.Tensor:
    """[tokens, width], the target's states."""
    return kept.h


def given(kept: Kept) -> torch.Tensor:
    """[tokens, width], the donor's."""
    return kept.read[0][0]


def ordinary(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """[rows, width], all of the ragged `states` but massive ones, which decide every mean and fit and tell nothing."""
    rows = torch.cat(list(states))
    return rows[~massive(rows)]


def states(recipe: StoredRecipe, made: Parts, capability: Path, calibration: Path, text: Path) -> States:
    """Runs both models once over the items."""
    prompts = asked(made.tokenizer, capability, recipe.prompts), asked(made.tokenizer, calibration, recipe.calibration)
    texts = keep(made, told(made.tokenizer, text), predictions=True)
    return States(keep(made, prompts[0], predictions=False), texts, keep(made, prompts[1], predictions=False))


@torch.no_grad()
def vector(recipe: StoredRecipe, seen: States, file: Path | None) -> tuple[Vector, dict[str, float]]:
    """The stored direction, and how long it is and how alike the differences are that it is the mean of."""
    h = seen.answers(own)
    difference = seen.answers(given) - h
    mean = difference.mean(0)
    if file is not None:
        difference = published_vector(file, h.shape[1]).to(h)[None]
    made = direction(difference, torch.Generator().manual_seed(recipe.seed) if recipe.random else None)
    return made, {
        "rows": len(h),
        "length_to_states": float(made.vector.norm() / h.norm(dim=1).mean()),
        "cosine_to_mean_difference": float(cosine_similarity(made.vector, mean, dim=0)),
        "mean_cosine_of_differences": float(cosine_similarity(seen.answers(given) - h, mean, dim=1).mean()),
    }


def features(recipe: StoredRecipe, seen: States, file: Path | None) -> tuple[Features, dict[str, float]]:
    """The part that scales the chosen features, and how well their dictionary describes states it was not fitted to.

    A dictionary that is fitted here is fitted to both models' states on the prompts and the target's on the texts.
    """
    wanted = recipe.dictionary
    assert wanted is not None
    rows = torch.cat([ordinary([k.h for k in seen.asked]), ordinary([given(k) for k in seen.asked]), seen.usual()])
    if file is None:
        found: Autoencoder = autoencoder(
            rows, wanted.features, wanted.active, wanted.steps, wanted.learning_rate, recipe.seed
        )
    else:
        found = published_autoencoder(file, rows.shape[1], wanted.centred)
    with torch.no_grad():
        working, usual = found.features(seen.answers(given)), found.features(seen.usual())
        generator = torch.Generator().manual_seed(recipe.seed) if recipe.random else None
        picked = chosen(working, usual, wanted.chosen, generator)
        working_own = found.features(seen.answers(own))
        unseen = ordinary([k.h for k in seen.judged])
        return scaling(found, picked, float(rows.norm(dim=1).max())), {
            "rows": len(rows),
            "explained_of_unseen_states": found.explained(unseen),
            "active_features": float((found.features(unseen) > 0).sum(1).float().mean()),
            "chosen_in_donor": float(working[:, picked].mean()),
            "chosen_in_target": float(working_own[:, picked].mean()),
            "chosen_in_text": float(usual[:, picked].mean()),
        }


@torch.inference_mode()
def answered(made: Parts, items: Sequence[Kept]) -> float:
    """Cross-entropy of the items' answers, nats a token."""
    wanted = torch.tensor([i for k in items for i in k.ids[k.start :]], device=items[0].h.device)
    return float(cross_entropy(logits(made, list(items))[0], wanted))


@torch.inference_mode()
def moved(made: Parts, texts: Sequence[Kept]) -> float:
    """KL(target ‖ graft) on the texts, nats a token."""
    total, positions = 0.0, 0
    for k in texts:
        assert k.final is not None
        told_now = logits(made, [k])[0].log_softmax(-1)
        reference = k.final[k.start - 1 : -1].to(told_now)
        total += float(kl_div(told_now, reference, log_target=True, reduction="sum"))
        positions += len(told_now)
    return total / positions


def fit(
    recipe: StoredRecipe, made: Parts, seen: States, file: Path | None
) -> tuple[Stored, dict[str, Any], dict[str, float], dict[str, Curve]]:
    """The part, what the graft's configuration says of it, and the figures and curves of its making.

    Each strength is judged, and the best kept; a gate that learns is trained at the one strength given.
    """
    source, figures = (vector if recipe.source == "vector" else features)(recipe, seen, file)
    width, count = made.target.config.hidden_size, len(getattr(source, "encoder", ()))
    spec = {"source": recipe.source, "gate": recipe.gate, "width": width, "count": count, "layer": first(made)}
    curves: dict[str, Curve] = {}
    torch.manual_seed(recipe.seed)
    part = Stored(alpha=0.0, **spec).to(made.target.device)
    part.source = source
    tried = dataclasses.replace(made, parts=torch.nn.ModuleList([part]), specs=({"kind": "stored", **spec},))
    figures["cross_entropy_before"] = answered(tried, seen.judged)
    if recipe.training is not None:
        part.alpha = recipe.alphas[0]
        learned = train(learning(tried), recipe.training, seen.asked[: recipe.training.prompts], seen.told)
        for name, label in (("cross_entropy", "cross-entropy of answers"), ("kl", "KL to the target on text")):
            points = [(float(row["step"]), row[name]) for row in learned]
            curves[f"gate in training, {label}"] = curve("step", "nats a token", points)
    found: dict[float, tuple[float, float]] = {}
    for alpha in recipe.alphas:
        part.alpha = alpha
        found[alpha] = answered(tried, seen.judged), moved(tried, seen.told)
        print(f"alpha {alpha:g}: cross-entropy {found[alpha][0]:.4f}, KL {found[alpha][1]:.4f}", flush=True)
    part.alpha = min(found, key=lambda alpha: found[alpha][0] + recipe.divergence * found[alpha][1])
    for place, label in enumerate(("cross-entropy of calibration answers", "KL to the target on text")):
        points = [(alpha, found[alpha][place]) for alpha in sorted(found)]
        curves[f"strength, {label}"] = curve("alpha", "nats a token", points)
    figures |= {"alpha": part.alpha, "cross_entropy": found[part.alpha][0], "kl": found[part.alpha][1]}
    return part, {"kind": "stored", "alpha": part.alpha, **spec}, figures, curves


def main(
    variant: str, target: Path, donor: Path, capability: Path, calibration: Path, text: Path, published: Path,
    out: Path, making: Path, params: Path = Path("params.yaml"),
) -> None:  # fmt: skip
    """Build the graft of the variant that params.yaml describes under `store`."""
    recipe = read(params, f"store.{variant}", StoredRecipe)
    widths = [getattr(load_config(each), "hidden_size", None) for each in (donor, target)]
    if widths[0] != widths[1]:
        raise BadInput(
            f"Donor {recipe.donor!r} has width {widths[0]} and the target {widths[1]}; expected equal widths, since "
            "states are compared; use a blade with bridge: linear under inject."
        )
    file = None if recipe.file is None else published / recipe.file
    reader = {"donor": recipe.donor, "layer": recipe.layer, "donor_layer": recipe.donor_layer, "gate": "identity"}
    made = parts(BladeRecipe.model_validate(reader), target, donor)
    seen = states(recipe, made, capability, calibration, text)
    part, spec, figures, curves = fit(recipe, made, seen, file)
    added = sum(value.numel() for value in part.state_dict().values())
    receiving, tokenizer = made.target, made.tokenizer
    del made, seen  # the donor need not be held while the graft is written
    write_graft(receiving, tokenizer, [], [(part, spec)], out)
    write_making(making, "store", [recipe.donor], recipe, 0, added, figures, curves)


if __name__ == "__main__":
    run(main)
