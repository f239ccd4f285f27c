"""An adapter's changes carried into a model of another width, by maps between both models' states of the same texts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.blocks import blocks
from stages.anatomy.modules import linear_paths
from stages.anatomy.names import layer_of
from stages.errors import BadInput
from stages.maths.agreement import agreement
from stages.maths.lowrank import LowRank
from stages.maths.moments import Moments
from stages.maths.offsets import donor_rows
from stages.maths.regression import ridge

_HELD_OUT = 5
"""Every fifth text is for judging."""
States = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""A linear module's own name → what enters it and what leaves it, [tokens, width]."""


@dataclass(frozen=True)
class Carried:
    """Changes of the target's modules, and how well the maps that brought them there fit."""

    changes: Mapping[str, LowRank]
    into: Mapping[str, float]
    """R² on texts held out of the donor's input as estimated from the target's, by the target's module."""
    out: Mapping[str, float]
    """R² of the target's output as estimated from the donor's."""


def counterparts(target: PreTrainedModel, donor: PreTrainedModel, changed: set[str]) -> dict[str, str]:
    """The target's own name → the donor's, of each of the target's modules that takes over a change.

    Modules of one name correspond, in the block at the nearest depth: block i of N is at i / (N − 1).
    Raises BadInput where a change has no counterpart, as between families that cut their matrices differently.
    """
    ours, theirs = linear_paths(target), linear_paths(donor)
    counts = len(blocks(target)), len(blocks(donor))
    scale = (counts[1] - 1) / max(1, counts[0] - 1)
    found = {}
    for name, path in ours.items():
        layer = layer_of(name)
        assert layer is not None
        other = theirs.get(f"layers.{int(layer * scale + 0.5)}.{_part(name)}")
        if other in changed:
            found[path] = other
    wanted = {_part(name) for name, path in theirs.items() if path in changed}
    if missing := wanted - set(map(_part, ours)) or changed - set(theirs.values()):
        raise BadInput(
            f"Expected the target to have the modules that the adapter changes, got no {min(missing)}; carry adapters "
            "between models that cut their blocks into the same matrices, or inject a blade."
        )
    return found


def _part(name: str) -> str:
    """What a module is called in its block."""
    return name.split(".", 2)[2]


@torch.no_grad()
def carried(
    changes: Mapping[str, LowRank],
    target: PreTrainedModel,
    donor: PreTrainedModel,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    texts: Sequence[str],
    strength: float,
) -> Carried:
    """ΔW′ = M ΔW N of each of the target's modules, from the donor's ΔW.

    N [donor in, target in] estimates what enters the donor's module from what enters the target's, M [target out,
    donor out] what leaves the target's from what leaves the donor's: ridge regressions on the tokens of `texts` that
    end at the same character, first tokens left out. N is the regression itself and not the pseudo-inverse of one the
    other way, which amplifies what it does not know. Constant terms are lost, since an adapter has no bias, and so is
    what a change writes in directions that its module's outputs never take without it.
    Fails where the two models compute different things at corresponding places, as the R² on texts held out tells, and
    nothing makes the next module read what this one has changed as the donor's next would.
    Raises BadInput as `counterparts` does and for fewer than two texts.
    """
    pairs = counterparts(target, donor, set(changes))
    if len(texts) < 2:
        raise BadInput(f"Expected two texts or more to fit and to judge bridges on, got {len(texts)}; give more.")
    fits = {path: (Moments(), Moments()) for path in pairs}
    held: dict[str, tuple[list, list]] = {path: ([], []) for path in pairs}
    for number, text in enumerate(texts):
        ours, theirs = _states(target, donor, tokenizers, text, pairs)
        for path, other in pairs.items():
            rows = (theirs[other][0], ours[path][0])[::-1], (theirs[other][1], ours[path][1])
            for side in (0, 1):
                if number % _HELD_OUT == _HELD_OUT - 1 or number == len(texts) - 1:
                    held[path][side].append(rows[side])
                else:
                    fits[path][side].add(*rows[side])
    made: dict[str, LowRank] = {}
    quality: tuple[dict[str, float], dict[str, float]] = {}, {}
    for path, other in pairs.items():
        maps = [ridge(each, strength).to(torch.float32) for each in fits[path]]
        for side in (0, 1):
            quality[side][path] = agreement({"": maps[side]}, held[path][side])[""].r2
        change = changes[other]
        made[path] = LowRank(maps[1].weight.T @ change.up, change.down @ maps[0].weight.T)
    return Carried(made, *quality)


def _states(
    target: PreTrainedModel,
    donor: PreTrainedModel,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    text: str,
    pairs: Mapping[str, str],
) -> tuple[States, States]:
    """Both models' states of one text, at the target's tokens and the donor's that end with them."""
    read = [each(text, add_special_tokens=False, return_offsets_mapping=True) for each in tokenizers]
    starts = [torch.tensor([0, len(each.input_ids)]) for each in read]
    rows = donor_rows(torch.tensor(read[0].offset_mapping), starts[0], torch.tensor(read[1].offset_mapping), starts[1])
    index = (rows > 0).nonzero()[:, 0]
    index = index[index > 0]
    ours = _passing(target, read[0].input_ids, list(pairs), index)
    return ours, _passing(donor, read[1].input_ids, sorted(set(pairs.values())), rows[index])


def _passing(model: PreTrainedModel, ids: list[int], paths: list[str], rows: torch.Tensor) -> States:
    """What passes through modules at some tokens of one text."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(path: str, entering: torch.Tensor, leaving: torch.Tensor) -> None:
        flat = [each.reshape(len(ids), -1)[rows].float() for each in (entering, leaving)]  # OPT's see no batches
        found[path] = flat[0], flat[1]

    def hook_for(path: str) -> Callable[..., None]:
        return lambda _module, inputs, output: keep(path, inputs[0], output)

    with ExitStack() as stack:
        for path in paths:
            stack.callback(model.get_submodule(path).register_forward_hook(hook_for(path)).remove)
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return found


def summary(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Mean and least of some figures."""
    told = [value for value in values.values() if value == value]
    if told:
        yield "mean", sum(told) / len(told)
        yield "least", min(told)
