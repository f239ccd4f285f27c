"""What a model's feed-forward networks read, do and write on texts."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from stages.anatomy.ffn import FeedForward


@dataclass(frozen=True)
class Activity:
    """Of one network, on all tokens of all texts, text after text."""

    entering: Float[Tensor, "tokens width"]
    """What it reads, after the block's norm."""
    leaving: Float[Tensor, "tokens width"]
    """What it writes, its bias included."""
    mean: Float[Tensor, "neurons"]
    """Mean |a|, over all tokens but each text's first, which an attention sink may make massive."""


@torch.inference_mode()
def activity(
    model: PreTrainedModel, networks: Mapping[int, FeedForward], texts: Sequence[Sequence[int]]
) -> dict[int, Activity]:
    """That of some networks of `model` on token ids, each text read alone, so that nothing is padded."""
    entering: dict[int, list[Tensor]] = {layer: [] for layer in networks}
    leaving: dict[int, list[Tensor]] = {layer: [] for layer in networks}
    sums = dict.fromkeys(networks, torch.zeros(()))
    with contextlib.ExitStack() as stack:
        for layer, network in networks.items():

            def enter(_: Any, inputs: tuple[Tensor, ...], layer: int = layer) -> None:
                entering[layer].append(_rows(inputs[0]).clone())

            def leave(_: Any, inputs: tuple[Tensor, ...], output: Tensor, layer: int = layer) -> None:
                sums[layer] = sums[layer] + _rows(inputs[0])[1:].abs().double().sum(0)
                leaving[layer].append(_rows(output).clone())  # Falcon adds to it in place

            stack.callback(network.up.register_forward_pre_hook(enter).remove)
            stack.callback(network.down.register_forward_hook(leave).remove)
        for ids in texts:
            model.base_model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    counted = max(1, sum(len(ids) - 1 for ids in texts))
    return {
        layer: Activity(torch.cat(entering[layer]), torch.cat(leaving[layer]), (sums[layer] / counted).float())
        for layer in networks
    }


@contextlib.contextmanager
def silencing(networks: Mapping[int, FeedForward], kept: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside the block, only the neurons `kept` [neurons], True or False, of each network write anything."""
    with contextlib.ExitStack() as stack:
        for layer, network in networks.items():

            def silence(_: Any, inputs: tuple[Tensor, ...], layer: int = layer) -> tuple[Tensor]:
                return (inputs[0] * kept[layer].to(inputs[0]),)

            stack.callback(network.down.register_forward_pre_hook(silence).remove)
        yield


def _rows(states: Tensor) -> Tensor:
    return states.flatten(0, -2)
