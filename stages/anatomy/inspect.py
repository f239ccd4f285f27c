"""`python -m stages.anatomy.inspect MODEL [OTHER]`: what a model is made of, and what two have in common."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import attention_of, blocks, mlp_of, mlp_output_of
from stages.anatomy.correspondence import ROLES, corresponding
from stages.anatomy.loading import load, load_config, load_tokenizer
from stages.anatomy.local import fits
from stages.anatomy.names import neurons_of
from stages.anatomy.sites import sites_of
from stages.anatomy.vocabulary import shared
from stages.errors import BadInput

_PARTS = ("embedding", "attention", "MLP", "norms and others in blocks", "outside the blocks", "head")


@dataclass(frozen=True)
class Part:
    """The parameters of one part of a model, over all blocks."""

    name: str
    tensors: dict[str, torch.Tensor]
    """By their names in the model; a tied weight stands in its first part alone."""

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """As they lie in memory."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def parts(model: PreTrainedModel) -> list[Part]:
    """A model's parameters by part, each counted once; parts without any are left out."""
    modules = {id(module): name for name, module in model.named_modules()}
    prefixes: list[tuple[str, str]] = []
    for block in blocks(model):
        for part, child in (("attention", attention_of(block)), ("MLP", mlp_of(block))):
            if child is not None:
                prefixes.append((f"{modules[id(child)]}.", part))
        if mlp_of(block) is None and (last := mlp_output_of(block)) is not None:
            matrices = [child for child in block.children() if isinstance(child, type(last))]
            prefixes += [(f"{modules[id(child)]}.", "MLP") for child in matrices]
        prefixes.append((f"{modules[id(block)]}.", "norms and others in blocks"))
    head = model.get_output_embeddings()
    prefixes.append((f"{modules[id(model.get_input_embeddings())]}.", "embedding"))
    prefixes += [(f"{modules[id(head)]}.", "head")] if head is not None else []
    found: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in model.named_parameters():
        part = next((part for prefix, part in prefixes if name.startswith(prefix)), "outside the blocks")
        found[part][name] = tensor
    return [Part(name, tensors) for name, tensors in found.items() if tensors]


def patterns(model: PreTrainedModel) -> dict[str, int]:
    """The sites as patterns, such as `layers.*.mlp`, with how many sites each means."""
    found: dict[str, int] = {}
    for site in sites_of(model):
        pattern = re.sub(r"\.\d+(:\d+)?", ".*", site)
        found[pattern] = found.get(pattern, 0) + 1
    return found


def described(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    """Facts about a model as (what, said) pairs, in the order in which they are printed."""
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    inner, total = blocks(model), sum(part.parameters for part in parts(model))
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    wide = next((group.stop for site in sites_of(model) if (group := neurons_of(site)) is not None), None)
    tied = head is not None and head.weight is embedding.weight
    special = [f"{role.removesuffix('_token_id')} {getattr(tokenizer, role)}" for role in ROLES]
    return [
        ("architecture", f"{type(model).__name__}, {len(inner)} × {type(inner[0]).__name__}"),
        ("parameters", f"{total:,}, {model.dtype}".replace("torch.", "")),
        ("width", f"{config.hidden_size}"),
        ("heads", "unknown" if heads is None else f"{heads} of queries, {groups} of keys and values"),
        ("MLP width", "several experts or none" if wide is None else f"{wide}"),
        ("vocabulary", f"{embedding.weight.shape[0]:,} embeddings, {'tied to' if tied else 'apart from'} the head"),
        ("positions", f"{getattr(config, 'max_position_embeddings', 'unlimited')}"),
        ("tokenizer", f"{type(tokenizer.backend_tokenizer.model).__name__} of {len(tokenizer):,} tokens"),
        ("special tokens", ", ".join(special)),
    ]


@dataclass(frozen=True)
class Difference:
    """How a part of one model stands to that of another."""

    name: str
    equal: int
    """Tensors of the same name, shape and values."""
    moved: int
    """Tensors of the same name and shape with other values."""
    unlike: int
    """Tensors that only one model has, or of another shape."""
    distance: float | None
    """‖other - model‖ / ‖model‖ over the tensors of like shape (Frobenius); None where there is none."""


def differences(model: PreTrainedModel, other: PreTrainedModel) -> list[Difference]:
    """Part by part, which tensors are equal and how far the others are apart."""
    ours, theirs = ({part.name: part.tensors for part in parts(each)} for each in (model, other))
    found = []
    for name in _PARTS:
        one, two = ours.get(name, {}), theirs.get(name, {})
        if not one and not two:
            continue
        like = [key for key in one if key in two and one[key].shape == two[key].shape]
        equal = sum(torch.equal(one[key], two[key]) for key in like)
        apart = sum((two[key].double() - one[key].double()).square().sum().item() for key in like)
        size = sum(one[key].double().square().sum().item() for key in like)
        distance = (apart / size) ** 0.5 if size else None
        found.append(Difference(name, equal, len(like) - equal, len(one.keys() | two.keys()) - len(like), distance))
    return found


def possible(model: PreTrainedModel, other: PreTrainedModel, same_tokens: bool) -> list[str]:
    """What can be moved from `other` into `model`, in sentences."""
    widths = [each.config.get_text_config().hidden_size for each in (model, other)]
    said = []
    if fits(model, other) and same_tokens:
        said.append("Weights can be copied block by block (transplant), and effects traced.")
    else:
        why = "the tokens differ" if fits(model, other) else "the blocks differ"
        said.append(f"Weights cannot be copied: {why}.")
    if widths[0] == widths[1]:
        said.append("A blade needs no bridge for the width; align tells whether one helps.")
    else:
        said.append(f"A blade needs a bridge from width {widths[1]} to {widths[0]}.")
    if not same_tokens:
        said.append("Tokens are matched by character offsets.")
    return said


def told(path: Path, other: Path | None = None) -> Iterator[str]:
    """The lines that are printed; BadInput for a directory that is no model."""
    model, tokenizer = _loaded(path)
    yield f"{path}"
    yield from _facts(model, tokenizer)
    if other is None:
        return
    guest, theirs = _loaded(other)
    yield f"\n{other}"
    yield from _facts(guest, theirs)
    yield "\ncompared"
    head = ("part", "equal", "moved", "unlike", "distance")
    rows = [
        (each.name, f"{each.equal}", f"{each.moved}", f"{each.unlike}",
         "–" if each.distance is None else f"{each.distance:.4f}")
        for each in differences(model, guest)
    ]  # fmt: skip
    yield from _table([head, *rows])
    same = shared(tokenizer, theirs)
    if same:
        yield "  tokenizers: the same"
    else:
        counts = ", ".join(f"{count:,} {how}" for how, count in corresponding(tokenizer, theirs).counts.items())
        yield f"  tokenizers: of {len(tokenizer):,} tokens, found in the other's {len(theirs):,}: {counts}"
    yield from (f"  {sentence}" for sentence in possible(model, guest, same))


def _loaded(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model as it is stored, and its tokenizer."""
    dtype = load_config(path).dtype
    return load(path, dtype if isinstance(dtype, torch.dtype) else torch.float32, "cpu"), load_tokenizer(path)


def _facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    yield from _table(described(model, tokenizer), left=2)
    yield from _table(
        [("part", "parameters", "MB")]
        + [(part.name, f"{part.parameters:,}", f"{part.bytes / 1e6:,.1f}") for part in parts(model)]
    )
    yield from _table([("sites", "count")] + [(pattern, f"{count}") for pattern, count in patterns(model).items()])


def _table(rows: list[tuple[str, ...]], left: int = 1) -> Iterator[str]:
    """Columns of equal width, the first `left` of them set on the left."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        padded = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in padded]
        yield f"  {'  '.join(cells)}".rstrip()


def main(arguments: list[str]) -> int:
    """Prints what one model is made of, or compares two; gives the exit code, 2 for bad input said in a sentence."""
    try:
        if not 1 <= len(arguments) <= 2 or any(each.startswith("-") for each in arguments):
            raise BadInput(
                f"Expected one or two model directories, got {' '.join(arguments) or 'none'}; "
                "try `python -m stages.anatomy.inspect data/models/target data/models/sibling`."
            )
        for line in told(*map(Path, arguments)):
            print(line)
    except BadInput as error:
        print(f"graftline: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
