"""Where a mixture of experts sends its tokens: routing mass by expert, and a bias that moves it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import path_of
from stages.anatomy.encoding import batches, pad
from stages.anatomy.places import Router
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from stages.graft.router import RouterBias


@dataclass(frozen=True)
class Routed:
    """How often each expert was used, by item."""

    mass: torch.Tensor
    """[items, layers, experts], the share of a token's routing weight that an expert has, summed over the tokens"""
    tokens: torch.Tensor
    """[items]; an item's mass in a layer sums to it"""

    def mean(self) -> torch.Tensor:
        """[layers, experts], a token's mean mass; sums to 1 in each layer."""
        return self.mass.sum(0) / self.tokens.sum()


def routers_of(model: PreTrainedModel) -> dict[int, str]:
    """Layer → the dotted name of its router; layers whose MLP is dense are left out.

    Raises BadInput when every MLP is dense.
    """
    places = {site: place.module for site, place in sites_of(model).items() if isinstance(place, Router)}
    if not places:
        raise BadInput(
            f"Expected a mixture of experts, got {type(model).__name__}, whose MLPs are dense; name a model with "
            "routers, such as a Mixtral, or leave out what concerns experts."
        )
    return {int(site.split(".")[1]): path_of(model, module) for site, module in places.items()}


def experts_of(model: PreTrainedModel) -> int:
    """Experts in each mixture of `model`. Raises BadInput as `routers_of` does."""
    return len(model.get_submodule(next(iter(routers_of(model).values()))).weight)


@torch.inference_mode()
def routed(model: PreTrainedModel, sequences: Sequence[Sequence[int]], budget: int = 2048) -> Routed:
    """What the routers of `model` do with token sequences, `budget` padded tokens a pass.

    Weights are those that experts' outputs are summed with, not probabilities: of experts not chosen they are 0.
    Raises BadInput as `routers_of` does.
    """
    routers, count = list(routers_of(model).values()), experts_of(model)
    mass = torch.zeros(len(sequences), len(routers), count, dtype=torch.float64)
    given: dict[str, torch.Tensor] = {}

    def note(name: str, output: tuple[torch.Tensor, ...]) -> None:
        _, weights, chosen = output
        dense = torch.zeros(len(weights), count, device=weights.device).scatter_(1, chosen, weights.float())
        given[name] = dense / dense.sum(-1, keepdim=True)

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, args, output, name=name: note(name, output))
        for name in routers
    ]
    try:
        for group in batches([len(ids) for ids in sequences], budget):
            ids = pad([sequences[i] for i in group], model.device)
            model.base_model(input_ids=ids, use_cache=False)
            lengths = torch.tensor([len(sequences[i]) for i in group], device=model.device)
            real = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
            for layer, name in enumerate(routers):
                mass[group, layer] = (given[name].view(*ids.shape, count) * real[..., None]).sum(1).double().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return Routed(mass, torch.tensor([len(ids) for ids in sequences], dtype=torch.float64))


@contextlib.contextmanager
def biased(model: PreTrainedModel, bias: torch.Tensor) -> Iterator[None]:
    """Inside the block, the routers' logits are raised by `bias` [mixtures, experts]; afterwards they are as before."""
    part = RouterBias(list(routers_of(model).values()), experts_of(model))
    part.bias.copy_(bias)
    handles = part.hold(model)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def preferred(inside: Routed, outside: Routed, count: int) -> torch.Tensor:
    """[layers, count], the experts of each mixture whose mean mass is larger inside than outside by the most.

    Raises BadInput unless some experts are chosen and some are not.
    """
    difference = inside.mean() - outside.mean()
    if not 0 < count < difference.shape[1]:
        raise BadInput(
            f"Expected 1 to {difference.shape[1] - 1} experts a mixture to prefer, got {count}; the mixtures have "
            f"{difference.shape[1]} experts."
        )
    return difference.topk(count, dim=1).indices.sort(1).values


def raised(chosen: torch.Tensor, experts: int, strength: float) -> torch.Tensor:
    """The bias [layers, experts] that is `strength` at the experts in `chosen` [layers, count] and 0 elsewhere."""
    return torch.zeros(len(chosen), experts).scatter_(1, chosen, strength)


def share(routed: Routed, chosen: torch.Tensor) -> torch.Tensor:
    """[items], the mass on the experts in `chosen` [layers, count], summed over tokens, a mean over layers."""
    return routed.mass.gather(2, chosen[None].expand(len(routed.mass), -1, -1)).sum(2).mean(1)
