"""Every generated pair says what its category says: judged by reading the prompts anew."""

import itertools
import random
import re

import pytest

from stages.capabilities.arithmetic import fact
from stages.capabilities.domains import DOMAINS
from stages.capabilities.questions import split_of
from stages.contrasts.categories import categories
from stages.contrasts.pair import Category, Words, drawn
from stages.errors import BadInput

CATEGORIES = {each.name: each for each in categories(tuple(DOMAINS))}
LANGUAGE = ("agreement", "negation", "number", "entity")
BOTH = [(name, moves) for name in CATEGORIES for moves in (True, False)]
PLURAL_VERBS = (" are", " were", " have")


def is_plural(noun: str) -> bool:
    return noun in ("children", "men", "women") or (noun.endswith("s") and noun != "glass")


def changed(one: str, other: str) -> tuple[list[str], list[str]]:
    """The words of each from the first to the last that differs."""
    a, b = (re.findall(r"\w+|[^\w\s]|\n", each) for each in (one, other))
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return a, b


@pytest.mark.parametrize(("name", "moves"), BOTH)
def test_there_are_thousands_of_distinct_pairs(name, moves):
    pairs = drawn(CATEGORIES[name], moves, 3000, 0)
    assert len({frozenset((pair.first, pair.second)) for pair in pairs}) == len({pair.id for pair in pairs}) == 3000
    assert all(pair.first != pair.second and (pair.category, pair.moves) == (name, moves) for pair in pairs)
    assert len({pair.cluster for pair in pairs}) == len(CATEGORIES[name].templates) >= 16


@pytest.mark.parametrize(("name", "moves"), BOTH)
def test_pairs_are_the_same_again_and_others_by_another_seed(name, moves):
    one, again, other = (drawn(CATEGORIES[name], moves, 40, seed) for seed in (1, 1, 2))
    assert one == again
    assert not {pair.id for pair in one} >= {pair.id for pair in other}
    assert drawn(CATEGORIES[name], moves, 10, 1) == one[:10]


@pytest.mark.parametrize(("name", "moves"), BOTH)
def test_right_and_wrong_change_places_where_the_pair_moves_and_else_stay(name, moves):
    for pair in drawn(CATEGORIES[name], moves, 200, 3):
        first, second = pair.sides
        assert (first.prompt, second.prompt) == (pair.first, pair.second)
        assert (second.right, second.wrong) == ((first.wrong, first.right) if moves else (first.right, first.wrong))
        assert not first.right.startswith(first.wrong) and not first.wrong.startswith(first.right)
        assert all(re.fullmatch(r" \S+( \S+)*", each) for each in (first.right, first.wrong))
        for side in (first, second):
            assert side.prompt == side.prompt.strip() and not set("{}|") & set(side.prompt) and side.prompt.isascii()


@pytest.mark.parametrize("name", CATEGORIES)
def test_the_two_prompts_of_a_moving_pair_differ_in_one_place(name):
    for pair in drawn(CATEGORIES[name], True, 400, 4):
        one, other = changed(pair.first, pair.second)
        swapped = name == "entity" and len(one) > 1
        if swapped:
            assert (one[0], one[-1], one[1:-1]) == (other[-1], other[0], other[1:-1])
        else:
            assert (len(one), len(other)) == ((0, 1) if name == "negation" else (1, 1))


@pytest.mark.parametrize("name", LANGUAGE)
def test_what_does_not_matter_is_one_word(name):
    for pair in drawn(CATEGORIES[name], False, 400, 4):
        assert [len(each) for each in changed(pair.first, pair.second)] == [1, 1]


@pytest.mark.parametrize("moves", [True, False])
def test_a_verb_agrees_with_the_first_noun(moves):
    seen = set()
    for pair in drawn(CATEGORIES["agreement"], moves, 1000, 5):
        for side in pair.sides:
            head, other = re.findall(r"\b[Tt]he (\w+)", side.prompt)
            assert is_plural(head) == (side.right in PLURAL_VERBS) != (side.wrong in PLURAL_VERBS)
            assert head != other
            seen.add((is_plural(head), is_plural(other)))
            assert side.prompt[0].isupper()
    assert len(seen) == 4  # with and against the noun between


def stated(prompt: str) -> tuple[str, bool]:
    """The quality that is said first, and whether it is denied."""
    found = re.search(r" is (?!a fact)(?:(?:really|certainly|clearly|definitely|surely) )?(not )?(\w+)\b", prompt)
    assert found
    return found[2], bool(found[1])


@pytest.mark.parametrize("moves", [True, False])
def test_what_is_denied_is_not_so(moves):
    opposites = [{"open", "closed"}, {"locked", "unlocked"}, {"on", "off"}, {"true", "false"}, {"legal", "illegal"},
                 {"visible", "invisible"}, {"complete", "incomplete"}, {"wet", "dry"}, {"awake", "asleep"},
                 {"alive", "dead"}, {"present", "absent"}, {"married", "single"}]  # fmt: skip
    for pair in drawn(CATEGORIES["negation"], moves, 1000, 6):
        told = [stated(side.prompt) for side in pair.sides]
        assert told[0][0] == told[1][0] and (told[0][1] != told[1][1]) == moves
        for side, (quality, denied) in zip(pair.sides, told, strict=True):
            if side.right in (" Yes", " No"):
                assert (side.right == " No") == denied and side.prompt.endswith((" Answer:", "A:", "\nAnswer:"))
                assert len(re.findall(rf"\b{quality}\b", side.prompt)) == 2
            else:
                assert (side.right.strip() == quality) != denied
                assert {side.right.strip(), side.wrong.strip()} in opposites


@pytest.mark.parametrize("moves", [True, False])
def test_a_noun_is_plural_after_a_word_for_more_than_one(moves):
    one = {"one", "another", "this", "every", "each"}
    more = {"two", "three", "four", "five", "seven", "ten", "several", "many", "these", "those"}
    seen = set()
    for pair in drawn(CATEGORIES["number"], moves, 1000, 7):
        for side in pair.sides:
            words = side.prompt.split()
            quantity = [word for word in words[2:] if word in one | more]
            assert len(quantity) == 1 and words.index(quantity[0]) >= len(words) - 2
            assert is_plural(side.right.strip(" .")) == (quantity[0] in more) != is_plural(side.wrong.strip(" ."))
            seen.add(quantity[0])
    assert seen == one | more


FACT = r"(lives in|comes from|likes|plays|owns|studies|speaks|works as) ((?:the |an? )?\w+)"


@pytest.mark.parametrize("moves", [True, False])
def test_who_is_meant_is_who_it_was_said_of(moves):
    facts = 0
    for pair in drawn(CATEGORIES["entity"], moves, 1000, 8):
        for side in pair.sides:
            said = {(verb, what): who for who, verb, what in re.findall(rf"([A-Z][a-z]+) {FACT}", side.prompt)
                    if who != "Who"}  # fmt: skip
            asked = re.search(rf"(?:person|one|Question:) [Ww]ho {FACT}", side.prompt)
            if asked:
                facts += 1
                assert len(said) == 2 and side.right == f" {said[asked[1], asked[2]]}"
                assert {side.right, side.wrong} == {f" {who}" for who in said.values()}
            else:
                names = re.findall(r"[A-Z][a-z]+", side.prompt.split("day. ")[-1])[:2]
                last = re.search(r"belongs|answered|loser|younger|last to|guest", side.prompt)
                assert side.right == f" {names[1 if last else 0]}" and side.wrong == f" {names[0 if last else 1]}"
    assert 400 < facts < 1800


@pytest.mark.parametrize("moves", [True, False])
def test_sums_and_differences_are_right_and_none_was_trained_on(moves):
    for pair in drawn(CATEGORIES["operand"], moves, 1500, 9):
        operation = pair.cluster.split(": ")[1]
        for side in pair.sides:
            a, b = map(int, re.findall(r"\d+", side.prompt))
            if operation == "subtraction":
                a, b = max(a, b), min(a, b)
            assert side.right == f" {a + b if operation == 'addition' else a - b}."
            assert split_of(fact(operation, a, b)) == "test"
            assert len(side.right) == len(side.wrong)


@pytest.mark.parametrize("name", list(DOMAINS))
def test_no_pair_asks_what_training_shows(name):
    category = CATEGORIES["operand" if name == "arithmetic" else f"operand_{name}"]
    trained = {item.prompt for item in itertools.islice(DOMAINS[name].stream(0, framed=0.0), 20_000)}
    asked = {side.prompt for moves in (True, False) for pair in drawn(category, moves, 1000, 2) for side in pair.sides}
    assert not asked & trained


def test_asking_for_more_than_there_is_is_refused():
    one = Category("few", ["a", "b"], lambda template, _: Words(template, "c", " x", " y"), lambda *_: Words(*"abcd"))
    assert len(drawn(one, True, 2, 0)) == 2
    with pytest.raises(BadInput, match="Expected 3 distinct pairs of few that move, got 2; ask for fewer"):
        drawn(one, True, 3, 0)


def test_a_pair_and_its_exchange_count_as_one():
    def flip(_: str, rng: random.Random) -> Words:
        return Words("a", "b", " x", " y") if rng.random() < 0.5 else Words("b", "a", " y", " x")

    with pytest.raises(BadInput, match="got 1"):
        drawn(Category("flip", ["t"], flip, flip), True, 2, 0)
