"""A section of params.yaml, and what is said when it is wrong."""

from typing import Literal

import pydantic
import pytest

from stages.errors import BadInput, nearest
from stages.settings import Settings, read


class Inner(Settings):
    learning_rate: float = 0.1


class Section(Settings):
    steps: int = pydantic.Field(gt=0)
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()


@pytest.fixture
def params(tmp_path):
    def write(text: str):
        (tmp_path / "params.yaml").write_text(text)
        return tmp_path / "params.yaml"

    return write


def test_a_section_is_read_by_its_dotted_path_and_stays_as_it_was(params):
    made = read(params("top:\n  train: {steps: 3, kind: b, inner: {learning_rate: 0.5}}\n"), "top.train", Section)
    assert made == Section(steps=3, kind="b", inner=Inner(learning_rate=0.5))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        made.steps = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {step: 3}", "train: .*unknown key 'step', did you mean 'steps'?"),
        (
            "train: {steps: 3, inner: {learning_rat: 1}}",
            "unknown key 'inner.learning_rat', did you mean 'learning_rate'?",
        ),
        ("train: {steps: 3, zzz: 1}", "unknown key 'zzz', valid are: inner, kind, steps"),
        ("train: {kind: a}", "the key 'steps' is missing, add it"),
        ("train: {steps: 0}", "steps: Input should be greater than 0, got 0"),
        ("train: {steps: many}", "steps: Input should be a valid integer.*got 'many'"),
        ("train: {steps: 1, kind: c}", "kind: Input should be 'a' or 'b', got 'c'"),
        ("trian: {steps: 1}", "no section 'train': it lacks 'train'; did you mean 'trian'?"),
        ("train: 3", "train"),
        ("", "no section 'train'"),
        ("train: {steps: 1", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_nearest_name(params, text, said):
    with pytest.raises(BadInput, match=said) as caught:
        read(params(text), "train", Section)
    assert "\n" not in str(caught.value)


def test_a_missing_inner_section_names_the_nearest(params):
    with pytest.raises(BadInput, match=r"no section 'inject.blad': inject lacks 'blad'; did you mean 'blade'\?"):
        read(params("inject: {blade: {steps: 1}, bridged: {}}"), "inject.blad", Section)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(BadInput, match="Expected a parameter file at .*params.yaml, .*run from the repository root"):
        read(tmp_path / "params.yaml", "train", Section)


def test_the_nearest_name_is_offered_only_when_it_is_near():
    assert nearest("lamda", ["lambda", "layer"]) == "did you mean 'lambda'?"
    assert nearest("q", ["b", "a"]) == "valid are: a, b"
    assert nearest("q", []) == "none are valid here"
