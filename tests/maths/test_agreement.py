"""Streamed agreement against scikit-learn's figures of all rows at once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from sklearn.metrics.pairwise import paired_cosine_distances

from stages.errors import BadInput
from stages.maths.agreement import agreement
from tests.maths.rows import chunks, normal


def same(x: torch.Tensor) -> torch.Tensor:
    return x


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60))
def test_it_is_scikit_learn_s_variance_weighted_r2_whatever_the_chunks(seed, size):
    x, y = normal(seed, 50, 7), normal(seed + 1, 50, 7) * torch.arange(1, 8) + 100
    judged = agreement({"same": same, "half": lambda x: x / 2}, chunks(x, y, size))
    for name, predicted in (("same", x), ("half", x / 2)):
        assert judged[name].r2 == pytest.approx(r2_score(y, predicted, multioutput="variance_weighted"))
        assert judged[name].mse == pytest.approx(((predicted - y) ** 2).mean().item())
        assert judged[name].cosine == pytest.approx(1 - paired_cosine_distances(predicted, y).mean())


def test_rows_that_are_met_agree_wholly():
    x = normal(0, 50, 7).float()
    judged = agreement({"same": same}, chunks(x, x, 20))["same"]
    assert (judged.mse, judged.r2, judged.cosine) == (0, 1, pytest.approx(1))


def test_rows_all_alike_have_no_r2():
    x = torch.ones(9, 3)
    assert math.isnan(agreement({"same": same}, chunks(x, x, 4))["same"].r2)


def test_nothing_to_judge_on_is_refused():
    with pytest.raises(BadInput, match="rows to judge bridges on, got none"):
        agreement({"same": same}, [])
