"""Sites: one canonical name for each place in a model, whatever its architecture calls it."""

import inspect
import itertools
from collections.abc import Iterable, Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.anatomy.blocks import attention_of, blocks, mlp_output_of, stack
from stages.anatomy.names import neurons_of, valid
from stages.anatomy.places import Channels, Expert, Output, Overwritten, Place, Router
from stages.errors import BadInput

_FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_ATTENTION_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo")
_MLP_OUTPUT = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "c_proj")
_ROUTER = ("gate", "router")
_OVERWRITING = ("FalconDecoderLayer",)
"""Blocks that add their attention's output to their MLP's in place."""


def sites_of(model: PreTrainedModel, neuron_groups: int = 1) -> dict[str, Place]:
    """Every site of `model`, in the order in which a forward pass reaches them, and the place where its state passes.

    `layers.I` is the residual stream that leaves block I; `layers.I.self_attn` and `layers.I.mlp` are the outputs of
    its attention and its MLP, before the residual stream is added and before any norm that follows them (Gemma 2);
    `layers.I.self_attn.heads.J` is head J's part of what enters the attention's output projection, as wide as a head.
    `layers.I.mlp.neurons.FROM:TO` are neighbouring neurons of an MLP, after its nonlinearity and the product with its
    gate where it has one: what enters its last matrix. They are listed in `neuron_groups` groups as equal as can be, by
    default one of them all; any other range can be read and replaced too, by name. The order of neurons means nothing
    in itself, so a group is a sample of the MLP, and the groups' effects differ as far as single neurons dominate.
    A mixture has no neurons but `layers.I.mlp.router`, its logits over the experts, and `layers.I.mlp.experts.J`, one
    expert's output for the tokens routed to it, zero for the others.
    """
    found: dict[str, Place] = {"embed": Output(model.get_input_embeddings())}
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    for index, block in enumerate(blocks(model)):
        attention, mlp = attention_of(block), mlp_output_of(block)
        if attention is not None:
            found |= {f"layers.{index}.self_attn.{name}": place for name, place in _heads(attention, heads)}
            found[f"layers.{index}.self_attn"] = Output(_without_residual(attention, _ATTENTION_OUTPUT))
        if mlp is not None:
            inside = dict(_mixture(mlp)) or dict(_neurons(mlp, neuron_groups))
            found |= {f"layers.{index}.mlp.{name}": place for name, place in inside.items()}
            kind = Overwritten if type(block).__name__ in _OVERWRITING else Output
            found[f"layers.{index}.mlp"] = kind(_without_residual(mlp, _MLP_OUTPUT))
        found[f"layers.{index}"] = Output(block)
    norms = [child for name, child in stack(model).named_children() if name in _FINAL_NORM]
    if norms:
        found["norm"] = Output(norms[0])
    if (head := model.get_output_embeddings()) is not None:
        found["lm_head"] = Output(head)
    return found


def writers(model: PreTrainedModel) -> list[nn.Module]:
    """The matrices that write into the residual stream: the last of each attention and of each plain MLP."""
    found = []
    for block in blocks(model):
        for part, last in ((attention_of(block), _ATTENTION_OUTPUT), (mlp_output_of(block), _MLP_OUTPUT)):
            module = part and (_child(part, last) or part)
            if isinstance(module, nn.Linear | Conv1D):
                found.append(module)
    return found


def _heads(attention: nn.Module, count: int | None) -> Iterator[tuple[str, Place]]:
    """Each head's part of the output projection's input; nothing when no projection is known or heads are uneven."""
    projection = _child(attention, _ATTENTION_OUTPUT)
    if count and isinstance(projection, nn.Linear | Conv1D):
        width, rest = divmod(_entering(projection), count)
        for head in range(count if not rest else 0):
            yield f"heads.{head}", Channels(projection, slice(head * width, (head + 1) * width))


def _neurons(mlp: nn.Module, groups: int) -> Iterator[tuple[str, Place]]:
    """Each group's part of the last matrix's input; nothing when no last matrix is known or several experts have one.

    Raises BadInput when there are more groups than neurons.
    """
    last = mlp if isinstance(mlp, nn.Linear | Conv1D) else _child(mlp, _MLP_OUTPUT)
    if not isinstance(last, nn.Linear | Conv1D) or _child(mlp, (*_ROUTER, "experts")) is not None:
        return
    width = _entering(last)
    if not 0 < groups <= width:
        raise BadInput(f"Expected 1 to {width} groups of an MLP's {width} neurons, got {groups}; ask for fewer.")
    ends = [group * width // groups for group in range(groups + 1)]
    for begin, end in itertools.pairwise(ends):
        yield f"neurons.{begin}:{end}", Channels(last, slice(begin, end))


def _entering(matrix: nn.Linear | Conv1D) -> int:
    """Channels of a matrix's input."""
    return matrix.weight.shape[0] if isinstance(matrix, Conv1D) else matrix.in_features


def _mixture(mlp: nn.Module) -> Iterator[tuple[str, Place]]:
    """A mixture's router and experts; nothing for a plain MLP and for experts that are not one stack."""
    router, experts = _child(mlp, _ROUTER), _child(mlp, ("experts",))
    count = getattr(experts, "num_experts", None)
    if router is None or experts is None or count is None or len(inspect.signature(experts.forward).parameters) != 3:
        return
    yield "router", Router(router)
    for expert in range(count):
        yield f"experts.{expert}", Expert(experts, expert)


def _without_residual(module: nn.Module, last: tuple[str, ...]) -> nn.Module:
    """The module whose output is added to the residual stream: the last matrix where `module` does the adding, as
    Bloom's do."""
    adds = "residual" in inspect.signature(module.forward).parameters
    return (_child(module, last) if adds else None) or module


def _child(module: nn.Module, names: Iterable[str]) -> nn.Module | None:
    """The outermost module inside `module` that has one of `names`; None when there is none."""
    inside = sorted(module.named_modules(), key=lambda each: each[0].count("."))
    return next((found for path, found in inside if path.rpartition(".")[2] in names), None)


def resolve(model: PreTrainedModel, site: str) -> Place:
    """Where the state of `site` passes; BadInput names the nearest site that the model has."""
    return _pick(sites_of(model), site)


def resolve_all(model: PreTrainedModel, sites: list[str]) -> dict[str, Place]:
    """Each of `sites` with the place where its state passes; BadInput as from `resolve`."""
    known = sites_of(model)
    return {site: _pick(known, site) for site in sites}


def _pick(known: dict[str, Place], site: str) -> Place:
    if site in known:
        return known[site]
    if (wanted := neurons_of(site)) is not None:
        stem = site.rpartition(".")[0]
        for name, place in known.items():
            if name.startswith(f"{stem}.") and isinstance(place, Channels):
                if wanted.start < wanted.stop <= place.channels.stop:
                    return Channels(place.module, wanted)
                raise BadInput(f"Expected neurons from 0 to {place.channels.stop}, got {site!r}; correct the range.")
    raise BadInput(f"Expected a site of the model, got {site!r}; {valid(site, known)}")
