"""How widely heads attend, and how alike."""

import math

import pytest
import scipy.spatial
import scipy.stats
import torch

from stages.maths.attention import attention_entropy, head_similarity


def patterns(seed: int) -> torch.Tensor:
    return torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_entropy_is_none_for_one_token_and_log_n_for_n_alike():
    one, even = torch.eye(4)[None], torch.full((1, 4, 8), 1 / 8)
    assert attention_entropy(torch.cat([one, torch.eye(4).roll(1, 0)[None]])).tolist() == [0, 0]
    assert attention_entropy(even).item() == pytest.approx(math.log(8))


def test_entropy_and_similarity_agree_with_scipys():
    one, other = patterns(0), patterns(1)
    torch.testing.assert_close(
        attention_entropy(one), torch.from_numpy(scipy.stats.entropy(one.double().numpy(), axis=-1)).mean(-1)
    )
    distance = scipy.spatial.distance.jensenshannon(one.double().numpy(), other.double().numpy(), base=2, axis=-1)
    torch.testing.assert_close(
        head_similarity(one, other), torch.from_numpy(1 - distance**2).mean(-1), rtol=1e-6, atol=1e-6
    )


def test_similarity_is_one_for_the_same_and_none_for_heads_that_never_meet():
    one = patterns(0)
    torch.testing.assert_close(head_similarity(one, one), torch.ones(3, dtype=torch.float64))
    apart = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), torch.tensor([[[0.0, 1, 0], [0, 0, 1]]])
    assert head_similarity(*apart).item() == pytest.approx(0)
    torch.testing.assert_close(head_similarity(one, patterns(2)), head_similarity(patterns(2), one))


def test_keys_that_nobody_looks_at_add_nothing():
    one, other = patterns(0), patterns(1)
    wider = [torch.nn.functional.pad(each, (0, 4)) for each in (one, other)]
    torch.testing.assert_close(attention_entropy(wider[0]), attention_entropy(one))
    torch.testing.assert_close(head_similarity(*wider), head_similarity(one, other))
