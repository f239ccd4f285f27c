"""How much of what a donor reads the target has tokens for."""

import pytest
from grafts import bpe

from stages.anatomy.coverage import coverage
from stages.specialize import character_tokenizer


def test_one_tokenizer_lacks_nothing():
    found = coverage(bpe(), bpe(), ["What is 12 + 30?"])
    assert (found.same, found.lacking) == (True, 0.0)
    assert found.tokens == len(bpe()("What is 12 + 30?").input_ids)


def test_bytes_spell_every_character_and_characters_do_not_spell_merged_tokens():
    text = "What is 12 + 30?"
    assert coverage(bpe(), character_tokenizer(), [text]).lacking == 0
    found = coverage(character_tokenizer(), bpe(), [text])
    merged = [token for token in bpe().convert_ids_to_tokens(bpe()(text).input_ids) if len(token) > 1]
    assert found.ways["decomposed"] == len(merged) > 0
    assert found.lacking == pytest.approx(len(merged) / found.tokens)


def test_a_token_counts_as_often_as_it_is_read_and_unknown_ones_spell_nothing():
    once, twice = (coverage(bpe(), character_tokenizer(), ["ab é"] * times) for times in (1, 2))
    assert once.tokens == 3
    assert twice.ways == {way: 2 * count for way, count in once.ways.items()}


def test_where_nothing_is_read_no_share_is_lacking():
    assert coverage(bpe(), character_tokenizer(), ["é"]).lacking is None
