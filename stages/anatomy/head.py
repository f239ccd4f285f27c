"""Next-token logits where they are read, without those of all other positions."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


def logits_at(
    model: PreTrainedModel, ids: torch.Tensor, row: torch.Tensor, column: torch.Tensor, past: Cache | None = None
) -> torch.Tensor:
    """The logits [positions, vocabulary] of one pass over `ids` [batch, tokens], at `row` and `column` [positions].

    The model's own forward computes them, so that whatever it does to its head's output (soft caps, scales) is done;
    its head sees the chosen states alone. For most vocabularies the others' logits would cost more than the blocks.
    `past` is the cache of what every row goes on from, and is used up.
    """
    return states_and_logits_at(model, ids, row, column, past)[1]


def states_and_logits_at(
    model: PreTrainedModel, ids: torch.Tensor, row: torch.Tensor, column: torch.Tensor, past: Cache | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `logits_at`, and the states [positions, width] that the head makes them from."""
    with _fed(model, lambda states: states[row, column][None]) as fed:
        output = model(input_ids=ids.to(model.device), past_key_values=past, use_cache=past is not None)
    return fed[0][0], output.logits[0]


def logits_of(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The logits [rows, vocabulary] that the model makes from states [rows, width], as its head is given them."""
    with _fed(model, lambda _: states[None]):
        return model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False).logits[0]


def logits_and_cache_at(
    model: PreTrainedModel, ids: torch.Tensor, row: torch.Tensor, column: torch.Tensor, past: Cache | None = None
) -> tuple[torch.Tensor, DynamicCache | None]:
    """As `logits_at`, and the cache after it; None when this architecture's is not one of plain rows."""
    with _fed(model, lambda states: states[row, column][None]):
        output = model(input_ids=ids.to(model.device), past_key_values=past, use_cache=True)
    cache = getattr(output, "past_key_values", None)
    return output.logits[0], cache if isinstance(cache, DynamicCache) else None


def cached(model: PreTrainedModel, ids: torch.Tensor) -> Cache | None:
    """The cache after a pass over `ids` [batch, tokens]; None when this architecture's is not one of plain rows."""
    first = torch.zeros(1, dtype=torch.long)
    return logits_and_cache_at(model, ids, first, first)[1]


def rewound(cache: DynamicCache | None, rows: torch.Tensor, tokens: int) -> DynamicCache | None:
    """The cache of `rows` as it was after their first `tokens` tokens; None for one that cannot forget.

    Those are caches that have dropped old tokens, and those of grafts whose donor spells the text. `cache` is used up.
    """
    heard = getattr(cache, "memories", {}).values()
    caches = [each for each in (cache, *(memory.cache for memory in heard)) if each is not None]
    if not caches or any(type(layer) is not DynamicLayer for each in caches for layer in each.layers):
        return None
    if cache is None or any(memory.mask is not None for memory in heard):
        return None
    cache.batch_select_indices(rows)  # type: ignore[arg-type]
    cache.crop(tokens - cache.get_seq_length())
    return cache


@contextlib.contextmanager
def _fed(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Inside the block the head is given `change(states)`, which is noted in the list."""
    fed: list[torch.Tensor] = []

    def feed(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        fed.append(change(inputs[0]))
        return (fed[-1],)

    handle = model.get_output_embeddings().register_forward_pre_hook(feed)
    try:
        yield fed
    finally:
        handle.remove()
