"""A target on its way to a donor, each module's weights at a strength of their own, and what more of each would do."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from transformers import PreTrainedModel

from stages.anatomy.encoding import Batch
from stages.anatomy.head import logits_at
from stages.anatomy.modules import weighted_paths
from stages.errors import BadInput

Loss = Callable[[torch.Tensor], torch.Tensor]
"""From logits [positions, vocabulary] to a scalar."""


class _Weight:
    """One parameter and where it goes."""

    def __init__(self, parameter: torch.nn.Parameter, start: torch.Tensor, end: torch.Tensor) -> None:
        self.parameter, self.start, self.end = parameter, start, end
        self.difference = end - start

    def move(self, strength: float) -> None:
        """Exact at both ends, where a sum with the difference would round."""
        ends = {0.0: self.start, 1.0: self.end}
        if strength in ends:
            self.parameter.copy_(ends[strength])
        else:
            torch.add(self.start, self.difference, alpha=strength, out=self.parameter.data)


class Mixture:
    """The weights of every module in which target and donor differ, at W = W_target + λ (W_donor − W_target)."""

    def __init__(self, model: PreTrainedModel, donor: PreTrainedModel) -> None:
        """Raises BadInput when a block's weights differ in name or shape."""
        self.model = model
        ours, theirs = weighted_paths(model), weighted_paths(donor)
        self._weights: dict[str, list[_Weight]] = {}
        for name in ours | theirs:
            pair = [
                dict(each.get_submodule(paths[name]).named_parameters(recurse=False)) if name in paths else {}
                for each, paths in ((model, ours), (donor, theirs))
            ]
            if {n: p.shape for n, p in pair[0].items()} != {n: p.shape for n, p in pair[1].items()}:
                raise BadInput(
                    f"Expected {name} of the donor to have the target's weights, got others; weights can only be "
                    "mixed between models of one architecture and width: use a blade with a bridge instead."
                )
            ends = {n: p.detach().to(pair[0][n]) for n, p in pair[1].items()}
            if not all(torch.equal(p, ends[n]) for n, p in pair[0].items()):
                self._weights[name] = [_Weight(p, p.detach().clone(), ends[n]) for n, p in pair[0].items()]
        self.names = list(self._weights)
        self.sizes = torch.tensor([sum(w.start.numel() for w in each) for each in self._weights.values()])
        """[modules], parameters of each"""
        self.strengths = torch.zeros(len(self.names))

    @torch.no_grad()
    def set(self, strengths: torch.Tensor) -> None:
        """Moves every module to its strength in `strengths` [modules]; 0 is the target's bit for bit, 1 the donor's."""
        for index, kept in enumerate(self._weights.values()):
            if strengths[index] != self.strengths[index]:
                for weight in kept:
                    weight.move(float(strengths[index]))
        self.strengths = strengths.clone()

    def slopes(self, batch: Batch, loss: Loss) -> tuple[float, torch.Tensor]:
        """The loss on a batch, and its derivatives [modules] by the strengths, ⟨∇_W loss, W_donor − W_target⟩.

        Each weight's gradient is dropped as soon as it is used, so memory holds one at a time. Costs a forward pass and
        a backward pass with gradients of weights.
        """
        found = torch.zeros(len(self.names), dtype=torch.float64)

        def note(index: int, weight: _Weight, parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                found[index] += torch.dot(parameter.grad.flatten(), weight.difference.flatten()).double().cpu()
            parameter.grad = None

        handles = []
        try:
            for index, kept in enumerate(self._weights.values()):
                for weight in kept:
                    hook = partial(note, index, weight)
                    handles.append(weight.parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook))
            with torch.enable_grad():
                value = loss(logits_at(self.model, batch.ids, batch.row, batch.column).float())
                value.backward()
        finally:
            for handle in handles:
                handle.remove()
            for kept in self._weights.values():
                for weight in kept:
                    weight.parameter.requires_grad_(False)
        return value.item(), found


@contextlib.contextmanager
def mixing(target: PreTrainedModel, donor: PreTrainedModel) -> Iterator[Mixture]:
    """Inside the block, a mixture of the two in the target's place; afterwards the target is as before, bit for bit.

    A module is one of `weighted_paths` in which the two differ: linear modules, and norms or experts where a donor
    changes those. Embeddings, the last norm and the head stay the target's. Takes the memory of the blocks' weights
    twice more. Raises BadInput as Mixture does.
    """
    mixture = Mixture(target, donor)
    try:
        yield mixture
    finally:
        mixture.set(torch.zeros(len(mixture.names)))
