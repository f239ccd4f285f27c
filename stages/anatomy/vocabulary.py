"""One tokenizer's tokens spelled in another's."""

import torch
from transformers import PreTrainedTokenizerBase


def shared(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether both give every token the same id, so that ids of one can be read as the other's."""
    return one.get_vocab() == other.get_vocab() and one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


def texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The characters that each token adds to a text, in order of id; special tokens add none.

    A token is decoded behind another one, since some tokenizers drop the space of a text's first token. A token that
    is part of a character only is the replacement character.
    """
    anchor = tokenizer("a", add_special_tokens=False).input_ids[-1:]
    prefix = tokenizer.decode(anchor)
    special = set(tokenizer.all_special_ids)
    decoded = tokenizer.batch_decode([[*anchor, i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return ["" if i in special else text[len(prefix) :] for i, text in enumerate(decoded)]


def spelling(
    target: PreTrainedTokenizerBase, donor: PreTrainedTokenizerBase, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The donor's ids for each of the target's `size` tokens: ids [n] and starts [size + 1], both int32.

    Exact for donors whose tokens are characters or bytes; for others the text is the same, cut where the target cuts.
    """
    ids = donor(texts(target), add_special_tokens=False).input_ids
    ids += [[]] * (size - len(ids))
    starts = torch.tensor([0, *(len(row) for row in ids[:size])]).cumsum(0)
    return torch.tensor([i for row in ids[:size] for i in row], dtype=torch.int32), starts.to(torch.int32)
