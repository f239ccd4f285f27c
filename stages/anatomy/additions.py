"""New tokens in a tokenizer that is there already."""

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase

from stages.anatomy.vocabulary import texts
from stages.errors import BadInput


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> list[int]:
    """Adds `tokens` in place; gives their ids, which go on from the last one.

    A new token is read wherever its characters stand, inside a longer word too, before the vocabulary's own rules.
    Raises BadInput, with the tokenizer as it was, for a token that is in the vocabulary or empty, and for one that the
    tokenizer would not tell as it was written, as where single letters stand for bytes.
    """
    known = set(texts(tokenizer))
    for token in tokens:
        if not token or token in known or token in tokenizer.get_vocab():
            got = f"{token!r}, which it has" if token else "an empty one"
            raise BadInput(f"Expected tokens that the target's tokenizer lacks, got {got}; leave it out of add.")
        if (told := _told(tokenizer, token)) != token.strip():
            raise BadInput(
                f"Expected tokens that the target's tokenizer can write, got {token!r}, which it would write as "
                f"{told!r}; leave it out of add."
            )
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    return list(range(first, len(tokenizer)))


def lacking(tokenizer: PreTrainedTokenizerBase, donor: PreTrainedTokenizerBase, most: int) -> list[str]:
    """The first `most` texts that a token of the donor spells and none of `tokenizer` does, which could write them.

    Raises BadInput where the donor has none.
    """
    known = set(texts(tokenizer)) | set(tokenizer.get_vocab())
    told = (text for text in dict.fromkeys(texts(donor)) if text not in known and "�" not in text)
    shown = (text for text in told if text.strip().isprintable() and text.strip())
    found = list(itertools.islice((text for text in shown if _told(tokenizer, text) == text.strip()), most))
    if not found:
        raise BadInput("Expected a donor with tokens that the target lacks, got none; name the tokens in add.")
    return found


def _told(tokenizer: PreTrainedTokenizerBase, token: str) -> str:
    """What `tokenizer` would write for a token of that name, without space around it."""
    inner: Any = tokenizer.backend_tokenizer
    return (token if inner.decoder is None else inner.decoder.decode([token])).strip()
