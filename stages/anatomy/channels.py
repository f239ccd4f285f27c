"""Which channels of which parameters a component is: of a matrix, a head, neurons, an expert, a whole part or block."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.anatomy.blocks import attention_of, blocks, mlp_output_of
from stages.anatomy.modules import weighted_paths
from stages.anatomy.names import kind_of, layer_of, matching, neurons_of
from stages.anatomy.places import Channels
from stages.anatomy.projections import Slot, outputs, projections
from stages.anatomy.sites import sites_of
from stages.errors import BadInput


@dataclass(frozen=True)
class Piece:
    """A parameter by its own dotted name, or some of its channels along one axis."""

    parameter: str
    axis: int = 0
    index: tuple[int, ...] | None = None
    """None for the whole."""


Components = Mapping[str, tuple[Piece, ...]]


def components(model: PreTrainedModel) -> dict[str, tuple[Piece, ...]]:
    """Every component inside the blocks by its site.

    `layers.3`, `layers.3.self_attn`, `layers.3.mlp` and each module in them are all their parameters, norms included.
    `layers.3.self_attn.heads.5` is the head's rows of W_Q (and b_Q) and its columns of W_O, and where no other head
    shares them its rows of W_K and W_V; `layers.3.self_attn.groups.1` is all heads that share a key and value with
    these. `layers.3.mlp.experts.2` is an expert; what the router sends it is the target's choice. Heads are known where
    W_Q, W_K and W_V are three matrices or one of Phi-3's, GPT-2's, or GPT-NeoX's, BLOOM's and Falcon's form; what heads
    share stays: a writer's bias, norms of queries and keys; where such a norm runs over all heads, as OLMo 2's, none is
    independent of the others. Neurons are named with their range, see `chosen`.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: dict[str, list[Piece]] = {}
    for site, path in weighted_paths(model).items():
        whole = [Piece(f"{path}.{name}") for name, _ in model.get_submodule(path).named_parameters(recurse=False)]
        parts = site.split(".")
        for length in range(2, len(parts) + 1):
            found.setdefault(".".join(parts[:length]), []).extend(whole)
    places = {site: place for site, place in sites_of(model).items() if isinstance(place, Channels)}
    for index, block in enumerate(blocks(model)):
        attention = attention_of(block)
        heads = [place for site, place in places.items() if site.startswith(f"layers.{index}.self_attn.heads.")]
        if attention is not None and heads:
            found |= {f"layers.{index}.self_attn.{name}": piece for name, piece in _heads(attention, heads, names)}
        mlp = mlp_output_of(block)
        if mlp is not None and f"layers.{index}.mlp" not in found:  # the block holds its matrices itself, as OPT's
            found[f"layers.{index}.mlp"] = [
                piece for module in _matrices(block, mlp) for piece in found[_site(found, names[id(module)])]
            ]
        experts = getattr(mlp, "experts", None)
        for number in range(getattr(experts, "num_experts", 0) if isinstance(experts, nn.Module) else 0):
            found[f"layers.{index}.mlp.experts.{number}"] = [
                Piece(f"{names[id(experts)]}.{name}", 0, (number,)) for name, _ in experts.named_parameters()
            ]
    return {site: tuple(pieces) for site, pieces in found.items()}


def chosen(model: PreTrainedModel, patterns: Iterable[str]) -> dict[str, tuple[Piece, ...]]:
    """The components that patterns such as `layers.*.self_attn.heads.0` mean, in the model's order.

    `layers.*.mlp.neurons.0:64` are a range of neurons: their rows of the matrices that read the residual stream and
    their columns of the one that writes to it. Where all heads of a group are named, their key and value come along.
    Raises BadInput for a pattern that means nothing.
    """
    known = components(model)
    plain = [pattern for pattern in patterns if ".neurons." not in pattern]
    for pattern in set(patterns) - set(plain):
        part, _, span = pattern.partition(".neurons.")
        for site in matching([part], known):
            known[f"{site}.neurons.{span}"] = _neurons(model, f"{site}.neurons.{span}")
            plain.append(f"{site}.neurons.{span}")
    found = {site: known[site] for site in matching(plain, known)}
    for site in [site for site in known if re.fullmatch(r".*\.groups\.\d+", site)]:
        stem, number = site.rsplit(".groups.", 1)
        count = sum(name.startswith(f"{stem}.groups.") for name in known)
        heads = [name for name in known if name.startswith(f"{stem}.heads.")]
        own = heads[int(number) * len(heads) // count : (int(number) + 1) * len(heads) // count]
        if len(own) > 1 and set(own) <= found.keys() and site not in found:
            found |= dict.fromkeys(own[:1], found[own[0]] + known[site])
    return found


def alike(model: PreTrainedModel, sites: Iterable[str]) -> dict[str, list[str]]:
    """For each form such as `layers.*.self_attn.heads.*` of `sites`, the model's components of that form."""
    return {form: list(chosen(model, [form])) for form in sorted({_form(site) for site in sites})}


def _form(site: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", site)


def _heads(attention: nn.Module, places: list[Channels], names: Mapping[int, str]) -> Iterator[tuple[str, list[Piece]]]:
    """The pieces of each head, then of each group of heads; nothing for projections of an unknown form."""
    count, width = len(places), places[0].channels.stop
    heads = projections(attention, count, width)
    if not heads:
        return
    share = count // len({each["k"][1] for each in heads})

    def at(slot: Slot) -> list[Piece]:
        module, number = slot
        return _channels(module, names, range(number * width, (number + 1) * width), entering=False)

    def shared(group: int) -> list[Piece]:
        return [piece for letter in "kv" for piece in at(heads[group * share][letter])]

    own = [
        at(heads[head]["q"])
        + _channels(place.module, names, range(place.channels.start, place.channels.stop), entering=True)
        for head, place in enumerate(places)
    ]
    for head, pieces in enumerate(own):
        yield f"heads.{head}", pieces + (shared(head) if share == 1 else [])
    for group in range(count // share):
        members = own[group * share : (group + 1) * share]
        yield f"groups.{group}", [piece for member in members for piece in member] + shared(group)


def _neurons(model: PreTrainedModel, site: str) -> tuple[Piece, ...]:
    """The pieces of a range of an MLP's neurons. Raises BadInput where there are none such."""
    span, names = neurons_of(site), {id(module): name for name, module in model.named_modules()}
    layer = layer_of(site)
    whole = sites_of(model)
    place = next((whole[name] for name in whole if name.startswith(f"layers.{layer}.mlp.neurons.")), None)
    if layer is None or kind_of(site) != "neurons" or not isinstance(place, Channels) or span is None:
        raise BadInput(f"Expected neurons of a plain MLP such as layers.3.mlp.neurons.0:64, got {site!r}; correct it.")
    count = place.channels.stop
    if not 0 <= span.start < span.stop <= count:
        raise BadInput(f"Expected neurons from 0 to {count}, got {site!r}; correct the range.")
    block = blocks(model)[layer]
    last = mlp_output_of(block)
    assert last is not None
    found = list(_channels(place.module, names, range(span.start, span.stop), entering=True))
    for module in _matrices(block, last):
        if module is not place.module:
            rows = [start + i for start in range(0, outputs(module), count) for i in range(span.start, span.stop)]
            found += _channels(module, names, rows, entering=False)
    return tuple(found)


def _matrices(block: nn.Module, mlp: nn.Module) -> list[nn.Module]:
    """The linear modules of an MLP, or of a block that holds them itself, its attention's left out."""
    if not isinstance(mlp, nn.Linear | Conv1D):
        return [module for module in mlp.modules() if isinstance(module, nn.Linear | Conv1D)]
    return [module for module in block.children() if isinstance(module, nn.Linear | Conv1D)]


def _site(found: Mapping[str, list[Piece]], path: str) -> str:
    """The site whose pieces are a module's, by its own name."""
    return next(
        site for site, pieces in found.items() if pieces[0].parameter.rpartition(".")[0] == path and site.count(".") > 1
    )


def _channels(module: nn.Module, names: Mapping[int, str], index: Iterable[int], entering: bool) -> list[Piece]:
    """Channels of a matrix's input, or of its output with their biases."""
    path, index = names[id(module)], tuple(index)
    found = [Piece(f"{path}.weight", int(isinstance(module, Conv1D) != entering), index)]
    if not entering and isinstance(getattr(module, "bias", None), torch.Tensor):
        found.append(Piece(f"{path}.bias", 0, index))
    return found
