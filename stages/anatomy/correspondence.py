"""Which tokens of a donor spell each token of a target, by the bytes that they add to a text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stages.anatomy.vocabulary import texts

HOW = ("missing", "role", "exact", "normalised", "decomposed")
"""How a token was found: not at all; the special token of the same role; the token of the same bytes, spelt alike in
both vocabularies or differently; the sequence of tokens of the same bytes."""
ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
_ANCHOR = "a"


@dataclass(frozen=True)
class Correspondence:
    """The donor's tokens for each of a target's."""

    ids: Int[Tensor, "letters"]
    """Donor ids, token after token."""
    starts: Int[Tensor, "tokens_and_end"]
    """Where each target token's ids begin, and the number of ids."""
    how: UInt8[Tensor, "tokens"]
    """Index into `HOW`."""

    def __getitem__(self, token: int) -> list[int]:
        """The donor's ids for one target token; none where it is missing."""
        return self.ids[self.starts[token] : self.starts[token + 1]].tolist()

    @property
    def counts(self) -> dict[str, int]:
        """Target tokens found in each way."""
        return dict(zip(HOW, torch.bincount(self.how, minlength=len(HOW)).tolist(), strict=True))


def corresponding(target: PreTrainedTokenizerBase, donor: PreTrainedTokenizerBase) -> Correspondence:
    """For every target token the donor's token, or tokens, of the same bytes; by hashing, in time linear in both.

    Bytes are compared after each tokenizer's own conventions are undone (`pieces`), so ` the` is Ġthe, ▁the and the
    WordPiece the. A string that means other bytes in either vocabulary is no match. A token without a like is cut as
    the donor's tokenizer cuts its text, where that spells the same bytes, else greedily into the longest donor tokens
    (arXiv 1609.08144). Special tokens correspond by role. Missing are those of other roles, and those that the donor
    cannot spell: characters that it lacks, capitals where it lowers case.
    """
    wanted, given = pieces(target), pieces(donor)
    names, donor_names = (each.convert_ids_to_tokens(range(len(each))) for each in (target, donor))
    known: dict[bytes, int] = {}
    for token in sorted(range(len(given)), key=lambda token: (_is_byte(donor_names[token]), token)):
        if given[token]:
            known.setdefault(given[token], token)
    found: list[list[int]] = [[] for _ in wanted]
    how = torch.zeros(len(wanted), dtype=torch.uint8)
    by_name = {name: token for token, name in enumerate(donor_names)}
    rest = []
    for token, spelt in enumerate(wanted):
        like = by_name.get(names[token])
        if not spelt:
            continue
        if like is not None and given[like] == spelt:
            found[token], how[token] = [like], HOW.index("exact")
        elif spelt in known:
            found[token], how[token] = [known[spelt]], HOW.index("normalised")
        else:
            rest.append(token)
    for token, cut in zip(rest, _cut([wanted[token] for token in rest], donor, given, known), strict=True):
        if cut:
            found[token], how[token] = cut, HOW.index("decomposed")
    for role in reversed(ROLES):  # a token of two roles keeps the first
        one, other = getattr(target, role), getattr(donor, role)
        if one is not None and other is not None:
            found[one], how[one] = [other], HOW.index("role")
    starts = torch.tensor([0, *map(len, found)]).cumsum(0).to(torch.int32)
    return Correspondence(torch.tensor([i for ids in found for i in ids], dtype=torch.int32), starts, how)


def pieces(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes that each token adds to a text, in order of id; special tokens add none.

    They are those of its decoded text, behind another token. A token that is part of a character has no text, and is
    read from its name: `<0xE2>` is a byte, and under a byte-level decoder each character stands for one
    (Radford et al. 2019).
    """
    told, special = texts(tokenizer), set(tokenizer.all_special_ids)
    letters = _byte_letters()
    read = []
    for token, text in enumerate(told):
        name = tokenizer.convert_ids_to_tokens(token)
        if token in special or "�" not in text:
            read.append(text.encode())
        elif _is_byte(name):
            read.append(bytes([int(name[3:5], 16)]))
        elif all(letter in letters for letter in name):
            read.append(bytes(letters[letter] for letter in name))
        else:
            read.append(text.encode())
    return read


def _is_byte(name: str) -> bool:
    """Whether a name is a SentencePiece byte's."""
    return re.fullmatch(r"<0x[0-9A-F]{2}>", name) is not None


def _byte_letters() -> dict[str, int]:
    """The byte for which each character stands in a byte-level vocabulary: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _cut(
    wanted: Sequence[bytes], donor: PreTrainedTokenizerBase, given: Sequence[bytes], known: dict[bytes, int]
) -> list[list[int]]:
    """Donor ids that spell each of `wanted`; none where there are none."""
    cuts: list[list[int]] = [[] for _ in wanted]
    for before in ("", _ANCHOR):  # many tokenizers put a space before a text's first word, and none behind a letter
        first = donor(before, add_special_tokens=False).input_ids
        open_ = [i for i, spelt in enumerate(wanted) if not cuts[i] and "�" not in spelt.decode(errors="replace")]
        encoded = (
            donor([before + wanted[i].decode() for i in open_], add_special_tokens=False).input_ids if open_ else []
        )
        for i, ids in zip(open_, encoded, strict=True):
            rest = ids[len(first) :]
            if ids[: len(first)] == first and b"".join(given[each] for each in rest) == wanted[i]:
                cuts[i] = rest
    longest = max(map(len, known), default=0)
    return [cut or _greedy(spelt, known, longest) for cut, spelt in zip(cuts, wanted, strict=True)]


def _greedy(spelt: bytes, known: dict[bytes, int], longest: int) -> list[int]:
    """The longest known token at each place in turn; none where no token fits."""
    ids, place = [], 0
    while place < len(spelt):
        ends = range(min(len(spelt), place + longest), place, -1)
        end = next((end for end in ends if spelt[place:end] in known), None)
        if end is None:
            return []
        ids.append(known[spelt[place:end]])
        place = end
    return ids
