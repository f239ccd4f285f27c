"""Forward passes that start in the middle of a model, from states kept earlier, or that run another's block."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stages.anatomy.blocks import blocks
from stages.errors import BadInput


class _Seen(Exception):
    """Ends the probe at the first block's output."""


@contextlib.contextmanager
def resumed(model: PreTrainedModel, layer: int, states: torch.Tensor) -> Iterator[None]:
    """Inside the block, `model(input_ids=...)` lets `states` [batch, tokens, width] leave block `layer`, from 0.

    Blocks 0 to `layer` do not run; the embedding, masks and positions are computed as always, so a pass resumed from
    the model's own states gives its own logits, bit for bit. Gradients flow into `states`. Sites inside the blocks
    that are left out are never reached. Raises BadInput when the layer or the shape does not fit.
    """
    inner = blocks(model)
    if not 0 <= layer < len(inner):
        raise BadInput(f"Expected a layer from 0 to {len(inner) - 1} to resume after, got {layer}.")
    wrap = _output_form(model, inner[0])

    def skip(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return wrap(hidden_states)

    def enter(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        if states.shape != hidden_states.shape:
            raise BadInput(
                f"Expected states of shape {list(hidden_states.shape)} to resume {type(model).__name__} from, "
                f"got {list(states.shape)}; they must come from the same batch and a model of the same width."
            )
        return wrap(states.to(hidden_states))

    with contextlib.ExitStack() as stack:
        for block in inner[:layer]:
            stack.enter_context(forward_replaced(block, skip))
        stack.enter_context(forward_replaced(inner[layer], enter))
        yield


@contextlib.contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, `forward` runs in place of the module's own; its attributes stay, as some models read them."""
    own = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def swapped(model: PreTrainedModel, layer: int, block: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside the block, `block`, of another model of the same architecture, stands in place of the block `layer`."""
    return exchanged(blocks(model), str(layer), block)


@contextlib.contextmanager
def exchanged(model: nn.Module, path: str, module: nn.Module) -> Iterator[None]:
    """Inside the block, `module`, of another model of the same architecture, stands at the dotted `path` of `model`."""
    own = model.get_submodule(path)
    model.set_submodule(path, module)
    try:
        yield
    finally:
        model.set_submodule(path, own)


def _output_form(model: PreTrainedModel, block: nn.Module) -> Callable[[torch.Tensor], Any]:
    """How this architecture's blocks give their state: bare, or first in a tuple."""
    if type(block) not in _LENGTHS:
        _LENGTHS[type(block)] = _tuple_length(model, block)
    length = _LENGTHS[type(block)]
    return functools.partial(_tuple, length=length) if length else _bare


_LENGTHS: dict[type, int] = {}


def _bare(state: torch.Tensor) -> torch.Tensor:
    return state


def _tuple(state: torch.Tensor, length: int) -> tuple[Any, ...]:
    return (state, *[None] * (length - 1))


def _tuple_length(model: PreTrainedModel, block: nn.Module) -> int:
    """Elements of the tuple that a block gives on a pass of one token; 0 for a bare tensor."""
    lengths: list[int] = []

    def look(_module: Any, _inputs: Any, output: Any) -> None:
        lengths.append(0 if isinstance(output, torch.Tensor) else len(output))
        raise _Seen

    handle = block.register_forward_hook(look, prepend=True)
    try:
        with torch.no_grad(), contextlib.suppress(_Seen):
            model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    finally:
        handle.remove()
    return lengths[0]
