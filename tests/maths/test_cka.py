"""Debiased CKA against its definition over rows × rows kernels, and its invariances."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.maths.cka import debiased_cka


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """U-centred kernels (Székely and Rizzo 2014, equation 3.1), whose normalised inner product is the debiased CKA."""

    def centred(kernel: np.ndarray) -> np.ndarray:
        n = len(kernel)
        kernel = kernel - np.diag(np.diag(kernel))
        sums = kernel.sum(0) / (n - 2)
        kernel = kernel - sums[None] - sums[:, None] + kernel.sum() / ((n - 1) * (n - 2))
        return kernel - np.diag(np.diag(kernel))

    k, m = centred(x @ x.T), centred(y @ y.T)
    return (k * m).sum() / math.sqrt((k * k).sum() * (m * m).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(5, 40))
def test_it_is_the_cosine_of_u_centred_kernels(seed, rows):
    x = normal(seed, rows, 6)
    y = x[:, :4] + normal(seed + 1, rows, 4)
    assert debiased_cka(x, y) == pytest.approx(by_definition(x.numpy(), y.numpy()), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_rotation_scale_and_shift_change_nothing(seed, scale, shift):
    x, y = normal(seed, 30, 6), normal(seed + 1, 30, 5)
    turn = torch.from_numpy(scipy.stats.ortho_group.rvs(6, random_state=seed))
    assert debiased_cka(x @ turn * scale + shift, y) == pytest.approx(debiased_cka(x, y), abs=1e-6)


def test_the_order_of_the_rows_changes_nothing():
    x, y = normal(0, 30, 6), normal(1, 30, 5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    assert debiased_cka(x[order], y[order]) == pytest.approx(debiased_cka(x, y))


def test_a_representation_is_wholly_like_itself():
    assert debiased_cka(normal(0, 30, 6).float(), normal(0, 30, 6).float()) == pytest.approx(1)


def test_independent_representations_are_unlike_even_when_wider_than_rows_are_many():
    drawn = [debiased_cka(normal(seed, 40, 200), normal(seed + 100, 40, 200)) for seed in range(40)]
    assert abs(sum(drawn) / len(drawn)) < 0.02


def test_float32_is_near_float64_with_one_huge_row():
    x, y = normal(0, 300, 20), normal(1, 300, 20) + normal(0, 300, 20)
    x[0] *= 1000
    assert debiased_cka(x.float(), y.float()) == pytest.approx(debiased_cka(x, y), abs=1e-5)


def test_three_rows_are_refused():
    with pytest.raises(BadInput, match="at least four rows"):
        debiased_cka(normal(0, 3, 6), normal(1, 3, 6))
