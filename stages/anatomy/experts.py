"""Experts of a mixture taken out and put in, whichever tensors they are fused into; a dense MLP is one too."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from stages.anatomy.places import Expert
from stages.anatomy.sites import resolve
from stages.errors import BadInput


@dataclass(frozen=True)
class Gated:
    """x ↦ down · (f(gate · x) ⊙ (up · x)), the weights of one expert or of a dense gated MLP (arXiv 2002.05202)."""

    gate: torch.Tensor
    """[neurons, width]"""
    up: torch.Tensor
    """[neurons, width]"""
    down: torch.Tensor
    """[width, neurons]"""
    activation: str
    """The name of f in the model's configuration."""


def taken(model: PreTrainedModel, site: str) -> Gated:
    """A copy of the weights at `layers.I.mlp.experts.J`, or at `layers.I.mlp` of a dense model (upcycling, arXiv
    2212.05055).

    Raises BadInput when there is no such site, or what is there is no gated MLP without biases.
    """
    place = resolve(model, site)
    if isinstance(place, Expert):
        gate_up, down = (stack[place.index].detach() for stack in _stacked(model, site)[1:])
        gate, up = gate_up.chunk(2)
        return Gated(gate.clone(), up.clone(), down.clone(), _activation(model))
    found = dict(place.module.named_parameters())
    names = {name.removesuffix(".weight") for name in found}
    if names == {"gate_up_proj", "down_proj"}:
        gate, up = found["gate_up_proj.weight"].detach().chunk(2)
    elif names == {"gate_proj", "up_proj", "down_proj"}:
        gate, up = found["gate_proj.weight"].detach(), found["up_proj.weight"].detach()
    else:
        raise BadInput(
            f"Expected an expert or a dense MLP with a gate and no biases at {site} of {type(model).__name__}, got "
            f"the parameters {', '.join(sorted(found))}; take an MLP of Llama's kind."
        )
    return Gated(gate.clone(), up.clone(), found["down_proj.weight"].detach().clone(), _activation(model))


@contextlib.contextmanager
def implanted(model: PreTrainedModel, given: Mapping[str, Gated]) -> Iterator[None]:
    """Inside the block, `model` has other weights at each site `layers.I.mlp.experts.J` of `given`; afterwards its own.

    An expert of fewer neurons is filled up with neurons that give nothing, so it computes what it did. The routers
    stay, so the tokens that went to the old expert go to the new one. Raises BadInput, before anything is changed, when
    a site is no expert, or the width, the activation or the number of neurons does not fit.
    """
    check(model, given)
    own = {site: taken(model, site) for site in given}
    try:
        for site, gated in given.items():
            _put(model, site, gated)
        yield
    finally:
        for site, gated in own.items():
            _put(model, site, gated)


def check(model: PreTrainedModel, given: Mapping[str, Gated]) -> None:
    """Raises BadInput, as `implanted` does, unless each of `given` can take its place in `model`."""
    for site, gated in given.items():
        _, _, down = _stacked(model, site)
        _fits(site, down, _activation(model), gated)


def _fits(site: str, down: torch.Tensor, activation: str, gated: Gated) -> None:
    (_, width, neurons), (given, given_width) = down.shape, gated.gate.shape
    if given_width != width:
        raise BadInput(
            f"Expected an expert of width {width} for {site}, got one of width {given_width}; take a donor of the "
            "target's width, or inject its MLP between bridges."
        )
    if given > neurons:
        raise BadInput(
            f"Expected an expert of at most {neurons} neurons for {site}, got {given}; project it to {neurons} neurons "
            "first."
        )
    if gated.activation != activation:
        raise BadInput(
            f"Expected an expert with the activation {activation} for {site}, got {gated.activation}; take a donor "
            "with the target's activation."
        )


def _put(model: PreTrainedModel, site: str, gated: Gated) -> None:
    index, gate_up, down = _stacked(model, site)
    neurons, count = down.shape[2], len(gated.gate)
    with torch.no_grad():
        gate_up[index].zero_()
        down[index].zero_()
        gate_up[index, :count].copy_(gated.gate)
        gate_up[index, neurons : neurons + count].copy_(gated.up)
        down[index, :, :count].copy_(gated.down)


def _stacked(model: PreTrainedModel, site: str) -> tuple[int, nn.Parameter, nn.Parameter]:
    """An expert's index, and [experts, 2 · neurons, width] and [experts, width, neurons] of its mixture."""
    place = resolve(model, site)
    found = dict(place.module.named_parameters(recurse=False)) if isinstance(place, Expert) else {}
    fused = set(found) == {"gate_up_proj", "down_proj"} and not getattr(place.module, "is_transposed", False)
    if not isinstance(place, Expert) or not fused:
        what = ", ".join(sorted(found)) or "no expert"
        raise BadInput(
            f"Expected experts fused as gate_up_proj and down_proj without biases at {site} of "
            f"{type(model).__name__}, got {what}; name an expert of a Mixtral, Qwen-MoE, OLMoE or Phi-MoE."
        )
    return place.index, found["gate_up_proj"], found["down_proj"]


def _activation(model: PreTrainedModel) -> str:
    config = model.config.get_text_config()
    return getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", "")
