"""Massive rows are told from large ones."""

import torch

from stages.maths.massive import massive


def test_only_rows_far_above_the_median_are_massive():
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    states[7] *= 100
    states[9] *= 4
    assert massive(states).nonzero().tolist() == [[7]]


def test_scale_decides_nothing():
    states = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    states[7] *= 100
    assert torch.equal(massive(states), massive(1000 * states))
