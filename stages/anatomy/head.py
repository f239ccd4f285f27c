"""Next-token logits where they are read, without those of all other positions."""

import contextlib
from collections.abc import Iterator

import torch
from transformers import Cache, DynamicCache, PreTrainedModel


def logits_at(
    model: PreTrainedModel, ids: torch.Tensor, row: torch.Tensor, column: torch.Tensor, past: Cache | None = None
) -> torch.Tensor:
    """The logits [positions, vocabulary] of one pass over `ids` [batch, tokens], at `row` and `column` [positions].

    The model's own forward computes them, so that whatever it does to its head's output (soft caps, scales) is done;
    its head sees the chosen states alone. For most vocabularies the others' logits would cost more than the blocks.
    `past` is the cache of what every row goes on from, and is used up.
    """
    with _picked(model, row, column):
        output = model(input_ids=ids.to(model.device), past_key_values=past, use_cache=past is not None)
    return output.logits[0]


def cached(model: PreTrainedModel, ids: torch.Tensor) -> Cache | None:
    """The cache after a pass over `ids` [batch, tokens]; None when this architecture's is not one of plain rows."""
    with _picked(model, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)):
        past = getattr(model(input_ids=ids.to(model.device), use_cache=True), "past_key_values", None)
    return past if isinstance(past, DynamicCache) else None


@contextlib.contextmanager
def _picked(model: PreTrainedModel, row: torch.Tensor, column: torch.Tensor) -> Iterator[None]:
    def pick(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][row, column][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
