"""How much of what a donor reads a target has tokens of its own for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from stages.anatomy.correspondence import HOW, corresponding
from stages.anatomy.vocabulary import shared

_LACKING = ("missing", "decomposed")


@dataclass(frozen=True)
class Coverage:
    """The donor's tokens in some texts, by how the target spells them."""

    same: bool
    """Whether both have one tokenizer, and nothing can be lacking."""
    ways: Mapping[str, int]
    """Occurrences by `HOW`; the donor's unknown token, which spells nothing, is left out."""

    @property
    def tokens(self) -> int:
        """All occurrences."""
        return sum(self.ways.values())

    @property
    def lacking(self) -> float | None:
        """The share that no single token of the target spells; None where the donor read nothing."""
        return sum(self.ways[way] for way in _LACKING) / self.tokens if self.tokens else None


def coverage(target: PreTrainedTokenizerBase, donor: PreTrainedTokenizerBase, texts: Sequence[str]) -> Coverage:
    """How the target spells each token that the donor reads in `texts`.

    A token counts as often as it occurs, since a vocabulary that the capability never uses needs no embeddings.
    """
    read = torch.tensor([i for ids in donor(list(texts), add_special_tokens=False).input_ids for i in ids]).long()
    read = read[read != donor.unk_token_id] if donor.unk_token_id is not None else read
    if shared(target, donor):
        return Coverage(True, dict.fromkeys(HOW, 0) | {"exact": len(read)})
    how = corresponding(donor, target).how.long()
    counts = torch.bincount(how[read], minlength=len(HOW)).tolist()
    return Coverage(False, dict(zip(HOW, counts, strict=True)))
