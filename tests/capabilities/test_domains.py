"""What every generated domain keeps to, and that its answers are right by the calendar, by fractions and by slices."""

import dataclasses
import datetime
import itertools
import random
import re
import string
from collections import Counter
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.capabilities.domains import DOMAINS, Name
from stages.capabilities.questions import Question, split_of
from stages.errors import BadInput

GENERATED = ("units", "dates", "letters")


def facts(name, split) -> set[str]:
    """Of what 3,000 draws of every operation ask, those that `split` owns."""
    domain, rng = DOMAINS[name], random.Random(1)
    drawn = (domain.draw(o, rng.choice(domain.sizes), rng).fact for o in domain.seen for _ in range(3000))
    return {fact for fact in drawn if split_of(fact) == split}


def test_every_name_has_its_domain():
    assert set(DOMAINS) == set(get_args(Name))


@pytest.mark.parametrize("name", DOMAINS)
@settings(max_examples=8, deadline=None)
@given(train_seed=st.integers(0, 10**6), test_seed=st.integers(0, 10**6))
def test_nothing_held_out_occurs_in_training_whatever_the_seeds(name, train_seed, test_seed):
    trained = list(itertools.islice(DOMAINS[name].stream(train_seed), 400))
    held = [DOMAINS[name].items(split, 60, test_seed, unseen=0.3) for split in ("test", "calibration")]
    for one, other in itertools.combinations([trained, *held], 2):
        assert not {item.pair for item in one} & {item.pair for item in other}
        assert not {item.prompt for item in one} & {item.prompt for item in other}


@pytest.mark.parametrize("name", DOMAINS)
def test_no_phrasing_is_both_a_training_one_and_held_out(name):
    domain = DOMAINS[name]
    assert set(domain.seen) == set(domain.unseen) == set(domain.expressions)
    for operation in domain.seen:
        told = [*domain.seen[operation], *domain.unseen[operation]]
        assert len(told) == len(set(told)), operation
    shapes = "|".join(re.sub(r"\\\{\w\\\}", ".+", re.escape(p)) for ps in domain.unseen.values() for p in ps)
    hidden = re.compile(shapes)
    assert not [item.prompt for item in itertools.islice(domain.stream(3), 4000) if hidden.fullmatch(item.prompt)]


@pytest.mark.parametrize("name", DOMAINS)
def test_items_are_as_many_as_asked_for_and_the_same_again(name):
    made = DOMAINS[name].items("test", 300, 5, unseen=0.3)
    assert made == DOMAINS[name].items("test", 300, 5, unseen=0.3) != DOMAINS[name].items("test", 300, 6, unseen=0.3)
    assert len({item.prompt for item in made}) == 300
    assert sum(not item.seen for item in made) == 90
    operations = Counter(item.operation for item in made)
    assert set(operations.values()) == {300 // len(DOMAINS[name].seen)}
    for item in made:
        assert item.seen == (item.phrasing in DOMAINS[name].seen[item.operation])
        assert item.seen != (item.phrasing in DOMAINS[name].unseen[item.operation])
        assert "{" not in item.prompt and item.prompt == item.prompt.strip()
        assert re.fullmatch(r" [^.]+\.", item.answer)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_stream_is_the_same_again_and_partly_framed(name):
    one, again = (list(itertools.islice(DOMAINS[name].stream(2), 1000)) for _ in range(2))
    assert one == again
    assert one != list(itertools.islice(DOMAINS[name].stream(3), 1000))
    assert 0.33 < sum(not item.seen for item in one) / 1000 < 0.47
    assert all(item.seen for item in itertools.islice(DOMAINS[name].stream(2, framed=0.0), 200))


@pytest.mark.parametrize("name", GENERATED)
def test_a_domain_has_thousands_of_questions_and_each_split_its_share_of_the_facts(name):
    drawn = {item.prompt for item in itertools.islice(DOMAINS[name].stream(0, framed=0.0), 30_000)}
    assert len(drawn) > 10_000
    owned = {split: len(facts(name, split)) for split in ("train", "calibration", "test")}
    assert [owned[s] / sum(owned.values()) for s in owned] == pytest.approx([0.7, 0.1, 0.2], abs=0.04)


def test_asking_for_more_than_there_is_is_refused():
    one = Question({"n": "last", "w": "gone"}, "e", "letter last gone", "word gone")
    domain = dataclasses.replace(DOMAINS["letters"], draw=lambda *_: one, seen={"letter": ("{n}: {w}", "{w}: {n}")})
    assert {item.prompt for item in domain.items(split_of("word gone"), 2, 0)} == {"last: gone", "gone: last"}
    with pytest.raises(BadInput, match=r"Expected 3 distinct items of the \w+ split, got 2; ask for fewer"):
        domain.items(split_of("word gone"), 3, 0)


def drawn(name, count: int = 3000) -> list:
    """Items of every split and kind."""
    domain = DOMAINS[name]
    made = list(itertools.islice(domain.stream(11), count))
    return made + domain.items("test", 300, 0, unseen=0.5) + domain.items("calibration", 100, 0)


SIZES = {
    "inch": Fraction(1), "foot": Fraction(12), "yard": Fraction(36),
    "millimetre": Fraction(1), "centimetre": Fraction(10), "metre": Fraction(1000),
    "second": Fraction(1), "minute": Fraction(60), "hour": Fraction(3600),
    "day": Fraction(1), "week": Fraction(7), "month": Fraction(1), "year": Fraction(12),
    "ounce": Fraction(1), "pound": Fraction(16), "stone": Fraction(224), "carat": Fraction(1, 5), "gram": Fraction(1),
    "pint": Fraction(1), "quart": Fraction(2), "gallon": Fraction(8),
}  # fmt: skip
"""In some measure of its own dimension."""
SINGULAR = {"inches": "inch", "feet": "foot", "stone": "stone"}


def test_measures_are_converted_right():
    for item in drawn("units"):
        _, number, unit, wanted = item.pair.split()
        one, other = (SINGULAR.get(each) or each.removesuffix("s") for each in (unit, wanted))
        assert unit == "stone" or (unit == one) == (number == "1")
        assert item.answer == f" {int(number) * SIZES[one] / SIZES[other]}."
        assert item.digits == len(number)
        assert len(item.answer) <= 6
        assert re.findall(r"\d+", item.prompt) == [number]
        assert re.search(rf"\b{number} {unit}\b", item.prompt) and re.search(rf"\b{wanted}\b", item.prompt)


DATE = re.compile(r"(\d+) (day|month)s? (after|before) (\w+)(?: (\d+))?")


def test_the_calendar_is_right():
    start = datetime.date(2023, 1, 2)  # a Monday of a common year
    weekdays = [start + datetime.timedelta(days=n) for n in range(7)]
    for item in drawn("dates"):
        if item.operation == "span":
            one, other = (
                datetime.datetime.strptime(f"2023 {told}", "%Y %B %d")
                for told in re.findall(r"[A-Z]\w+ \d+", item.prompt)
            )
            assert item.answer == f" {(other - one).days}." and one < other and one.month == other.month
            continue
        found = DATE.search(item.prompt)
        assert found and len(DATE.findall(item.prompt)) == 1
        steps = int(found[1]) * (1 if found[3] == "after" else -1)
        if item.operation == "weekday":
            day = next(each for each in weekdays if f"{each:%A}" == found[4])
            assert item.answer == f" {day + datetime.timedelta(days=steps):%A}."
        elif item.operation == "month":
            month = datetime.datetime.strptime(found[4], "%B").month
            assert item.answer == f" {datetime.date(2023, (month - 1 + steps) % 12 + 1, 1):%B}."
        else:
            day = datetime.datetime.strptime(f"2023 {found[4]} {found[5]}", "%Y %B %d")
            moved = day + datetime.timedelta(days=steps)
            assert item.answer == f" {moved:%B} {moved.day}." and moved.month == day.month
    assert {item.operation for item in drawn("dates", 50)} == {"weekday", "month", "day", "span"}


def test_letters_are_right():
    for item in drawn("letters"):
        told = item.answer.strip(" .")
        operation, *asked = item.pair.split()
        word = asked[-1]
        if operation == "alphabet":
            steps, _, way, letter = asked
            moved = string.ascii_lowercase.index(letter) + int(steps) * (1 if way == "after" else -1)
            assert told == string.ascii_lowercase[moved] and moved >= 0
            assert " ".join(asked) in item.prompt
            continue
        assert re.search(rf"\b{word}\b", item.prompt)
        if operation == "letter":
            assert told == word[("first", "second", "third").index(asked[0]) if asked[0] != "last" else len(word) - 1]
            assert re.search(rf"\b{asked[0]}\b", item.prompt)
        else:
            assert told.replace(" ", "") == (word if operation == "spell" else "".join(reversed(word)))
            assert told.count(" ") == len(word) - 1


def test_one_fact_has_one_split_whatever_the_units_the_month_and_the_direction():
    owners: dict[tuple, set] = {}
    for name in GENERATED:
        for split in ("train", "calibration", "test"):
            for item in DOMAINS[name].items(split, 300, 0):
                operation, *asked = item.pair.split()
                if name == "units":
                    numbers = sorted((int(asked[0]), int(item.answer.strip(" ."))))
                    key = ("units", *numbers)
                elif operation in ("spell", "backwards", "letter"):
                    key = ("word", asked[-1])
                elif operation in ("weekday", "month"):
                    ends = (asked[3], item.answer.strip(" ."))
                    key = (operation, asked[0], *(ends if asked[2] == "after" else ends[::-1]))
                elif operation in ("day", "span"):
                    days = re.findall(r"[A-Z]\w+ (\d+)", item.prompt + item.answer)
                    key = ("days", *sorted(map(int, days)))
                else:
                    key = ("alphabet", *sorted((asked[-1], item.answer.strip(" ."))))
                owners.setdefault(key, set()).add(split)
    assert all(len(splits) == 1 for splits in owners.values())
    assert len(owners) > 800
