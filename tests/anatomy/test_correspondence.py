"""Tokens of one vocabulary in another's, for tokenizers of every convention, built here."""

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from stages.anatomy.correspondence import HOW, corresponding, pieces
from tests.families import tokenizer

CORPUS = [
    "the cat sat on the mat, and the dog sat on the cat.",
    "Über naïve cafés: 12 + 345 = 357",
    "日本語 and 😀",
] * 3
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def fast(inner: tokenizers.Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **special)


def byte_level(size: int = 320) -> PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    inner.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=special)
    )
    return fast(inner, eos_token="<|end|>", bos_token="<|end|>")


def sentence_piece(model: str) -> PreTrainedTokenizerFast:
    """Metaspace and byte fallback, as in Llama (BPE) and T5 (Unigram)."""
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    words = ["the", "cat", "sat", "on", "dog", "and", "▁the", "▁cat", "▁sat", "▁", "▁on"]
    singles = sorted({letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz.,") - {"▁"})
    if model == "bpe":
        merges = [
            ("t", "h"),
            ("th", "e"),
            ("▁", "the"),
            ("a", "t"),
            ("c", "at"),
            ("▁", "cat"),
            ("s", "at"),
            ("▁", "sat"),
        ]
        names = list(dict.fromkeys([*special, *raw, *singles, *("".join(pair) for pair in merges), "▁"]))
        vocabulary = {name: i for i, name in enumerate(names)}
        inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    else:
        names = list(dict.fromkeys([*special, *raw, *words, *singles]))
        scored = [(name, -float(len(names)) / len(name)) for name in names]
        inner = tokenizers.Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return fast(inner, **SPECIAL)


def word_piece() -> PreTrainedTokenizerFast:
    names = ["[PAD]", "[UNK]", "the", "cat", "##s", "##at", "c", "s", "t", "##h", "##e", "##a", "##t", "on", ","]
    inner = tokenizers.Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return fast(inner, unk_token="[UNK]", pad_token="[PAD]")


MADE = {
    "byte-level": byte_level(),
    "small byte-level": byte_level(270),
    "characters": tokenizer(),
    "SentencePiece BPE": sentence_piece("bpe"),
    "Unigram": sentence_piece("unigram"),
    "WordPiece": word_piece(),
}


def like(target: str, donor: str) -> dict[str, tuple[str, list[str]]]:
    """Target token → how it was found, and the donor's names for it."""
    one, other = MADE[target], MADE[donor]
    found = corresponding(one, other)
    names = one.convert_ids_to_tokens(range(len(one)))
    return {name: (HOW[found.how[i]], other.convert_ids_to_tokens(found[i])) for i, name in enumerate(names)}


@pytest.mark.parametrize("name", MADE)
def test_a_vocabulary_corresponds_to_itself_exactly(name):
    same = MADE[name]
    found = corresponding(same, same)
    assert found.counts["normalised"] == found.counts["decomposed"] == 0
    assert all(found[i] == [i] for i in range(len(same)) if HOW[found.how[i]] == "exact")
    assert found.counts["exact"] + found.counts["role"] == len(same)


@pytest.mark.parametrize("target", MADE)
@pytest.mark.parametrize("donor", MADE)
def test_whatever_is_found_spells_the_same_bytes(target, donor):
    one, other = pieces(MADE[target]), pieces(MADE[donor])
    found = corresponding(MADE[target], MADE[donor])
    assert len(found.starts) == len(one) + 1 and found.starts[-1] == len(found.ids)
    for token, how in enumerate(found.how):
        if HOW[how] not in ("missing", "role"):
            assert b"".join(other[i] for i in found[token]) == one[token] != b""
            assert (len(found[token]) > 1) == (HOW[how] == "decomposed")
    assert sum(found.counts.values()) == len(one)


@pytest.mark.parametrize(
    ("target", "donor", "token", "how", "tokens"),
    [
        ("byte-level", "SentencePiece BPE", "Ġthe", "normalised", ["▁the"]),
        ("byte-level", "Unigram", "Ġthe", "normalised", ["▁the"]),
        ("byte-level", "WordPiece", "Ġthe", "normalised", ["the"]),
        ("byte-level", "SentencePiece BPE", "Ġ", "normalised", ["▁"]),
        ("byte-level", "SentencePiece BPE", "Ċ", "normalised", ["<0x0A>"]),
        ("byte-level", "SentencePiece BPE", "a", "exact", ["a"]),
        ("byte-level", "characters", "Ġthe", "decomposed", [" ", "t", "h", "e"]),
        ("SentencePiece BPE", "byte-level", "▁the", "normalised", ["Ġthe"]),
        ("SentencePiece BPE", "byte-level", "<0xE2>", "normalised", ["â"]),
        ("SentencePiece BPE", "Unigram", "▁the", "exact", ["▁the"]),
        ("SentencePiece BPE", "Unigram", "<0xE2>", "exact", ["<0xE2>"]),
        ("SentencePiece BPE", "small byte-level", "cat", "decomposed", None),
        ("WordPiece", "byte-level", "##at", "normalised", ["at"]),
        ("WordPiece", "SentencePiece BPE", "the", "normalised", ["▁the"]),
        ("WordPiece", "SentencePiece BPE", "on", "decomposed", ["▁", "o", "n"]),
        ("characters", "WordPiece", "T", "missing", []),
        ("characters", "WordPiece", "e", "normalised", ["##e"]),
        ("characters", "byte-level", " ", "normalised", ["Ġ"]),
        ("characters", "byte-level", "<eos>", "role", ["<|end|>"]),
        ("characters", "byte-level", "<unk>", "missing", []),
        ("SentencePiece BPE", "characters", "</s>", "role", ["<eos>"]),
        ("SentencePiece BPE", "characters", "<s>", "missing", []),
    ],
)
def test_a_token_is_found_as_it_should_be(target, donor, token, how, tokens):
    found = like(target, donor)[token]
    assert found[0] == how
    assert tokens is None or found[1] == tokens


def test_a_byte_level_donor_spells_every_token_of_any_target():
    for name, target in MADE.items():
        counts = corresponding(target, MADE["small byte-level"]).counts
        assert counts["missing"] <= len(set(target.all_special_ids)), name


def test_the_donor_s_own_cut_is_taken_where_it_spells_the_bytes():
    donor, target = MADE["byte-level"], tokenizer()
    target.add_tokens(["the cats sat"])
    token = target.convert_tokens_to_ids("the cats sat")
    assert corresponding(target, donor)[token] == donor("the cats sat").input_ids


@pytest.mark.parametrize("name", MADE)
def test_the_pieces_of_a_text_spell_it(name):
    """Behind the space with which SentencePiece and WordPiece begin every text."""
    text = "the cat" if name == "WordPiece" else CORPUS[0] if name == "characters" else "".join(CORPUS)
    made = MADE[name]
    spelt = b"".join(pieces(made)[token] for token in made(text, add_special_tokens=False).input_ids)
    assert spelt.removeprefix(b" ").decode() == text


def test_results_are_small_integers_in_order_of_the_target_s_ids():
    found = corresponding(MADE["byte-level"], MADE["characters"])
    assert (found.ids.dtype, found.starts.dtype, found.how.dtype) == (torch.int32, torch.int32, torch.uint8)
    assert found.starts.diff().ge(0).all()
