"""Estimates of what every exchange between donor and target does, from gradients: all sites in a few passes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from stages.anatomy.encoding import Batch
from stages.anatomy.head import logits_at
from stages.anatomy.hooks import reading, replacing
from stages.anatomy.modules import linear_paths
from stages.anatomy.names import layer_of
from stages.errors import BadInput

Exchange = tuple[str, str]
"""What is exchanged (`weights` of a linear module, `blocks` for those of all in a block, or `states`) and the site."""


@dataclass(frozen=True)
class Attribution:
    """Estimated effects, by item."""

    capability: torch.Tensor
    """[prompts], change of the answer's log-likelihood, nats, first order"""
    retention: torch.Tensor
    """[texts], KL from the target's next-token distribution, summed over tokens, nats, second order"""


def attribute(
    target: PreTrainedModel,
    donor: PreTrainedModel,
    answers: Sequence[Batch],
    texts: Sequence[Batch],
    sites: Sequence[str] = (),
    probes: int = 8,
    seed: int = 0,
) -> dict[Exchange, Attribution]:
    """What the donor's weights at each linear module, and its states at each of `sites`, would do in the target.

    With g the gradient of a measure at a module's output y = W x and u = (W_donor − W) x, or at a site's state with
    u = donor's state − state, the derivative towards the donor is ⟨g, u⟩, summed over positions and channels; for
    weights that is ⟨∇_W, W_donor − W⟩, without any gradient of a weight. For the answers' log-likelihood this is
    attribution patching (Nanda 2023; Syed et al., arXiv 2310.10348).

    The KL from the target has no gradient at the target. To second order it is ½ uᵀJᵀ(diag p − p pᵀ)J u, J the
    Jacobian of the logits: the Fisher matrix, here the same as the generalized Gauss–Newton one (Martens, arXiv
    1412.1193). It is estimated by ½ ⟨Jᵀz, u⟩², z = √p ⊙ ε − p (√p · ε), with random signs ε, `probes` times a text:
    without bias, since z has covariance diag p − p pᵀ and is drawn apart at every position. One probe's variance is at
    most 2 KL² for any p; with labels sampled from p, the other usual way, it grows with p's kurtosis without bound.
    Exchanges in company are not sums of those alone: `blocks` squares the sum over a block's linear modules.

    Costs a forward pass of both models, one more of the linear modules, and backward passes without gradients of
    weights: one on the answers, `probes` on the texts. Fails where the measure is far from linear on the way from
    target to donor: saturated softmaxes, effects that cancel, a distant donor. Raises BadInput for a site that the
    models lack or that no gradient reaches.
    """
    capability, retention = _Sums(answers), _Sums(texts)
    for batch in answers:
        with _tape(target, donor, batch, sites) as tape:
            following = batch.following.to(tape.logits.device)
            loglikelihood = tape.logits.log_softmax(-1).gather(-1, following[:, None])
            capability.add(tape.items, tape.derivatives(loglikelihood, torch.ones_like(loglikelihood)))
    for batch in texts:
        generators = {item: torch.Generator().manual_seed(seed * 1_000_003 + item) for item in batch.item.tolist()}
        with _tape(target, donor, batch, sites) as tape:
            likely = tape.logits.detach().softmax(-1)
            for _ in range(probes):
                signs = [torch.randint(2, likely.shape[1:], generator=generators[i]) for i in batch.item.tolist()]
                pull = likely.sqrt() * (2 * torch.stack(signs) - 1).to(likely)
                found = tape.derivatives(tape.logits, pull - likely * pull.sum(-1, keepdim=True))
                retention.add(tape.items, {each: value.square() / (2 * probes) for each, value in found.items()})
    return {of: Attribution(capability.of(of), retention.of(of)) for of in capability.found | retention.found}


class _Sums:
    """Values by exchange and item, summed over passes."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._items = 1 + max((int(batch.item.max()) for batch in batches), default=-1)
        self.found: dict[Exchange, torch.Tensor] = {}

    def of(self, exchange: Exchange) -> torch.Tensor:
        """[items]"""
        return self.found.setdefault(exchange, torch.zeros(self._items, dtype=torch.float64))

    def add(self, items: torch.Tensor, values: dict[Exchange, torch.Tensor]) -> None:
        for exchange, value in values.items():
            self.of(exchange).index_add_(0, items, value)


@dataclass
class _Tape:
    """One pass of the target whose backward passes leave the derivatives towards the donor."""

    items: torch.Tensor
    """[rows], the item that each row is of"""
    expected: list[Exchange]
    start: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """What the backward passes go back to: the embedding's output"""
    logits: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """[positions, vocabulary]"""
    found: dict[Exchange, torch.Tensor] = field(default_factory=dict)

    def listen(self, of: Exchange, state: torch.Tensor, difference: torch.Tensor) -> None:
        """On every backward pass, notes ⟨gradient at `state`, `difference`⟩ of each row."""

        def note(gradient: torch.Tensor) -> None:
            product = (gradient * difference).reshape(len(self.items), -1).sum(-1).double().cpu()
            self.found[of] = self.found.get(of, 0) + product

        state.register_hook(note)

    def derivatives(self, output: torch.Tensor, weight: torch.Tensor) -> dict[Exchange, torch.Tensor]:
        """Derivatives [rows] of Σ weight · output towards the donor, by exchange."""
        self.found = {}
        torch.autograd.grad(output, self.start, weight, retain_graph=True)
        silent = [site for kind, site in self.expected if (kind, site) not in self.found]
        if silent:
            raise BadInput(f"Expected a gradient at {', '.join(silent)}, but none came; leave out what does not run.")
        for kind, site in self.expected:
            if kind == "weights":
                block = ("blocks", f"layers.{layer_of(site)}")
                self.found[block] = self.found.get(block, 0) + self.found[kind, site]
        return self.found


@contextlib.contextmanager
def _tape(target: PreTrainedModel, donor: PreTrainedModel, batch: Batch, sites: Sequence[str]) -> Iterator[_Tape]:
    """A pass of both models over `batch`, each item in a row of its own; the target is as before afterwards."""
    items, row = batch.item.unique(return_inverse=True)
    ids = batch.ids[torch.zeros_like(items).scatter(0, row, batch.row)]
    paths, theirs = linear_paths(target), linear_paths(donor)
    tape = _Tape(items, [*(("weights", name) for name in paths), *(("states", site) for site in sites)])
    states: dict[str, torch.Tensor] = {}
    if sites:
        with torch.no_grad(), reading(donor, sites) as states:
            donor.base_model(input_ids=ids.to(donor.device), use_cache=False)

    def change_at(site: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(state: torch.Tensor) -> torch.Tensor:
            if site == "embed":
                state = tape.start = state.detach().requires_grad_()
            seen = state.view_as(state)  # a tensor that the model goes on from, whatever form the site's output has
            if site in states:
                tape.listen(("states", site), seen, states[site].to(seen) - seen.detach())
            return seen

        return change

    def compare_with(name: str) -> Callable[..., None]:
        other = donor.get_submodule(theirs[name])

        def compare(_module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            with torch.no_grad():
                difference = other(inputs[0]) - output
            tape.listen(("weights", name), output, difference)

        return compare

    with contextlib.ExitStack() as stack:
        for name, path in paths.items():
            stack.callback(target.get_submodule(path).register_forward_hook(compare_with(name)).remove)
        with (
            torch.enable_grad(),
            replacing(target, {site: change_at(site) for site in dict.fromkeys(["embed", *sites])}),
        ):
            tape.logits = logits_at(target, ids, row, batch.column).float()
        try:
            yield tape
        finally:  # the graph holds its hooks and they the tape, a circle that no collector sees
            tape.logits = tape.start = torch.zeros(0)
