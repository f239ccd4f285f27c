"""Gates and bridges of an injected variant, trained on kept states: only the blocks after the injection run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks, path_of
from stages.anatomy.encoding import batches, encode, pad
from stages.anatomy.head import logits_at
from stages.anatomy.restart import resumed
from stages.command import run
from stages.graft.call import Call
from stages.items import PROMPT, TEXT, read_items
from stages.recipes.blade import BladeRecipe, Parts, Training, changing, parts
from stages.settings import read
from stages.storage import new_directory, write_json


@dataclass(frozen=True)
class Kept:
    """One text's states, without pads."""

    ids: tuple[int, ...]
    start: int
    """The first token that is predicted in training: an answer's, or a text's second."""
    h: torch.Tensor
    """[tokens, width], leaving the first of the target's blocks that are changed"""
    d: tuple[tuple[torch.Tensor, ...], ...]
    """[tokens, donor width], by donor and by block that is taken"""
    known: tuple[torch.Tensor, ...]
    """[tokens] by donor, where it has read something"""
    final: torch.Tensor | None
    """[tokens, vocabulary], the target's log-probabilities in half precision, as there are many; for texts"""
    early: torch.Tensor | None
    """[tokens, width], leaving the block that a condition reads"""


class KeptCall(Call):
    """A pass in which parts find kept states instead of running donors."""

    def __init__(self, target: PreTrainedModel, kept: Sequence[Kept]):
        ids = stacked([torch.tensor(k.ids, device=k.h.device) for k in kept])
        path = path_of(target, blocks(target))
        super().__init__(target, path, torch.nn.ModuleList(), ids, torch.ones_like(ids), None)
        self.kept = kept

    def states(self, donor: int, taken: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        return stacked([k.d[donor][taken] for k in self.kept]), stacked([k.known[donor] for k in self.kept])


def first(parts: Parts) -> int:
    """The first of the target's blocks that parts change."""
    return min(part.layer for part in changing(parts.parts))


@torch.inference_mode()
def keep(parts: Parts, sequences: Sequence[tuple[tuple[int, ...], int]], predictions: bool) -> list[Kept]:
    """Runs target and donors once over `sequences` of ids and start."""
    kept: dict[int, Kept] = {}
    early = next((spec["layer"] for spec in parts.specs if spec["kind"] == "condition"), None)
    left: dict[int, torch.Tensor] = {}

    def leave(layer: int):
        return lambda _, args, out: left.__setitem__(layer, out[0] if isinstance(out, tuple) else out)

    places = [first(parts)] if early is None else [first(parts), early]
    handles = [blocks(parts.target)[layer].register_forward_hook(leave(layer)) for layer in places]
    try:
        for group in batches([len(ids) for ids, _ in sequences], budget=512):
            ids = pad([sequences[i][0] for i in group], parts.target.device)
            output = (parts.target if predictions else parts.target.base_model)(input_ids=ids, use_cache=False)
            read = [each.donor.states(ids, torch.ones_like(ids), None) for each in parts.readings]
            known = [torch.ones_like(ids, dtype=torch.bool) if where is None else where for _, where in read]
            for row, i in enumerate(group):
                tokens, start = sequences[i]
                n = len(tokens)
                d = tuple(tuple(each[row, :n].clone() for each in states) for states, _ in read)
                final = output.logits[row, :n].log_softmax(-1).half() if predictions else None
                where = tuple(each[row, :n].clone() for each in known)
                h = [left[layer][row, :n].clone() for layer in places]
                kept[i] = Kept(tokens, start, h[0], d, where, final, None if early is None else h[1])
    finally:
        for handle in handles:
            handle.remove()
    return [kept[i] for i in range(len(sequences))]


def stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Ragged tensors as one batch, padded on the right with zeros."""
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def logits(
    parts: Parts, kept: list[Kept], training: Training | None = None, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The graft's logits [positions, vocabulary] where it predicts the tokens of `kept` that training looks at.

    With `training`, at as many of these positions as it says: its share of the hardest, whose states the parts at the
    first layer move the farthest for their length, and others drawn. Second, which these are, [positions], over all of
    `kept`. Parts at later layers take hold while the blocks after the first one run.
    """
    h, begin = stacked([k.h for k in kept]), first(parts)
    places = [(row, column) for row, k in enumerate(kept) for column in range(k.start - 1, len(k.ids) - 1)]
    row, column = torch.tensor(places, device=h.device).T
    with KeptCall(parts.target, kept) as call:
        changed = h
        for part in changing(parts.parts):
            if part.layer == begin:
                changed = part.change(call, changed)
            else:
                part.attach(call)
        chosen = torch.arange(len(places), device=h.device)
        if training is not None and training.positions < len(places):
            moved = ((changed.detach() - h).norm(dim=-1) / h.norm(dim=-1))[row, column]
            order = moved.argsort(descending=True)
            hardest = round(training.hardest * training.positions)
            most, others = order[:hardest], order[hardest:]
            drawn = torch.randperm(len(others), generator=generator)[: training.positions - hardest]
            chosen = torch.cat([most, others[drawn.to(h.device)]])
        with resumed(parts.target, begin, changed):
            return logits_at(parts.target, call.input_ids, row[chosen], column[chosen]), chosen


def train(parts: Parts, recipe: Training, items: list[Kept], texts: list[Kept]) -> list[dict[str, Any]]:
    """Trains the parts in place by Adam; gives the loss curve.

    Loss: cross-entropy of the answers' tokens + divergence · KL(target ‖ graft) at `positions` tokens of the texts, in
    nats a token; a text is drawn as often as it is long. Answers and texts pass apart, since texts are several times
    as long and would pad the answers.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    learned = [parameter for part in changing(parts.parts) for parameter in part.parameters()]
    optimizer = torch.optim.Adam(learned, lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1, cycle_momentum=False
    )
    lengths = torch.tensor([float(len(k.ids)) for k in texts])
    curve = []
    for step in range(recipe.steps):
        asked = [items[i] for i in torch.randint(len(items), (recipe.batch,), generator=generator).tolist()]
        told = [texts[i] for i in torch.multinomial(lengths, recipe.texts, True, generator=generator).tolist()]
        wanted = torch.tensor([i for k in asked for i in k.ids[k.start :]], device=asked[0].h.device)
        right = cross_entropy(logits(parts, asked)[0], wanted)
        reference = torch.cat([k.final[k.start - 1 : -1] for k in told if k.final is not None])
        told_now, chosen = logits(parts, told, recipe, generator)
        moved = kl_div(told_now.log_softmax(-1), reference[chosen].to(told_now), log_target=True, reduction="batchmean")
        optimizer.zero_grad(set_to_none=True)
        (right + recipe.divergence * moved).backward()
        optimizer.step()
        schedule.step()
        curve.append({"step": step, "cross_entropy": round(right.item(), 5), "kl": round(moved.item(), 5)})
        if step % 10 == 0 or step == recipe.steps - 1:
            print(f"step {step} of {recipe.steps}: cross-entropy {right:.4f}, KL {moved:.4f}", flush=True)
    return curve


def main(variant: str, target: Path, donor: Path, capability: Path, text: Path, out: Path,
         params: Path = Path("params.yaml"), section: str = "inject") -> None:  # fmt: skip
    """Train the gates and bridges of the variant that params.yaml describes under `section`."""
    recipe = read(params, f"{section}.{variant}", BladeRecipe)
    curve, learned = [], {}
    if recipe.training is not None:
        made = parts(recipe, target, donor)
        rows = read_items(capability, PROMPT, recipe.training.prompts)
        asked = [(e.ids, e.start) for e in encode(made.tokenizer, [(row["prompt"], row["answer"]) for row in rows])]
        told = [(tuple(made.tokenizer(row["text"]).input_ids), 1) for row in read_items(text, TEXT)]
        curve = train(made, recipe.training, keep(made, asked, predictions=False), keep(made, told, predictions=True))
        learned = {n: v.to(torch.bfloat16).contiguous().cpu() for n, v in made.parts.state_dict().items()}
    with new_directory(out) as directory:
        save_file(learned, directory / "gate.safetensors")
        write_json(directory / "training.json", {"curve": curve, "recipe": recipe.model_dump()})


if __name__ == "__main__":
    run(main)
