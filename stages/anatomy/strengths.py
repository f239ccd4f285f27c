"""A target on its way to a donor, each module's weights at strengths of their own, and what more of each would do."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stages.anatomy.encoding import Batch
from stages.anatomy.head import logits_at
from stages.anatomy.modules import weighted_paths
from stages.anatomy.sites import writers
from stages.errors import BadInput

Loss = Callable[[torch.Tensor], torch.Tensor]
"""From logits [positions, vocabulary] to a scalar."""


@dataclass(frozen=True)
class _Weight:
    """One parameter, where it goes, and which of its module's parts each of its channels belongs to."""

    parameter: nn.Parameter
    start: torch.Tensor
    end: torch.Tensor
    axis: int | None
    """Of the channels; None where the whole parameter moves with the mean of its module's parts"""
    part: torch.Tensor
    """[channels], from 0"""

    @cached_property
    def difference(self) -> torch.Tensor:
        return self.end - self.start

    def move(self, strengths: torch.Tensor) -> None:
        """Exact at 0 and 1; `strengths` [parts]."""
        if not strengths.any():
            self.parameter.copy_(self.start)
            return
        if self.axis is None or len(strengths) == 1:
            self.parameter.copy_(self.start.lerp(self.end, float(strengths.mean())))
            return
        shape = [-1 if axis == self.axis else 1 for axis in range(self.start.ndim)]
        own = strengths[self.part].to(self.start).view(shape)
        torch.lerp(self.start, self.end, own.expand_as(self.start), out=self.parameter.data)

    def slope(self, gradient: torch.Tensor, parts: int) -> torch.Tensor:
        """⟨gradient, end − start⟩ [parts], each over its own channels."""
        if self.axis is None or parts == 1:
            whole = torch.dot(gradient.flatten(), self.difference.flatten()).double().cpu()
            return (whole / parts).expand(parts)
        others = [axis for axis in range(gradient.ndim) if axis != self.axis]
        product = gradient * self.difference
        channels = (product.sum(others) if others else product).double().cpu()
        return torch.zeros(parts, dtype=torch.float64).index_add_(0, self.part, channels)


class Mixture:
    """The weights of every module in which target and donor differ, at W = W_target + λ (W_donor − W_target)."""

    def __init__(self, model: PreTrainedModel, donor: PreTrainedModel, channels: int | None = None) -> None:
        """Each module is one part, `layers.3.mlp.up_proj`; with `channels`, parts of that many channels,
        `layers.3.mlp.up_proj[64:128]`: outputs of a matrix that reads the residual stream, inputs of one that writes
        to it, so that they are neurons, and heads where a head is as wide. A writer's bias moves with the mean.

        Raises BadInput when a block's weights differ in name or shape.
        """
        self.model = model
        self._modules: list[tuple[slice, list[_Weight]]] = []
        self.names: list[str] = []
        sizes: list[int] = []
        ours, theirs = weighted_paths(model), weighted_paths(donor)
        last = {id(module) for module in writers(model)}
        for name in ours | theirs:
            pair = [each.get_submodule(paths[name]) if name in paths else nn.Module()
                    for each, paths in ((model, ours), (donor, theirs))]  # fmt: skip
            starts, ends = (dict(module.named_parameters(recurse=False)) for module in pair)
            if {n: p.shape for n, p in starts.items()} != {n: p.shape for n, p in ends.items()}:
                raise BadInput(
                    f"Expected {name} of the donor to have the target's weights, got others; weights can only be "
                    "mixed between models of one architecture and width: use a blade with a bridge instead."
                )
            if all(torch.equal(p, ends[n].to(p)) for n, p in starts.items()):
                continue
            axes = {n: _axis(pair[0], p, id(pair[0]) in last) for n, p in starts.items()}
            wide = next(
                p.shape[axis] for p, axis in zip(starts.values(), axes.values(), strict=True) if axis is not None
            )
            cuts = list(range(0, wide, channels)) if channels else [0]
            part = torch.arange(wide) // channels if channels else torch.zeros(wide, dtype=torch.long)
            kept = [
                _Weight(p, p.detach().clone(), ends[n].detach().to(p), axes[n] if wide == _length(p, axes[n]) else None,
                        part)
                for n, p in starts.items()
            ]  # fmt: skip
            self._modules.append((slice(len(self.names), len(self.names) + len(cuts)), kept))
            spans = list(pairwise([*cuts, wide]))
            self.names += [name if len(cuts) == 1 else f"{name}[{a}:{b}]" for a, b in spans]
            whole = sum(w.start.numel() for w in kept if w.axis is not None)
            sizes += [whole * (b - a) // wide for a, b in spans]
        self.sizes = torch.tensor(sizes)
        """[parts], parameters of each"""
        self.strengths = torch.zeros(len(self.names))

    @torch.no_grad()
    def set(self, strengths: torch.Tensor) -> None:
        """Moves every part to its strength in `strengths` [parts]; 0 is the target's bit for bit, 1 the donor's."""
        for own, kept in self._modules:
            if not torch.equal(strengths[own], self.strengths[own].to(strengths)):
                for weight in kept:
                    weight.move(strengths[own])
        self.strengths = strengths.clone()

    @property
    def starts(self) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Each parameter of the modules, and the target's weights that it had at first."""
        for _, kept in self._modules:
            for weight in kept:
                yield weight.parameter, weight.start

    def slopes(self, batch: Batch, loss: Loss) -> tuple[float, torch.Tensor]:
        """The loss on a batch, and its derivatives [parts] by the strengths, ⟨∇_W loss, W_donor − W_target⟩.

        Each weight's gradient is dropped as soon as it is used, so memory holds one at a time. Costs a forward pass and
        a backward pass with gradients of weights.
        """
        found = torch.zeros(len(self.names), dtype=torch.float64)

        def note(own: slice, weight: _Weight, parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                found[own] += weight.slope(parameter.grad, own.stop - own.start)
            parameter.grad = None

        handles = []
        try:
            for own, kept in self._modules:
                for weight in kept:
                    hook = partial(note, own, weight)
                    handles.append(weight.parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook))
            with torch.enable_grad():
                value = loss(logits_at(self.model, batch.ids, batch.row, batch.column).float())
                value.backward()
        finally:
            for handle in handles:
                handle.remove()
            for _, kept in self._modules:
                for weight in kept:
                    weight.parameter.requires_grad_(False)
        return value.item(), found


def _axis(module: nn.Module, parameter: torch.Tensor, writes: bool) -> int | None:
    """Along which a parameter has its module's channels; None for a writer's bias."""
    if parameter.ndim == 1:
        return None if writes else 0
    return int(writes != isinstance(module, Conv1D)) if isinstance(module, nn.Linear | Conv1D) else 0


def _length(parameter: torch.Tensor, axis: int | None) -> int:
    return 0 if axis is None else parameter.shape[axis]


@contextlib.contextmanager
def mixing(target: PreTrainedModel, donor: PreTrainedModel, channels: int | None = None) -> Iterator[Mixture]:
    """Inside the block, a mixture of the two in the target's place; afterwards the target is as before, bit for bit.

    What is mixed are the `weighted_paths` in which the two differ: linear modules, and norms or experts where a donor
    changes those. Embeddings, the last norm and the head stay the target's. Takes the memory of the blocks' weights
    twice more. Raises BadInput as Mixture does.
    """
    mixture = Mixture(target, donor, channels)
    try:
        yield mixture
    finally:
        mixture.set(torch.zeros(len(mixture.names)))
