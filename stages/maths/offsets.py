"""Which token of one tokenizer stands for a token of another, by the characters that they hold."""

import torch
from jaxtyping import Int
from torch import Tensor


def donor_rows(
    target_offsets: Int[Tensor, "target_tokens 2"],
    target_starts: Int[Tensor, "prompts_and_end"],
    donor_offsets: Int[Tensor, "donor_tokens 2"],
    donor_starts: Int[Tensor, "prompts_and_end"],
) -> Int[Tensor, "target_tokens"]:
    """For each target token, the row of the donor's token that holds its last character; -1 where there is none.

    Offsets are half-open character ranges in a prompt's text, in order; prompt p has rows starts[p] to starts[p + 1].
    Of several donor tokens that share the character, bytes of it, the last is taken; where no donor token holds it,
    the last one before it. A donor token may reach beyond the target's, and then knows characters that follow.
    """
    span = int(torch.cat([target_offsets.flatten(), donor_offsets.flatten()]).max()) + 2
    target_prompt = _prompts(target_starts)
    begins = _prompts(donor_starts) * span + donor_offsets[:, 0]
    last = target_prompt * span + target_offsets[:, 1] - 1
    rows = torch.searchsorted(begins, last, right=True) - 1
    holds = (rows >= donor_starts[target_prompt]) & (target_offsets[:, 1] > target_offsets[:, 0])
    return torch.where(holds, rows, -1)


def _prompts(starts: Tensor) -> Tensor:
    """The prompt of each row."""
    return torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
