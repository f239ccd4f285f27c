"""A bridge that starts from a fit to kept states."""

import pytest
import torch
from torch.nn.functional import layer_norm

from stages.errors import BadInput
from stages.graft.bridge import Bridge
from stages.offline import start


def texts(count: int = 24, kinds: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """States that are mapped by one of `kinds` maps, according to the largest of their first channels."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(kinds, 12, 7, generator=generator)
    made = []
    for _ in range(count):
        d = torch.randn(40, 12, generator=generator)
        d[:, :kinds] += 6 * torch.nn.functional.one_hot(torch.randint(kinds, (40,), generator=generator), kinds)
        x = layer_norm(d, (12,))
        made.append((40 * d + 3, torch.einsum("tc,tcw->tw", x, maps[d[:, :kinds].argmax(-1)])))
    return made


def error(bridge: Bridge, given) -> float:
    with torch.no_grad():
        return sum((bridge(d) - h).square().mean().item() for d, h in given) / len(given)


def test_a_linear_bridge_starts_as_the_map_that_the_states_obey():
    bridge = Bridge("linear", 12, 7)
    before, figures = error(bridge, texts()), start(bridge, texts())
    assert error(bridge, texts()) < 0.02 * before
    assert figures["R² of the linear start on held-out rows"] == pytest.approx(1, abs=0.02)
    assert (figures["Rows fitted"], figures["Rows held out"]) == (18 * 40, 6 * 40)


def test_a_mixture_beats_one_bridge_on_held_out_rows_where_there_are_several_maps():
    single, mixture = Bridge("linear", 12, 7), Bridge("mixture", 12, 7, 3)
    start(single, texts(kinds=3))
    figures = start(mixture, texts(kinds=3))
    held_out = texts(kinds=3)[::4]
    assert error(mixture, held_out) < 0.5 * error(single, held_out)
    r2 = [figures[f"R² of the {kind} start on held-out rows"] for kind in ("linear", "mixture")]
    total = torch.cat([h for _, h in held_out]).var(0, correction=0).mean().item()
    assert r2 == pytest.approx([1 - error(each, held_out) / total for each in (single, mixture)], abs=0.01)


def test_one_text_is_too_few():
    with pytest.raises(BadInput, match="Expected two texts or more to fit a bridge to, got 1"):
        start(Bridge("linear", 12, 7), texts(1))
