"""What a model answers by itself: the likeliest token every time, up to the end of the line."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from stages.anatomy.encoding import batches
from stages.errors import BadInput

_BUDGET = 512  # padded tokens a batch


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], tokens: int
) -> list[str]:
    """The greedy continuation of each prompt, of at most `tokens` tokens, as the model gives it: with the space before
    it, and without anything after its first line that has words.

    Raises BadInput for a prompt without tokens, and for one that leaves no room for an answer.
    """
    rows = [list(ids) for ids in tokenizer(list(prompts)).input_ids]
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for ids in rows:
        if not ids or len(ids) + tokens > (longest or len(ids) + tokens):
            room = f"1 to {longest - tokens}" if longest else "one or more"
            raise BadInput(f"Expected a prompt of {room} tokens, got {len(ids)}; give another.")
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = tokenizer.eos_token_id if ends is None else ends
    pad = tokenizer.pad_token_id
    filler = pad if pad is not None else (ends[0] if isinstance(ends, list) else ends) or 0
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=ends, pad_token_id=filler)
    found: dict[int, str] = {}
    for group in batches([len(ids) + tokens for ids in rows], _BUDGET):
        width = max(len(rows[i]) for i in group)
        padded = torch.tensor([[filler] * (width - len(rows[i])) + rows[i] for i in group], device=model.device)
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in group], device=model.device)
        line = _Line(tokenizer, width)
        told = model.generate(  # type: ignore[operator]
            padded, attention_mask=mask, generation_config=settings, stopping_criteria=[line]
        )
        for i, said in zip(group, tokenizer.batch_decode(told[:, width:], skip_special_tokens=True), strict=True):
            found[i] = _first_line(said)
    return [found[i] for i in range(len(rows))]


def begins(answer: str, expected: str) -> bool:
    """Whether an answer begins as expected, but for space around."""
    return answer.strip().startswith(expected.strip())


def mentions(answer: str, expected: str) -> bool:
    """Whether the expected words occur in an answer, whatever their case, and not as a part of longer ones."""
    told, wanted = answer.casefold(), expected.strip().casefold()
    at = told.find(wanted)
    while at >= 0 and wanted:
        around = told[at - 1 : at] + told[at + len(wanted) : at + len(wanted) + 1]
        if not any(sign.isalnum() for sign in around):
            return True
        at = told.find(wanted, at + 1)
    return False


class _Line(StoppingCriteria):
    """Ends a row once a line with words in it is complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int):
        self.tokenizer, self.start = tokenizer, start

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:  # type: ignore[override]
        """[batch], whether each row has ended."""
        told = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        return torch.tensor(["\n" in each.lstrip() for each in told], device=input_ids.device)


def _first_line(told: str) -> str:
    """Up to the end of the first line that has words."""
    lead = len(told) - len(told.lstrip())
    return told[:lead] + told[lead:].split("\n")[0]
