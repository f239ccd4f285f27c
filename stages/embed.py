"""The target's embeddings from a donor's, token by token, and new tokens with what the donor knows of them."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.additions import add_tokens, lacking
from stages.anatomy.correspondence import HOW, corresponding
from stages.anatomy.embeddings import Fitted, fit, spelled, tables_of
from stages.anatomy.loading import load, load_tokenizer
from stages.command import run
from stages.making import write_making
from stages.recipes.embeddings import EmbeddingsRecipe
from stages.saving import save
from stages.settings import read
from stages.storage import new_directory


@torch.no_grad()
def embed(
    recipe: EmbeddingsRecipe,
    target: PreTrainedModel,
    donor: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    donor_tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float | None]:
    """Moves the target's embeddings and adds tokens to `tokenizer`, both in place; gives the figures.

    A token's donor vector is that of the token of the same bytes, or the mean of those that spell it, brought over by
    the bridge. Special tokens, and those that the donor cannot spell, stay as they are; a new token that the donor
    cannot spell is the mean of its pieces (WECHSEL, arXiv 2112.06598, and FOCUS, arXiv 2305.14481, weigh neighbours
    instead). Fails where the two embedding spaces are not alike up to the bridge, as the agreement on tokens held out
    tells. Raises BadInput before anything is changed.
    """
    ours, theirs = (tables_of(each, recipe.tables) for each in (target, donor))
    theirs = {name: theirs.get(name, next(iter(theirs.values()))).float().cpu() for name in ours}
    new = lacking(tokenizer, donor_tokenizer, recipe.most) if recipe.add == "donor" else list(recipe.add)
    pieces = tokenizer(new, add_special_tokens=False).input_ids if new else []
    before = corresponding(tokenizer, donor_tokenizer)
    exact = (before.how == HOW.index("exact")).nonzero()[:, 0]
    given = before.ids.long()[before.starts[exact].long()]
    fits = {
        name: fit(table[exact].float().cpu(), theirs[name][given], recipe.bridge, recipe.ridge, recipe.held_out,
                  recipe.seed)
        for name, table in ours.items()
    }  # fmt: skip
    if new:
        ids = add_tokens(tokenizer, new)
        if ids[-1] >= len(target.get_input_embeddings().get_parameter("weight")):
            target.resize_token_embeddings(ids[-1] + 1, mean_resizing=False)
        ours = tables_of(target, recipe.tables)
        for table in tables_of(target, ("input", "output")).values():
            for token, parts in zip(ids, pieces, strict=True):
                table[token] = table[parts].float().mean(0)
    found = corresponding(tokenizer, donor_tokenizer)
    changed = torch.isin(found.how, torch.tensor([HOW.index(way) for way in recipe.ways], dtype=torch.uint8))
    changed[len(found.how) - len(new) :] = found.how[len(found.how) - len(new) :] > HOW.index("role")
    index = changed.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(recipe.seed)
    figures: dict[str, float | None] = {}
    for name, table in ours.items():
        vectors = fits[name].bridge(spelled(found, theirs[name])[index])
        old = table[index].float().cpu()
        figures |= _told(name, fits[name], vectors, old)
        if recipe.vectors == "random":
            drawn = torch.randn(vectors.shape, generator=generator)
            vectors = drawn * (vectors.norm(dim=1) / drawn.norm(dim=1))[:, None]
        table[index] = (old + recipe.strength * (vectors - old)).to(table)
    counts = {f"tokens_{way}": count for way, count in before.counts.items()}
    of_new = found.how[len(found.how) - len(new) :]
    added = {"tokens_added": len(new), "added_from_pieces": int((of_new <= HOW.index("role")).sum())}
    return figures | counts | added | {"tokens_moved": len(index), "tables": len(ours)}


def _told(name: str, fitted: Fitted, vectors: torch.Tensor, old: torch.Tensor) -> dict[str, float | None]:
    ratio = float(vectors.norm(dim=1).mean() / old.norm(dim=1).mean()) if len(old) else None
    return {
        f"{name}_cosine": fitted.agreement.cosine, f"{name}_r2": fitted.agreement.r2, f"{name}_norm_ratio": ratio,
        "rows_fit": fitted.rows[0], "rows_held_out": fitted.rows[1],
    }  # fmt: skip


def main(variant: str, target: Path, donor: Path, out: Path, making: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `embed`."""
    recipe = read(params, f"embed.{variant}", EmbeddingsRecipe)
    tokenizer, receiving = load_tokenizer(target), load(target, device="cpu")
    before = receiving.num_parameters()
    figures = embed(recipe, receiving, load(donor, device="cpu"), tokenizer, load_tokenizer(donor))
    width = receiving.get_input_embeddings().get_parameter("weight").shape[1]
    moved = int(figures["tokens_moved"] or 0) * int(figures["tables"] or 0) * width
    added = int(receiving.num_parameters()) - before
    with new_directory(out) as directory:
        save(receiving, tokenizer, directory)
    write_making(making, "embed", [recipe.donor], recipe, moved, added, figures)
    print(f"{figures['tokens_moved']} tokens moved, {figures['tokens_added']} of them new; held-out cosine "
          f"{figures.get('input_cosine', figures.get('output_cosine')):.3f}")  # fmt: skip


if __name__ == "__main__":
    run(main)
