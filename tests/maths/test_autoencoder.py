"""A dictionary is found where one made the rows, and is the same whatever the rows' place and size."""

import functools

import pytest
import torch

from stages.errors import BadInput
from stages.maths.autoencoder import Autoencoder, autoencoder, thresholded
from tests.maths.rows import normal

WIDTH, FEATURES, ACTIVE = 24, 32, 2


@functools.cache
def made(count: int = 3000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are sums of two of 32 directions, with weights from 1 to 2, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(normal(9, FEATURES, WIDTH).float(), dim=1)
    chosen = torch.rand(count, FEATURES, generator=generator).topk(ACTIVE).indices
    weights = 1 + torch.rand(count, ACTIVE, generator=generator)
    return (weights[..., None] * directions[chosen]).sum(1), directions


@functools.cache
def found() -> Autoencoder:
    return autoencoder(made()[0], FEATURES, ACTIVE, steps=600)


def likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The cosine of each row of `one` with the row of `other` that is most like it."""
    return torch.cosine_similarity(one[:, None], other[None], dim=-1).max(1).values


def test_the_directions_that_made_the_rows_are_found_and_unseen_rows_explained():
    unseen, directions = made(500, seed=1)
    assert likeness(directions, found().decoder).median() > 0.95
    assert found().explained(unseen) > 0.85
    assert (found().features(unseen) > 0).sum(1).float().mean().item() == pytest.approx(ACTIVE, rel=0.15)


def test_rows_moved_and_stretched_give_the_same_features():
    x = made(600)[0]
    plain = autoencoder(x, 16, 2, steps=30)
    moved = autoencoder(x * 50 + 7, 16, 2, steps=30)
    features, same = plain.features(x), moved.features(x * 50 + 7)
    # Single features at the threshold may fall on either side of it
    assert (features - same).abs().mean() < 1e-3 * features.abs().mean()
    assert (plain(x) * 50 + 7 - moved(x * 50 + 7)).abs().mean() < 1e-2


def test_the_same_seed_gives_the_same_dictionary_and_another_another():
    x = made(600)[0]
    one, same, other = (autoencoder(x, 16, 2, steps=5, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    assert not torch.equal(one.decoder, other.decoder)


def test_a_threshold_leaves_as_many_features_at_work_as_asked():
    x = made(600)[0]
    for active in (1, 3):
        working = (thresholded(found(), x, active).features(x) > 0).sum().item()
        assert working == active * len(x)


@pytest.mark.parametrize(("features", "active"), [(16, 17), (700, 2), (16, 0)])
def test_sizes_that_cannot_be_are_refused(features, active):
    with pytest.raises(BadInput, match="1 ≤ active ≤ features ≤ rows"):
        autoencoder(made(600)[0], features, active, steps=1)
