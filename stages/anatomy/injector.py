"""Layers of a running model changed by hand: scaled, shifted, disturbed or replaced, for as long as a block lasts."""

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from transformers import PreTrainedModel

from stages.anatomy.hooks import replacing
from stages.anatomy.passes import Passes
from stages.anatomy.sites import resolve
from stages.errors import BadInput
from stages.graft.blade import Injection
from stages.graft.donor import Donor
from stages.graft.noise import Normal

Change = Callable[[torch.Tensor], torch.Tensor]
"""From a site's state [batch, tokens, width] to the one that goes on in its place, of the same shape."""


class LayerInjector:
    """A context manager in which sites of `model` give changed states, in forward passes and in `generate` alike.

        with LayerInjector(model).scale("layers.3.mlp", 0.5).noise("layers.5", 0.1):
            model.generate(**text)

    Changes of one site work in the order in which they are called; changes of an outer injector on the same model
    come before those of an inner one. What a token receives depends on nothing but its own text: batch, padding side
    (given the attention mask) and cache do not matter. Weights are never touched and every hook is gone afterwards, on
    the exception path too. Raises BadInput at once for a site that the model lacks, in a pass for a state whose shape
    changes, and at the end for a site that no pass reached, unless an exception is under way.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._changes: dict[str, list[Change]] = {}
        self._passes = Passes()
        self._open: contextlib.ExitStack | None = None

    def scale(self, site: str, factor: float | torch.Tensor) -> Self:
        """state · factor: a number, or a tensor that broadcasts over [batch, tokens, width]."""
        return self.replace(site, lambda state: state * _like(factor, state, site))

    def bias(self, site: str, vector: torch.Tensor, alpha: float = 1.0) -> Self:
        """state + alpha · vector, as in steering by a direction; `vector` broadcasts over [batch, tokens, width]."""
        return self.replace(site, lambda state: state + alpha * _like(vector, state, site))

    def noise(self, site: str, amount: float, seed: int = 0) -> Self:
        """state + amount · rms(state) · ε, where rms is the token's own root mean square and ε ~ N(0, 1) a channel.

        ε depends on `seed` and on the token's position in its text alone, so the rows of a batch share it.
        """
        table = Normal(seed)
        return self.replace(site, lambda state: table.disturb(state, amount, self._passes.positions(state.shape[1])))

    def blade(
        self, site: str, donor: Donor, injection: Injection | None = None, alpha: float = 1.0, taken: int = 0
    ) -> Self:
        """injection(state, d), where d is what a donor that `stages.reading` made gives for the same text.

        By default state + alpha · (d − state); with an injection of its own alpha. `taken` counts in the donor's list
        of blocks that give their states. The donor is run once a pass, however many blades take from it.
        """
        width = donor.donor.config.hidden_size
        apply = injection or Injection("identity", "identity", "delta", alpha, width, width)
        number = self._passes.carry(donor)

        def injected(state: torch.Tensor) -> torch.Tensor:
            d, known = self._passes.states(number, taken, state.shape[1])
            if apply.bridge.kind != "linear" and d.shape[-1] != state.shape[-1]:
                raise BadInput(
                    f"Expected a donor of width {state.shape[-1]} at {site}, got {d.shape[-1]}; give an injection with "
                    "a linear bridge."
                )
            return apply(state, d.to(state), known)

        return self.replace(site, injected)

    def replace(self, site: str, change: Change) -> Self:
        """change(state), for a function or a module; it gets a copy of its own and may write into it."""
        if self._open is not None:
            raise BadInput("Expected all changes before the block is entered; nest a second LayerInjector inside it.")
        resolve(self.model, site)
        self._changes.setdefault(site, []).append(change)
        return self

    def __enter__(self) -> Self:
        if self._open is not None:
            raise BadInput("Expected an injector that is not in use, got one inside its own block; make another.")
        if not self._changes:
            raise BadInput("Expected at least one change, got an injector without any; call scale, bias or another.")
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._passes.of(self.model))
            opened.enter_context(replacing(self.model, {site: self._composed(site) for site in self._changes}))
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._open = self._open, None
        assert opened is not None
        opened.__exit__(kind, error, trace)

    def _composed(self, site: str) -> Change:
        def change(state: torch.Tensor) -> torch.Tensor:
            for each in self._changes[site]:
                # A clone, since a place may hold the state only as a copy, and writing into that would change nothing
                state = each(state.clone()).to(state.dtype)
            return state

        return change


def _like(value: float | torch.Tensor, state: torch.Tensor, site: str) -> float | torch.Tensor:
    """`value` where the state is; BadInput when it does not broadcast to the state's shape."""
    if not isinstance(value, torch.Tensor):
        return value
    try:
        fits = torch.broadcast_shapes(value.shape, state.shape) == state.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise BadInput(
            f"Expected a tensor that broadcasts to {list(state.shape)} at {site}, got {list(value.shape)}; "
            f"give one of width {state.shape[-1]}."
        )
    return value.to(state.device)
