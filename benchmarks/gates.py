"""Training a gate on kept states, against the same training through the whole model.

    OMP_NUM_THREADS=2 python -m benchmarks.gates --target data/models/target --donor data/models/sibling \\
        --capability data/prompts/capability/train.jsonl --text data/prompts/retention/train.jsonl

A token gate at N-4, trained as in the default experiment; the same prompts, texts, positions and steps in one run.
The peer keeps nothing: each step runs the target and the donor over the batch, and the target once more without the
graft, whose distribution is the reference on texts. What keeping costs once is told beside it. The claims are steps at
least 5 times as fast, and the same gate.
"""

import time
from pathlib import Path

import torch

from stages.anatomy.blocks import blocks, path_of
from stages.anatomy.encoding import pad
from stages.anatomy.head import logits_at, logits_of
from stages.blades import keep, learning
from stages.command import run
from stages.graft.call import Call
from stages.kept import asked, told
from stages.recipes.blade import BladeRecipe, Parts, Training, parts
from stages.training import Learning, chosen, places, train


def through_the_whole(made: Parts) -> Learning:
    """The same injection, trained with nothing kept, at the positions that the other way looks at too."""
    path = path_of(made.target, blocks(made.target))
    donors = torch.nn.ModuleList(each.donor for each in made.readings)
    (part,) = made.parts

    def predict(examples, training: Training | None = None, generator: torch.Generator | None = None):
        ids = pad([e.ids for e in examples], made.target.device)
        row, column = places(examples, ids.device)
        moved: list[torch.Tensor] = []

        def change(call: Call, h: torch.Tensor) -> torch.Tensor:
            changed = part.change(call, h)
            moved.append(((changed.detach() - h).norm(dim=-1) / h.norm(dim=-1))[row, column])
            return changed

        with Call(made.target, path, donors, ids, torch.ones_like(ids), None) as call:
            call.after(call.block(part.layer), lambda h: change(call, h))
            states = made.target.base_model(input_ids=ids, use_cache=False).last_hidden_state
        positions = chosen(moved[0], training, generator)
        if training is not None:  # a pass that every step needs where no reference is kept
            with torch.no_grad():
                logits_at(made.target, ids, row[positions], column[positions])
        return logits_of(made.target, states[row[positions], column[positions]]), positions

    return Learning(made.parts, predict)


def main(target: Path, donor: Path, capability: Path,
         text: Path, steps: int = 6) -> None:  # fmt: skip
    """Print seconds a step of both, their ratio, and how far apart the learned gates are."""
    settings = {"steps": steps, "prompts": 48, "batch": 16, "texts": 2, "positions": 64, "hardest": 0.5,
                "learning_rate": 0.01, "divergence": 0.75}  # fmt: skip
    blade = {"donor": donor.name, "layer": "n-4", "donor_layer": "n-4", "gate": "token", "training": settings}
    recipe = BladeRecipe.model_validate(blade)
    assert recipe.training is not None
    made = parts(recipe, target, donor)
    prompts, texts = asked(made.tokenizer, capability, 48), told(made.tokenizer, text)[:16]
    begin = time.perf_counter()
    items, kept = keep(made, prompts, predictions=False), keep(made, texts, predictions=True)
    keeping = time.perf_counter() - begin
    fresh = {name: value.clone() for name, value in made.parts.state_dict().items()}
    seconds, gates = {}, {}
    for name, way in (("kept", learning(made)), ("whole", through_the_whole(made))):
        made.parts.load_state_dict(fresh)
        train(way, recipe.training.model_copy(update={"steps": 1}), items, kept)  # warms up
        made.parts.load_state_dict(fresh)
        begin = time.perf_counter()
        train(way, recipe.training, items, kept)
        seconds[name] = (time.perf_counter() - begin) / steps
        gates[name] = torch.cat([p.detach().flatten() for p in made.parts.parameters()])
    apart = (gates["kept"] - gates["whole"]).norm() / gates["whole"].norm()
    print(f"kept states: {seconds['kept']:.3f} s a step, after {keeping:.2f} s to keep {len(prompts)} prompts and "
          f"{len(texts)} texts; whole model: {seconds['whole']:.3f} s a step")  # fmt: skip
    print(f"whole / kept {seconds['whole'] / seconds['kept']:.2f}; gates apart by {apart:.2e} of their length")


if __name__ == "__main__":
    run(main)
