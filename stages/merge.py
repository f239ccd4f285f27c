"""A graft merged from whole models of one architecture, tensor by tensor, with the target as the base.

The formulas are ours, held to PEFT's functions by tests: they are few lines each, and so a merge needs no more memory
than one tensor of each model, knows every architecture whose files agree, and gives the same bytes again. mergekit
0.1.5 fits today's dependencies (it asks for transformers 5, pydantic from 2.10 and PEFT from 0.18, and brings
immutables, protobuf and sentencepiece), so it is an optional extra for its further methods, run as a program and not
imported since its licence is the LGPL: `pip install 'graftline[mergekit]'`.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from stages.anatomy.geometry import check_geometry
from stages.anatomy.loading import load_config, load_tokenizer
from stages.anatomy.vocabulary import shared
from stages.anatomy.weights import Weights, rounded, write_model
from stages.command import run
from stages.errors import BadInput
from stages.making import write_making
from stages.maths.merging import conflicts
from stages.moves import Moves
from stages.recipes.merge import MergeRecipe, merged
from stages.settings import read
from stages.storage import new_directory


@dataclass
class Merged:
    """What a merge did."""

    moves: Moves = field(default_factory=Moves)
    disputed: int = 0
    """Entries that two donors would move in opposite directions."""
    along: float = 0.0
    """⟨graft − target, Σ wᵢ τᵢ⟩"""
    wanted: float = 0.0
    """‖Σ wᵢ τᵢ‖²"""

    @property
    def figures(self) -> dict[str, float | None]:
        """The move's length, its cosine with the weighted sum of the task vectors, and how often donors disagree."""
        both = self.moves.length * self.wanted**0.5
        cosine = self.along / both if both else None
        return self.moves.figures | {"cosine_to_task_vectors": cosine, "disputed_entries": self.disputed}


def check_alike(target: Path, donors: Mapping[str, Path]) -> tuple[Weights, list[Weights]]:
    """The weights of target and donors; BadInput unless all have the same tensors, tokens and architecture."""
    ours, tokenizer, config = Weights(target), load_tokenizer(target), load_config(target)
    found = []
    for name, path in donors.items():
        theirs = Weights(path)
        remedy = "merge models that are built and saved alike, or use a blade with a bridge"
        check_geometry(config, load_config(path), name)
        if differing := sorted(set(ours) ^ set(theirs)):
            raise BadInput(
                f"Expected donor {name!r} to have the target's {len(ours)} tensors, got {differing[0]} in one of both "
                f"alone; {remedy}."
            )
        for tensor in ours:
            shapes = ours.shapes[tensor], theirs.shapes[tensor]
            if shapes[0] != shapes[1]:
                raise BadInput(
                    f"Expected {tensor} of donor {name!r} to have the target's shape {list(shapes[0])}, got "
                    f"{list(shapes[1])}; {remedy}."
                )
        if not shared(tokenizer, load_tokenizer(path)):
            raise BadInput(
                f"Expected donor {name!r} to have the target's tokenizer, got another, so that rows of its embeddings "
                "mean other tokens; transplant modules or use a blade with a bridge."
            )
        found.append(theirs)
    return ours, found


def merge(recipe: MergeRecipe, target: Path, donors: Mapping[str, Path], out: Path) -> Merged:
    """Writes the graft `out`; `donors` are the recipe's, in its order.

    Norms and embeddings are merged as all else is; a tied head has no tensor of its own and stays tied. Computes in
    float32 and rounds once to bfloat16. Raises BadInput before any work where models are not alike.
    """
    ours, theirs = check_alike(target, donors)
    weights, told = torch.tensor(list(recipe.donors.values())), Merged()

    def tensors(made: Mapping[str, torch.Tensor] | None) -> Iterator[tuple[str, torch.Tensor]]:
        for name, before in ours.items():
            after = before
            if before.is_floating_point():
                base, stack = before.float(), torch.stack([each[name].float() for each in theirs])
                after = rounded(merged(recipe, name, base, stack) if made is None else made[name])
                vectors = stack - base
                wanted = torch.tensordot(weights, vectors, dims=1).double()
                told.along += float(((after.float() - base) * wanted).sum())
                told.wanted += float(wanted.square().sum())
                told.disputed += int(conflicts(vectors))
            told.moves.note(name, before, after)
            yield name, after

    with new_directory(out) as directory, tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        made = None if recipe.mergekit is None else run_mergekit(recipe.mergekit, recipe, target, donors, Path(scratch))
        write_model(directory, target, tensors(made))
    return told


def run_mergekit(
    configuration: Mapping[str, Any], recipe: MergeRecipe, target: Path, donors: Mapping[str, Path], scratch: Path
) -> Weights:
    """What the program mergekit-yaml makes of its own `configuration` for these models, in `scratch`.

    Raises BadInput where it is not installed or fails.
    """
    program = shutil.which("mergekit-yaml")
    if program is None:
        raise BadInput(
            "Expected the program mergekit-yaml for method: mergekit, got none on the PATH; run "
            "`pip install 'graftline[mergekit]'` or name another method."
        )
    models = [
        {"model": str(path.resolve()), "parameters": {"weight": recipe.donors[name]}} for name, path in donors.items()
    ]
    plain = {"base_model": str(target.resolve()), "models": models, "dtype": "float32", "out_dtype": "bfloat16"}
    (scratch / "merge.yaml").write_text(yaml.safe_dump(plain | dict(configuration)))
    ended = subprocess.run(
        [program, scratch / "merge.yaml", scratch / "made", "--quiet", "--random-seed", str(recipe.seed)],
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadInput(f"mergekit-yaml refused the configuration ({last}); correct the variant's mergekit section.")
    made = Weights(scratch / "made")
    if not Weights(target).shapes.items() <= made.shapes.items():
        raise BadInput(
            "Expected mergekit to keep the target's tensors and their shapes, got others; leave slices and tokenizers "
            "out of the variant's mergekit section."
        )
    return made


def main(variant: str, target: Path, models: Path, out: Path, making: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `merge`, from donors under `models`."""
    recipe = read(params, f"merge.{variant}", MergeRecipe)
    told = merge(recipe, target, {name: models / name for name in recipe.donors}, out)
    write_making(making, "merge", list(recipe.donors), recipe, told.moves.moved, 0, told.figures, told.moves.curves)
    print(f"{recipe.method} of {', '.join(recipe.donors)}: {told.moves.moved:,} parameters moved")


if __name__ == "__main__":
    run(main)
