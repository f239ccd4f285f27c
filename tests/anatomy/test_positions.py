"""Positions by what they are, in prompts of several lengths and in texts."""

import pytest

from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.positions import digits_of, positions_at
from stages.errors import BadInput
from tests.families import tokenizer

PROMPTS = [("1+70 =", " 71"), ("1+70 =", " 79"), ("x =", " 30"), ("12+4 is", "16")]
TEXTS = ["ab 3 c", "4"]


def marked(position) -> dict[str, str]:
    """Each distinct row's text, what stands at `position` in capitals X."""
    cut = tokenizer()
    told = texts_of([cut(f"{text}.").input_ids for text in TEXTS], 40)
    answers = answers_of(encode(cut, PROMPTS), 40)
    found = {}
    for batch, mask in zip([*answers, *told], positions_at(position, answers, told, digits_of(cut)), strict=True):
        for ids, flags in zip(batch.ids.tolist(), mask.tolist(), strict=True):
            characters = [cut.decode([i]) for i in ids]
            length = max(i for i, token in enumerate(ids) if token) + 1
            shown = zip(characters[:length], flags[:length], strict=True)
            found["".join(characters[:length])] = "".join("X" if flag else c for c, flag in shown)
    return found


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, {"1+70 = 7": "X+70 = 7", "x = 3": "X = 3", "12+4 is1": "X2+4 is1", "ab 3 c": "Xb 3 c", "4": "X"}),
        (-1, {"1+70 = 7": "1+70 X 7", "x = 3": "x X 3", "12+4 is1": "12+4 iX1", "ab 3 c": "ab 3 X", "4": "X"}),
        (-4, {"1+70 = 7": "1+X0 = 7", "x = 3": "x = 3", "12+4 is1": "12+X is1", "ab 3 c": "abX3 c", "4": "4"}),
        ("numbers", {"1+70 = 7": "X+XX = 7", "x = 3": "x = 3", "12+4 is1": "XX+X is1", "ab 3 c": "ab X c", "4": "X"}),
        ("but_first", {"x = 3": "xXXXX", "4": "4"}),
    ],
)
def test_a_position_is_counted_from_the_prompt_s_ends_and_never_in_the_answer(position, expected):
    found = marked(position)
    assert {row: found[row] for row in expected} == expected


def test_a_position_that_no_prompt_has_is_refused():
    with pytest.raises(BadInput, match="Expected a prompt with a position -9, got none; name one"):
        marked(-9)


def test_numbers_need_to_know_the_digits():
    with pytest.raises(BadInput, match="Expected to be told which tokens are digits"):
        positions_at("numbers", answers_of(encode(tokenizer(), PROMPTS), 40), [])
