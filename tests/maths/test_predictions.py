"""How near predictions are."""

import pytest
import scipy.stats
import torch

from stages.maths.predictions import divergence, top_agreement


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, 11, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_scipys_of_the_first_from_the_second():
    p, q = (logits(seed).double().softmax(1).numpy() for seed in (0, 1))
    assert divergence(logits(0), logits(1)) == pytest.approx(scipy.stats.entropy(p, q, axis=1).mean(), rel=1e-5)
    assert divergence(logits(0), logits(0) + 5) == pytest.approx(0, abs=1e-6)


def test_agreement_counts_the_same_first_token():
    final, other = torch.eye(4), torch.eye(4)
    other[3] = torch.tensor([9.0, 0, 0, 0])
    assert top_agreement(final, other) == 0.75
