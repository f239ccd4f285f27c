"""Layers of a running model changed by hand: scaled, shifted, disturbed or replaced, for as long as a block lasts."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import stack
from stages.anatomy.hooks import replacing
from stages.anatomy.sites import resolve
from stages.errors import BadInput

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
        self._reading = _Reading()
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
        table = _Normal(seed)

        def disturbed(state: torch.Tensor) -> torch.Tensor:
            position = self._reading.positions(state.shape[1]).to(state.device)
            rms = state.float().square().mean(-1, keepdim=True).sqrt()
            return state + amount * rms * table.rows(position, state.shape[-1])

        return self.replace(site, disturbed)

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
            opened.enter_context(self._reading.of(self.model))
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


class _Reading:
    """What the pass under way reads: where in its text each new token stands."""

    def __init__(self) -> None:
        self._positions: torch.Tensor | None = None

    @contextlib.contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside the block, every pass of `model` is followed."""
        runs = stack(model)
        signature = inspect.signature(runs.forward)

        def note(_model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._positions = _positions(signature.bind(*args, **kwargs).arguments)

        handle = runs.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def positions(self, count: int) -> torch.Tensor:
        """[batch, count], from 0 at each text's first token; of the last `count` tokens where a site sees fewer."""
        assert self._positions is not None
        return self._positions[:, -count:]


def _positions(given: dict[str, Any]) -> torch.Tensor:
    """[batch, tokens], of the new tokens of a pass with these arguments."""
    given = given | given.get("kwargs", {})
    entering = given.get("input_ids")
    batch, count = (given["inputs_embeds"] if entering is None else entering).shape[:2]
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -count:]
    if (told := given.get("position_ids")) is not None:
        return told.expand(batch, -1)
    past = given.get("past_key_values")
    seen = 0 if past is None else int(past.get_seq_length())
    return torch.arange(seen, seen + count).expand(batch, -1)


class _Normal:
    """Standard normal rows by index: the same row whenever and in whatever order they are asked for."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._rows: list[torch.Tensor] = []

    def rows(self, index: torch.Tensor, width: int) -> torch.Tensor:
        """[batch, tokens, width] for `index` [batch, tokens]."""
        while len(self._rows) <= int(index.max()):
            self._rows.append(torch.randn(width, generator=self._generator))
        return torch.stack(self._rows).to(index.device)[index]


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
