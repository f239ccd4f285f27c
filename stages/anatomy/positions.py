"""Positions of prompts and texts by what they are: places from the beginning or the end, numbers, all but the first."""

from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from stages.anatomy.encoding import Batch
from stages.anatomy.vocabulary import texts
from stages.errors import BadInput

Position = int | Literal["but_first", "numbers"]
"""0 is the first token and -1 the last before the answer, or a text's last that is read; `numbers` are the tokens up to
there that hold a digit: an addition's operands."""


def digits_of(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """[vocabulary], whether a token adds a digit to a text."""
    return torch.tensor([any(character.isdigit() for character in text) for text in texts(tokenizer)])


def positions_at(
    position: Position, answers: Sequence[Batch], told: Sequence[Batch], digits: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """For each batch of answers, then of texts, [batch, tokens]: whether a token stands at `position`.

    An item too short for it has none. `digits` is what `digits_of` gives, needed for `numbers`. Raises BadInput when no
    prompt has such a position.
    """
    masks = []
    for number, batch in enumerate([*answers, *told]):
        column = torch.arange(batch.ids.shape[1])
        reduced = "amin" if number < len(answers) else "amax"
        last = torch.zeros(len(batch.ids), dtype=torch.long)
        last = last.scatter_reduce(0, batch.row, batch.column, reduced, include_self=False)[:, None]
        if position == "but_first":
            masks.append((column > 0).expand(batch.ids.shape))
        elif position == "numbers":
            if digits is None:
                raise BadInput("Expected to be told which tokens are digits for the positions 'numbers', got nothing.")
            masks.append(digits[batch.ids] & (column <= last))
        else:
            masks.append((column == (position if position >= 0 else last + 1 + position)).expand(batch.ids.shape))
    if answers and not any(mask.any() for mask in masks[: len(answers)]):
        raise BadInput(f"Expected a prompt with a position {position!r}, got none; name one that the prompts have.")
    return masks
