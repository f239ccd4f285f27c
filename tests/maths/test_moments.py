"""Streamed second moments against the whole matrices', in any order and division, far from zero too."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.maths.moments import Moments, moments
from stages.maths.procrustes import orthogonal
from tests.maths.rows import chunks, normal, rotation, seen


def test_centred_moments_are_numpy_s_covariances_and_raw_ones_the_products():
    x, y = normal(0, 100, 5) + 3, normal(1, 100, 7) - 2
    known = moments(chunks(x, y, 17))
    covariance = np.cov(x.numpy(), y.numpy(), rowvar=False, bias=True) * 100
    torch.testing.assert_close(known.gram(), torch.from_numpy(covariance[:5, :5]))
    torch.testing.assert_close(known.cross(), torch.from_numpy(covariance[:5, 5:]))
    torch.testing.assert_close(known.gram(centred=False), x.T @ x)
    torch.testing.assert_close(known.cross(centred=False), x.T @ y)
    torch.testing.assert_close(known.means, (x.mean(0), y.mean(0)))
    assert known.rows == 100


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), part=st.integers(0, 40))
def test_neither_chunks_nor_merging_nor_order_change_the_moments(seed, size, part):
    x, y = normal(seed, 40, 4) * 10 + 5, normal(seed + 1, 40, 3)
    whole = moments([(x, y)])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    one, other = moments(chunks(x[order[:part]], y[order[:part]], size)), moments([(x[order[part:]], y[order[part:]])])
    one.merge(other)
    assert one.rows == 40
    for centred in (True, False):
        torch.testing.assert_close(one.gram(centred), whole.gram(centred))
        torch.testing.assert_close(one.cross(centred), whole.cross(centred))
    torch.testing.assert_close(one.means, whole.means)


@pytest.mark.parametrize(("products", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_a_mean_of_a_million_deviations_cancels_nothing(products, tolerance):
    x, y = normal(0, 400, 6), normal(1, 400, 6)
    far = moments(chunks(x + 1e6, y - 1e6, 50), products)
    torch.testing.assert_close(far.cross() / 400, seen(x, y).cross() / 400, rtol=0, atol=tolerance)


def test_merging_far_apart_rows_keeps_their_covariance():
    x, y = normal(0, 100, 4), normal(1, 100, 4)
    x[50:] += 1e5
    one, other = moments([(x[:50], y[:50])]), moments([(x[50:], y[50:])])
    one.merge(other)
    oracle = torch.from_numpy(np.cov(x.numpy(), rowvar=False, bias=True) * 100)
    torch.testing.assert_close(one.gram(), oracle, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("products", "spread", "error"), [(torch.float32, 1, 1e-6), (torch.float32, 1e2, 1e-5), (torch.float64, 1e10, 1e-5)]
)
def test_a_rotation_is_recovered_to_1e_5_where_the_docstring_says_so(products, spread, error):
    """`spread` is the ratio of the greatest to the least singular value of XᵀY."""
    columns = torch.logspace(0, -0.5 * np.log10(spread), 24, dtype=torch.float64)
    x, turn = normal(0, 4000, 24) * columns @ rotation(2, 24), rotation(1, 24)
    y = x @ turn
    rows = chunks(x.to(products), y.to(products), 500)
    for only in (True, False):
        recovered = orthogonal(moments(rows, products, cross_only=only)).weight
        assert (recovered - turn).abs().max() < error


def test_bfloat16_rows_give_the_moments_of_their_values():
    x, y = normal(0, 60, 5).bfloat16(), normal(1, 60, 5).bfloat16()
    torch.testing.assert_close(seen(x, y).cross(centred=False), x.double().T @ y.double())


def test_what_is_left_out_is_missed_in_one_sentence():
    known = seen(normal(0, 10, 3), normal(1, 10, 3), cross_only=True)
    for asked in (known.gram, known.cross, lambda: known.means):
        with pytest.raises(BadInput, match="got XᵀY alone; gather them without cross_only"):
            asked()
    with pytest.raises(BadInput, match="of one kind, got some of XᵀY alone"):
        moments([]).merge(known)


def test_rows_that_do_not_fit_are_refused():
    known = moments([(normal(0, 10, 3), normal(1, 10, 4))])
    with pytest.raises(BadInput, match=r"widths \(3, 4\), got \(4, 4\)"):
        known.add(normal(0, 10, 4), normal(1, 10, 4))
    with pytest.raises(BadInput, match="in pairs, got 10 source and 9 target rows"):
        known.add(normal(0, 10, 3), normal(1, 9, 4))


def test_rounded_float32_factors_are_refused():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(BadInput, match="whole factors, got torch's 'high' precision"):
            Moments(torch.float32).add(normal(0, 10, 3), normal(1, 10, 3))
    finally:
        torch.set_float32_matmul_precision("highest")
