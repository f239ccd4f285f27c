"""Reading and replacing what leaves a site while a model runs; the model is as before when the block ends."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.anatomy.places import Place
from stages.anatomy.sites import resolve_all
from stages.errors import BadInput


@contextlib.contextmanager
def reading(model: PreTrainedModel, sites: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """A dictionary that holds, after a forward pass in the block, each site's hidden state [batch, tokens, width].

    States keep their gradient. Raises BadInput for a site that the model lacks or that no pass in the block reached.
    """
    states: dict[str, torch.Tensor] = {}
    with watching(model, {site: functools.partial(states.__setitem__, site) for site in sites}):
        yield states


@contextlib.contextmanager
def watching(model: PreTrainedModel, watchers: dict[str, Callable[[torch.Tensor], None]]) -> Iterator[None]:
    """Inside the block, each site shows its state [batch, tokens, width] to its watcher as soon as it is computed.

    Nothing is kept, so a watcher that writes states away needs memory for one site at a time. Raises as `reading` does.
    """

    def show(site: str, state: torch.Tensor) -> torch.Tensor:
        watchers[site](state)
        return state

    with _hooked(model, {site: show for site in watchers}):
        yield


@contextlib.contextmanager
def replacing(model: PreTrainedModel, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Inside the block, each site gives `change(state)` [batch, tokens, width] in place of `state`.

    Raises BadInput for a site that the model lacks or that no pass in the block reached, and for a change of shape.
    """

    def change(site: str, old: torch.Tensor) -> torch.Tensor:
        new = changes[site](old)
        if new.shape != old.shape:
            raise BadInput(
                f"Expected a state of shape {list(old.shape)} for {site}, got {list(new.shape)}; keep the shape."
            )
        return new

    with _hooked(model, {site: change for site in changes}):
        yield


@contextlib.contextmanager
def _hooked(model: PreTrainedModel, actions: dict[str, Callable[[str, torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    places = resolve_all(model, list(actions))
    fired: set[str] = set()
    batch_and_tokens: list[int] = []

    def note_shape(_block: Any, inputs: tuple[Any, ...]) -> None:
        batch_and_tokens[:] = inputs[0].shape[:2]

    def hook_for(site: str, place: Place) -> Callable[..., Any]:
        def hook(_module: Any, inputs: tuple[Any, ...], output: Any = None) -> Any:
            fired.add(site)
            state = place.read(inputs, output)
            # OPT's MLP, routers and experts see their tokens without batches
            shaped = state if state.ndim == 3 else state.view(*batch_and_tokens, -1)
            changed = actions[site](site, shaped)
            given = output if isinstance(output, tuple) else (output,)
            if changed is shaped and (not shaped.requires_grad or any(shaped is each for each in given)):
                return None
            # A view is put back too, so that what follows depends on it and gradients reach it
            return place.write(inputs, output, changed.to(state.device).reshape(state.shape))

        return hook

    handles = [blocks(model)[0].register_forward_pre_hook(note_shape)]
    for site, place in places.items():
        register = place.module.register_forward_pre_hook if place.before else place.module.register_forward_hook
        handles.append(register(hook_for(site, place)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    silent = [site for site in actions if site not in fired]
    if silent:
        raise BadInput(
            f"Expected a forward pass to reach {', '.join(silent)}, but none did; leave out sites that do not run."
        )
