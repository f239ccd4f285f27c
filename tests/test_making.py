"""What the making of a graft tells is the same bytes every time, and has no number where there is none."""

import math

import pytest

from stages.making import curve, rounded, write_making
from stages.recipes.bank import WithdrawRecipe
from stages.storage import read_json


@pytest.mark.parametrize(
    ("value", "told"),
    [(1 / 3, 0.333333), (123456.7, 123457.0), (1234567, 1234567), (math.nan, None), (math.inf, None), (None, None)],
)
def test_numbers_have_six_digits_counts_all_and_others_are_null(value, told):
    assert rounded(value) == told and type(rounded(value)) is type(told)


def test_everything_a_page_shows_is_written(tmp_path):
    recipe = WithdrawRecipe(bank="b", layer="n-4")
    lines = {"a line": curve("x", "y", [(1, 2 / 3), (2, math.nan)])}
    write_making(tmp_path / "m.json", "withdraw", ["d"], recipe, 5, -3, {"share": 2 / 3, "none": None}, lines)
    assert read_json(tmp_path / "m.json") == {
        "way": "withdraw",
        "donors": ["d"],
        "recipe": recipe.model_dump(mode="json"),
        "parameters": {"moved": 5, "added": -3},
        "figures": {"share": 0.666667, "none": None},
        "curves": {"a line": {"x": "x", "y": "y", "points": [[1, 0.666667], [2, None]]}},
    }
