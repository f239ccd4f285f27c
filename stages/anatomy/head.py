"""Next-token logits where they are read, without those of all other positions."""

import contextlib
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel


def logits_at(model: PreTrainedModel, ids: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The logits [positions, vocabulary] of one pass over `ids` [batch, tokens], at `row` and `column` [positions].

    The model's own forward computes them, so that whatever it does to its head's output (soft caps, scales) is done;
    its head sees the chosen states alone. For most vocabularies the others' logits would cost more than the blocks.
    """
    with _picked(model, row, column):
        return model(input_ids=ids.to(model.device), use_cache=False).logits[0]


@contextlib.contextmanager
def _picked(model: PreTrainedModel, row: torch.Tensor, column: torch.Tensor) -> Iterator[None]:
    def pick(_module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0][row, column][None],)

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
