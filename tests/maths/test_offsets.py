"""Tokens of two tokenizers stand beside each other by the characters that they hold."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.maths.offsets import donor_rows

cuts = st.lists(st.integers(1, 4), min_size=1, max_size=12)


def offsets(lengths: list[int]) -> list[tuple[int, int]]:
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def rows(target: list[list[tuple[int, int]]], donor: list[list[tuple[int, int]]]) -> list[int]:
    def packed(prompts: list[list[tuple[int, int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.tensor([0, *map(len, prompts)]).cumsum(0)
        return torch.tensor([each for prompt in prompts for each in prompt]), starts

    return donor_rows(*packed(target), *packed(donor)).tolist()


@settings(max_examples=100, deadline=None)
@given(prompts=st.lists(cuts, min_size=1, max_size=4))
def test_a_tokenizer_beside_itself_gives_each_token_its_own_row(prompts):
    told = [offsets(lengths) for lengths in prompts]
    assert rows(told, told) == list(range(sum(map(len, told))))


@settings(max_examples=100, deadline=None)
@given(prompts=st.lists(st.tuples(cuts, cuts), min_size=1, max_size=4))
def test_each_row_holds_the_token_s_last_character_in_the_same_prompt(prompts):
    target = [offsets(mine) for mine, _ in prompts]
    donor = [offsets([*theirs, 50]) for _, theirs in prompts]  # the donor's last token reaches the end of any prompt
    flat = [(p, begin, end) for p, told in enumerate(donor) for begin, end in told]
    asked = [(p, end) for p, told in enumerate(target) for _, end in told]
    for (prompt, end), row in zip(asked, rows(target, donor), strict=True):
        where, begin, stop = flat[row]
        assert where == prompt and begin < end <= stop


def test_character_tokens_give_the_last_character_of_a_word():
    assert rows([[(0, 3), (3, 5)]], [[(i, i + 1) for i in range(5)]]) == [2, 4]


def test_bytes_of_one_character_give_the_last_byte():
    assert rows([[(0, 1), (1, 2)]], [[(0, 1), (0, 1), (0, 1), (1, 2)]]) == [2, 3]


def test_a_character_between_donor_tokens_gives_the_token_before_it_and_none_where_there_is_none():
    assert rows([[(0, 1), (1, 3), (3, 4)]], [[(1, 3), (4, 6)]]) == [-1, 0, 0]


def test_a_token_without_characters_has_no_row():
    assert rows([[(0, 0), (0, 2)]], [[(0, 2)]]) == [-1, 0]


def test_prompts_do_not_reach_into_each_other():
    assert rows([[(0, 2)], [(0, 1), (1, 2)]], [[(0, 2)], [(1, 2)]]) == [0, -1, 1]
