"""What each head attends to while a model runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.anatomy.blocks import attention_of, blocks
from stages.errors import BadInput


@contextlib.contextmanager
def attending(model: PreTrainedModel, see: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Inside the block, a pass shows `see` each block's index and its pattern [batch, heads, queries, keys].

    A pattern is what the model's own attention gives: grouped queries, fused projections, windows and soft caps are
    in it, and each row over the keys sums to 1. Fused kernels keep none, so attention is computed eagerly inside the
    block and as before afterwards. Raises BadInput when no attention gave a pattern.
    """
    fired: set[int] = set()

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if isinstance(found, torch.Tensor) and found.ndim == 4:
                fired.add(layer)
                see(layer, found)

        return hook

    modules = {layer: attention_of(block) for layer, block in enumerate(blocks(model))}
    with _eager(model), contextlib.ExitStack() as stack:
        for layer, module in modules.items():
            if module is not None:
                stack.callback(module.register_forward_hook(hook_for(layer)).remove)
        yield
    if not fired:
        raise BadInput(
            f"Expected attention that tells its weights, got {type(model).__name__}, which tells none in a pass; "
            "set analyze.prompts and analyze.texts to 0 for such models."
        )


@contextlib.contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block attention is computed step by step, as only then its weights exist."""
    inner = {key: getattr(model.config, key) for key in model.config.sub_configs}
    before = {"": model.config._attn_implementation}
    before |= {key: config._attn_implementation for key, config in inner.items() if config is not None}
    if "eager" in before.values() and len(set(before.values())) == 1:
        yield
        return
    _set(model, {"": "eager"})
    try:
        yield
    finally:
        _set(model, before)


def _set(model: PreTrainedModel, implementations: dict[str, str]) -> None:
    """Of the model itself, `""`, and of each configuration inside its own; all alike where only one is given."""
    model.set_attn_implementation(implementations if len(implementations) > 1 else implementations[""])
    if model.config._attn_implementation != implementations[""]:  # Falcon reads it there but refuses to be told
        model.config._attn_implementation = implementations[""]
