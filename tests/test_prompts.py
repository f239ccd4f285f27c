"""What the items are, and that no test item can be met in training."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.capabilities.arithmetic import DOMAIN, fact
from stages.capabilities.questions import split_of
from stages.errors import BadInput
from stages.prompts import Prompts, prompts
from stages.storage import read_jsonl, write_jsonl

SETTINGS = Prompts(train=300, calibration=80, test=200, unseen=0.3, seed=0, kept_texts=2, kept_questions=3)
QUESTIONS = [
    {"id": f"q{i}", "topic": "t", "question": f"What is {i}?", "choices": ["a", "b", "c"], "answer": i % 3}
    for i in range(9)
]
TEXTS = [{"id": f"t{i}", "topic": "t", "text": f"Text number {i}."} for i in range(6)]


def sources(root: Path, questions=QUESTIONS, texts=TEXTS) -> tuple[Path, Path]:
    write_jsonl(root / "questions.jsonl", questions)
    write_jsonl(root / "text.jsonl", texts)
    return root / "questions.jsonl", root / "text.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prompts")
    prompts(SETTINGS, *sources(root), root / "out")
    return root / "out"


def split(made: Path, name: str) -> list[dict]:
    return read_jsonl(made / "capability" / f"{name}.jsonl")


def unordered(pair: str) -> tuple:
    """Operation and operands, sums without regard to order."""
    operation, a, b = pair.split()
    return (operation, *(sorted((int(a), int(b))) if operation == "addition" else (int(a), int(b))))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_no_held_out_pair_or_prompt_occurs_in_training_whatever_the_seeds(train_seed, test_seed):
    trained = list(itertools.islice(DOMAIN.stream(train_seed), 400))
    pairs, asked = {unordered(item.pair) for item in trained}, {item.prompt for item in trained}
    for name in ("test", "calibration"):
        held = DOMAIN.items(name, 60, test_seed, unseen=0.3)
        assert not pairs & {unordered(item.pair) for item in held}
        assert not asked & {item.prompt for item in held}


def test_test_and_calibration_share_no_pair():
    held = [{unordered(i.pair) for i in DOMAIN.items(name, 300, 0)} for name in ("test", "calibration")]
    assert not held[0] & held[1]


@given(st.integers(0, 999), st.integers(0, 999))
def test_a_sum_and_its_commuted_sum_belong_to_one_split(a, b):
    assert split_of(fact("addition", a, b)) == split_of(fact("addition", b, a))


def test_each_split_owns_its_share_of_all_pairs():
    owners = Counter(split_of(fact("subtraction", a, b)) for a in range(200) for b in range(a))
    total = sum(owners.values())
    assert [round(owners[name] / total, 2) for name in ("test", "calibration", "train")] == pytest.approx(
        [0.2, 0.1, 0.7], abs=0.015
    )


def test_held_out_phrasings_never_occur_in_training():
    for operation in DOMAIN.seen:
        assert not set(DOMAIN.seen[operation]) & set(DOMAIN.unseen[operation])
    shapes = [
        re.escape(p).replace(r"\{a\}", r"\d+").replace(r"\{b\}", r"\d+") for ps in DOMAIN.unseen.values() for p in ps
    ]
    hidden = re.compile("|".join(shapes))
    trained = [item.prompt for item in itertools.islice(DOMAIN.stream(3), 5000)]
    assert not [prompt for prompt in trained if hidden.fullmatch(prompt)]


def test_answers_are_right(made):
    items = [row for name in ("train", "calibration", "test") for row in split(made, name)]
    for row in items:
        operation, a, b = row["pair"].split()
        numbers = {"addition": int(a) + int(b), "subtraction": int(a) - int(b)}
        assert row["answer"] == f" {numbers[operation]}."
        assert numbers[operation] >= 0
        assert sorted(map(int, re.findall(r"\d+", row["prompt"]))) == sorted((int(a), int(b)))
        assert row["digits"] == max(len(a), len(b))
        assert row["operation"] == operation


def test_subtraction_says_the_larger_number_where_its_phrasing_needs_it():
    for item in DOMAIN.items("test", 400, 1, unseen=0.5):
        _, a, b = item.pair.split()
        assert item.phrasing.replace("{a}", a).replace("{b}", b) == item.prompt


def test_there_are_as_many_items_as_asked_for_and_none_twice(made):
    assert [len(split(made, name)) for name in ("train", "calibration", "test")] == [300, 80, 200]
    test = split(made, "test")
    assert sum(not row["seen"] for row in test) == 60
    assert len({row["prompt"] for row in test}) == len({row["id"] for row in test}) == 200
    assert Counter(row["operation"] for row in test) == {"addition": 100, "subtraction": 100}
    assert Counter(row["digits"] for row in test) == {1: 20, 2: 60, 3: 120}
    assert all(row["seen"] for row in split(made, "calibration"))


def test_a_row_is_marked_seen_exactly_when_its_phrasing_is_a_training_one(made):
    for row in split(made, "test"):
        assert row["seen"] == (row["phrasing"] in DOMAIN.seen[row["operation"]])
        assert row["seen"] != (row["phrasing"] in DOMAIN.unseen[row["operation"]])


def test_what_is_kept_for_training_is_not_judged_by(made):
    kept = {row["id"] for row in read_jsonl(made / "retention" / "train.jsonl")}
    asked, told = (read_jsonl(made / "retention" / f"{name}.jsonl") for name in ("questions", "text"))
    judged = {row["id"] for row in asked + told}
    assert not kept & judged
    assert kept | judged == {row["id"] for row in QUESTIONS + TEXTS}
    assert (len(kept), len(asked), len(told)) == (5, 6, 4)


def test_a_kept_question_is_told_with_its_right_answer(made):
    asked = {row["id"]: row for row in QUESTIONS}
    shown = [row for row in read_jsonl(made / "retention" / "train.jsonl") if row["id"] in asked]
    assert len(shown) == 3
    for row in shown:
        q = asked[row["id"]]
        assert row["text"] == f"Question: {q['question']}\nAnswer: {q['choices'][q['answer']]}"


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path, made):
    files = sorted(p.relative_to(made) for p in made.rglob("*.jsonl"))
    assert len(files) == 6
    prompts(SETTINGS, *sources(tmp_path), tmp_path / "again")
    assert all((made / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    prompts(SETTINGS.model_copy(update={"seed": 1}), *sources(tmp_path), tmp_path / "other")
    assert all((made / f).read_bytes() != (tmp_path / "other" / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    "broken",
    [
        {"choices": ["a", "a"]},
        {"choices": "ab"},
        {"answer": 3},
        {"answer": -1},
        {"answer": "1"},
        {"question": ""},
        {"topic": None},
    ],
)
def test_a_broken_question_is_named_by_its_line(tmp_path, broken):
    rows = [*QUESTIONS[:2], QUESTIONS[2] | broken, *QUESTIONS[3:]]
    with pytest.raises(
        BadInput, match=r"questions.jsonl, line 3: expected id, topic, question as text .*correct the line"
    ):
        prompts(SETTINGS, *sources(tmp_path, questions=rows), tmp_path / "out")


def test_a_text_without_text_is_named_by_its_line(tmp_path):
    with pytest.raises(BadInput, match=r"text.jsonl, line 6: expected id, topic, text"):
        prompts(SETTINGS, *sources(tmp_path, texts=[*TEXTS[:5], {"id": "x", "topic": "t"}]), tmp_path / "out")


def test_a_line_that_is_no_json_is_named(tmp_path):
    questions, text = sources(tmp_path)
    text.write_text(json.dumps(TEXTS[0]) + "\n{'id'\n")
    with pytest.raises(BadInput, match=r"text.jsonl, line 2: expected a JSON object"):
        prompts(SETTINGS, questions, text, tmp_path / "out")


def test_texts_that_are_marked_are_never_judged_by(tmp_path):
    marked = [{"id": f"m{i}", "topic": "t", "text": "Marked.", "kept": True} for i in range(3)]
    prompts(SETTINGS, *sources(tmp_path, texts=[*marked, *TEXTS]), tmp_path / "out")
    told = {name: [row["id"] for row in read_jsonl(tmp_path / "out" / "retention" / f"{name}.jsonl")]
            for name in ("train", "text")}  # fmt: skip
    assert {"m0", "m1", "m2"} <= set(told["train"]) and not {"m0", "m1", "m2"} & set(told["text"])
    prompts(SETTINGS, *sources(tmp_path, texts=TEXTS), tmp_path / "bare")
    assert told["text"] == [row["id"] for row in read_jsonl(tmp_path / "bare" / "retention" / "text.jsonl")]


def test_keeping_everything_for_training_is_refused(tmp_path):
    greedy = SETTINGS.model_copy(update={"kept_texts": 6})
    with pytest.raises(BadInput, match="more than 3 questions and 6 texts, got 9 and 6, which leaves none to judge by"):
        prompts(greedy, *sources(tmp_path), tmp_path / "out")


def test_the_repositorys_own_retention_items_are_enough_and_sound(tmp_path):
    own = Path(__file__).parent.parent / "data" / "sources"
    prompts(SETTINGS, own / "questions.jsonl", own / "text.jsonl", tmp_path / "out")
    texts = read_jsonl(own / "text.jsonl")
    assert len(read_jsonl(own / "questions.jsonl")) >= 200
    assert sum(len(row["text"].encode()) for row in texts) >= 20_000
