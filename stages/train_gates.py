"""Gate and bridge of an injected variant, trained on kept states: only the blocks after the injection run."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import batches, encode, pad
from stages.anatomy.head import logits_at
from stages.anatomy.restart import resumed
from stages.command import run
from stages.items import PROMPT, TEXT, read_items
from stages.making import write_making
from stages.offline import start
from stages.recipes.blade import BladeRecipe, Parts, Training, parts
from stages.settings import read
from stages.storage import new_directory, write_json
from stages.training import Example, Learning, account, chosen, places, stacked, train


@dataclass(frozen=True)
class Kept(Example):
    """One text's states, without pads."""

    h: torch.Tensor
    """[tokens, width], leaving the target's block"""
    d: torch.Tensor
    """[tokens, donor width]"""
    known: torch.Tensor
    """[tokens], where the donor has read something"""


@torch.inference_mode()
def keep(parts: Parts, sequences: list[tuple[tuple[int, ...], int]], predictions: bool) -> list[Kept]:
    """Runs target and donor once over `sequences` of ids and start."""
    block = blocks(parts.target)[parts.layer]
    kept: dict[int, Kept] = {}
    left: list[torch.Tensor] = []
    handle = block.register_forward_hook(lambda m, a, out: left.append(out[0] if isinstance(out, tuple) else out))
    try:
        for group in batches([len(ids) for ids, _ in sequences], budget=512):
            ids = pad([sequences[i][0] for i in group], parts.target.device)
            left.clear()
            output = (parts.target if predictions else parts.target.base_model)(input_ids=ids, use_cache=False)
            (d,), known = parts.reading.donor.states(ids, torch.ones_like(ids), None)
            known = torch.ones_like(ids, dtype=torch.bool) if known is None else known
            for row, i in enumerate(group):
                tokens, start = sequences[i]
                n = len(tokens)
                final = output.logits[row, :n].log_softmax(-1).half() if predictions else None
                kept[i] = Kept(
                    tokens, start, final, left[0][row, :n].clone(), d[row, :n].clone(), known[row, :n].clone()
                )
    finally:
        handle.remove()
    return [kept[i] for i in range(len(sequences))]


def logits(
    parts: Parts, kept: list[Kept], training: Training | None = None, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The graft's logits [positions, vocabulary] where it predicts the tokens of `kept` that training looks at.

    With `training`, at as many of these positions as it says: its share of the hardest, whose states the injection
    moves the farthest for their length, and others drawn. Second, which these are, [positions], over all of `kept`.
    """
    ids = stacked([torch.tensor(k.ids, device=k.h.device) for k in kept])
    h, d, known = (stacked([getattr(k, name) for k in kept]) for name in ("h", "d", "known"))
    row, column = places(kept, h.device)
    changed = parts.injection(h, d, known)
    moved = ((changed.detach() - h).norm(dim=-1) / h.norm(dim=-1))[row, column]
    positions = chosen(moved, training, generator)
    with resumed(parts.target, parts.layer, changed):
        return logits_at(parts.target, ids, row[positions], column[positions]), positions


def learning(parts: Parts) -> Learning[Kept]:
    """The injection as what learns."""
    return Learning(parts.injection, functools.partial(logits, parts))


def begun(parts: Parts, kept: list[Kept], seed: int) -> dict[str, float | None]:
    """Starts the bridge from a fit to the kept states; gives how good the fit is on some that were held out.

    The first token of a text is left out, since its state is a sink of attention. The gate begins nearly shut: a
    fitted bridge moves the states far from the first step on, and the divergence would close the gate for good.
    """
    parts.injection.gate.shut()
    return start(parts.injection.bridge, [(k.d[1:][k.known[1:]], k.h[1:][k.known[1:]]) for k in kept], seed)


def main(variant: str, target: Path, donor: Path, capability: Path, text: Path, out: Path,
         params: Path = Path("params.yaml"), section: str = "inject", making: Path | None = None) -> None:  # fmt: skip
    """Train the gate and the bridge of the variant that params.yaml describes under `section`."""
    recipe = read(params, f"{section}.{variant}", BladeRecipe)
    curve, learned, figures = [], {}, {}
    made = parts(recipe, target, donor) if recipe.training is not None or making is not None else None
    if made is not None and recipe.training is not None:
        rows = read_items(capability, PROMPT, recipe.training.prompts)
        asked = [(e.ids, e.start) for e in encode(made.tokenizer, [(row["prompt"], row["answer"]) for row in rows])]
        told = [(tuple(made.tokenizer(row["text"]).input_ids), 1) for row in read_items(text, TEXT)]
        items, texts = keep(made, asked, predictions=False), keep(made, told, predictions=True)
        if recipe.start == "fitted":
            figures = begun(made, [*items, *texts], recipe.training.seed)
        curve = train(learning(made), recipe.training, items, texts)
        learned = {n: v.to(torch.bfloat16).contiguous().cpu() for n, v in made.injection.state_dict().items()}
    with new_directory(out) as directory:
        save_file(learned, directory / "gate.safetensors")
        write_json(directory / "training.json", {"curve": curve, "recipe": recipe.model_dump()})
    if made is not None and making is not None:
        moved, added = (sum(p.numel() for p in each.parameters()) for each in (made.reading.donor, made.injection))
        ended, lines = account(curve)
        write_making(making, section, [recipe.donor], recipe, moved, moved + added, figures | ended, lines)


if __name__ == "__main__":
    run(main)
