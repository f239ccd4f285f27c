"""The weights of each part of a model under one name: views into its parameters, whatever matrices hold them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.anatomy.blocks import attention_of, blocks, mlp_of, stack
from stages.anatomy.names import kind_of
from stages.anatomy.places import Channels, Expert, Router
from stages.anatomy.projections import projections
from stages.anatomy.sites import sites_of

Index = tuple[slice | int, ...]


@dataclass(frozen=True)
class Piece:
    """Some rows or columns of one parameter, or all of it."""

    parameter: nn.Parameter
    index: Index = ()

    @property
    def view(self) -> torch.Tensor:
        """Shares the parameter's memory."""
        return self.parameter.data[self.index] if self.index else self.parameter.data


Component = dict[str, Piece]
"""A part's pieces, by their names in it."""


def component_kind(site: str) -> str:
    """What a component is: `embed`, `block`, `attention`, `head`, `mlp`, `router`, `expert`, `norm`, `lm_head`, or
    `other`, as learned positions are."""
    kind = kind_of(site)
    if kind == "block" and site.count(".") > 1:
        return "norm"
    return kind if "." in site or kind in ("embed", "norm", "lm_head") else "other"


def components(model: PreTrainedModel) -> dict[str, Component]:
    """Every component of `model`, by its site.

    `layers.I` is a whole block, `layers.I.self_attn` and `layers.I.mlp` its parts, `layers.I.NAME` what else it holds
    by the model's own name, norms as a rule; so is what stands beside the blocks, GPT-2's `wpe` say.
    `layers.I.self_attn.heads.J` is query head J: its rows of the query, key and value matrices with their biases and
    its columns of the output matrix, cut out of fused ones. Under grouped queries several heads share their key and
    value rows, and what is put there reaches them all. Norms of queries and keys and the output's bias belong to the
    attention. `layers.I.mlp.experts.J` is a slice of the stack of experts. A head tied to the embeddings is no
    component of its own, and models whose attention holds other matrices have no heads here.
    """
    places, table = sites_of(model), model.get_input_embeddings()
    found: dict[str, Component] = {"embed": _whole(table)}
    for layer, block in enumerate(blocks(model)):
        site = f"layers.{layer}"
        found[site] = _whole(block)
        found |= {f"{site}.{name}": part for name, part in _parts(block)}
        inside = {name: place for name, place in places.items() if name.startswith(f"{site}.")}
        count = sum(component_kind(name) == "head" for name in inside)
        for name, place in inside.items():
            if isinstance(place, Expert):
                stacked = place.module.named_parameters()
                found[name] = {each: Piece(p, (place.index,)) for each, p in stacked}
            elif isinstance(place, Router):
                found[name] = _whole(place.module)
            elif isinstance(place, Channels) and component_kind(name) == "head":
                found[name] = dict(_head(attention_of(block), place, count))
    found = {site: pieces for site, pieces in found.items() if pieces}
    final, head = (getattr(places.get(name), "module", None) for name in ("norm", "lm_head"))
    apart = {id(each) for each in (table, blocks(model), final)}
    beside = {name: _whole(child) for name, child in stack(model).named_children() if id(child) not in apart}
    found |= {name: whole for name, whole in beside.items() if whole}
    if final is not None:
        found["norm"] = _whole(final)
    if head is not None and head.get_parameter("weight") is not table.get_parameter("weight"):
        found["lm_head"] = _whole(head)
    return found


def _parts(block: nn.Module) -> Iterator[tuple[str, Component]]:
    """What a block holds: `self_attn`, `mlp`, and the rest by their own names."""
    attention, mlp = attention_of(block), mlp_of(block)
    loose: Component = {}
    for name, child in block.named_children():
        if mlp is None and isinstance(child, nn.Linear):  # the block holds its MLP's matrices itself
            loose |= {f"{name}.{each}": piece for each, piece in _whole(child).items()}
        elif whole := _whole(child):
            yield "self_attn" if child is attention else "mlp" if child is mlp else name, whole
    if loose:
        yield "mlp", loose


def sharing(model: PreTrainedModel, heads: set[str]) -> int:
    """Heads, not among the sites `heads`, that read keys and values of one that is."""
    found, keys = components(model), {}
    for site, pieces in found.items():
        if component_kind(site) == "head":
            piece = pieces["v"]
            keys[site] = (id(piece.parameter), str(piece.index))
    touched = {keys[site] for site in heads}
    return sum(key in touched and site not in heads for site, key in keys.items())


def _whole(module: nn.Module) -> Component:
    return {name: Piece(parameter) for name, parameter in module.named_parameters()}


def _head(attention: nn.Module | None, place: Channels, count: int) -> Iterator[tuple[str, Piece]]:
    """A head's pieces; nothing where the matrices are unknown."""
    own, width = place.channels, place.channels.stop - place.channels.start
    heads = projections(attention, count, width) if attention is not None else []
    if not heads:
        return
    for name, (matrix, start) in heads[own.start // width].items():
        rows = slice(start * width, (start + 1) * width)
        across = (slice(None), rows) if isinstance(matrix, Conv1D) else (rows,)
        yield name, Piece(matrix.get_parameter("weight"), across)
        if getattr(matrix, "bias", None) is not None:
            yield f"{name}_bias", Piece(matrix.get_parameter("bias"), (rows,))
    across = (own,) if isinstance(place.module, Conv1D) else (slice(None), own)
    yield "o", Piece(place.module.get_parameter("weight"), across)
