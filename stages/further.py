"""A mixture of experts that we trained, trained further on one capability: its experts learn, all else stays.

As in expert-specialised fine-tuning (arXiv 2407.01906), so that what was learnt lies in the experts and can be moved.
"""

from pathlib import Path
from typing import Literal

import torch

from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.routing import routers_of
from stages.command import run
from stages.settings import read
from stages.specialize import Single, card, examine, record, rounded, train
from stages.storage import new_directory, write_json


class Further(Single):
    """A donor's section under `further`."""

    recipe: Literal["further"]
    start: str
    """The mixture that it starts from, among the donors."""


def further(recipe: Further, start: Path, name: str, out: Path) -> dict[str, float | int]:
    """Trains the mixture at `start` and writes it as `specialize` does; gives its scores on what it was trained on.

    Raises BadInput when the model at `start` has no experts.
    """
    torch.manual_seed(recipe.seed)
    model, tokenizer = load(start), load_tokenizer(start)
    routers_of(model)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(".experts." in parameter_name)
    if model.device.type == "cuda":
        model.set_experts_implementation("all")
    losses = train(model, tokenizer, recipe)
    parameters = rounded(model)
    scores = examine(model, tokenizer, [recipe.capability])
    with new_directory(out) as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch, safe_serialization=True)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card(name, recipe, [recipe.capability], parameters, losses, scores))
        write_json(scratch / "training.json", record(recipe, losses, scores))
    return scores


def main(donor: str, start: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Train the donor that params.yaml describes under `further`, from the one at `start`."""
    scores = further(read(params, f"further.{donor}", Further), start, donor, out)
    print(", ".join(f"{key} {value:.4g}" for key, value in scores.items()))


if __name__ == "__main__":
    run(main)
