"""Corrupted prompts keep the shape and the answer of the clean ones."""

import pytest
import torch

from stages.anatomy.contrast import contrast, partners
from stages.anatomy.encoding import Encoded, encode
from stages.errors import BadInput
from tests.families import tokenizer

PROMPTS = ["1 + 2 =", "10 + 2 =", "3 + 5 =", "2 plus 2 is", "4 + 4 ="]
ENCODED = encode(tokenizer(), list(zip(PROMPTS, [" 3.", " 12.", " 8.", " 4.", " 8."], strict=True)))


def told(encoded: Encoded) -> str:
    return tokenizer().decode(encoded.ids)


def test_partners_differ_in_digits_alone_and_keep_the_clean_answer():
    pairs = partners(PROMPTS, ENCODED, 5)
    assert [(told(clean), told(corrupted)) for clean, corrupted in pairs] == [
        ("1 + 2 = 3.", "3 + 5 = 3."),
        ("3 + 5 = 8.", "1 + 2 = 8."),  # not 4 + 4, whose answer is the same
        ("4 + 4 = 8.", "1 + 2 = 8."),
    ]
    assert len(partners(PROMPTS, ENCODED, 1)) == 1


def test_rows_of_both_sides_correspond():
    pairs = partners(PROMPTS, ENCODED, 5)
    for budget in (1, 100):
        both = contrast(pairs, budget)
        assert len(both.clean) == len(both.corrupted) == (3 if budget == 1 else 1)
        for clean, corrupted in zip(both.clean, both.corrupted, strict=True):
            for field in ("row", "column", "item", "following"):
                assert torch.equal(getattr(clean, field), getattr(corrupted, field))
            assert clean.ids.shape == corrupted.ids.shape
            for row, item in zip(clean.row.tolist(), clean.item.tolist(), strict=True):
                assert clean.ids[row].tolist()[: len(pairs[item][0].ids) - 1] == list(pairs[item][0].ids[:-1])
                assert corrupted.ids[row].tolist()[: len(pairs[item][1].ids) - 1] == list(pairs[item][1].ids[:-1])


def test_what_has_no_partner_or_another_length_is_one_sentence():
    with pytest.raises(BadInput, match="Expected prompts that differ in their digits alone, got none among 2"):
        partners(PROMPTS[:2], ENCODED[:2], 2)
    with pytest.raises(BadInput, match="Expected a clean and a corrupted prompt of equal token count with one answer"):
        contrast([(ENCODED[0], ENCODED[1])], 100)
