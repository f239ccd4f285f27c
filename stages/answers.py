"""What a model answers by itself: the likeliest token every time, up to the end of the line."""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.decoding import generate
from stages.errors import BadInput


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
    stops = {ends} if isinstance(ends, int) else set(ends or ())

    def finished(_: int, new: Sequence[int]) -> bool:
        return len(new) == tokens or new[-1] in stops or "\n" in told(new).lstrip()

    def told(new: Sequence[int]) -> str:
        return str(tokenizer.decode(new, skip_special_tokens=True))

    return [_first_line(told(said.tokens)) for said in generate(model, rows, finished)]


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


def _first_line(told: str) -> str:
    """Up to the end of the first line that has words."""
    lead = len(told) - len(told.lstrip())
    return told[:lead] + told[lead:].split("\n")[0]
