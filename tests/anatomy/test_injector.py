"""Changes by hand do what they say, at every site and in every family, and leave nothing behind."""

import pytest
import torch
from torch import nn

from stages.anatomy.hooks import reading
from stages.anatomy.injector import LayerInjector
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, token_ids

ROWS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 6)]


def logits(model, ids, mask=None):
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, ROWS))
    rows = [(row, [40] * (width - len(row))) for row in ROWS]
    ids = [[*pads, *row] if side == "left" else [*row, *pads] for row, pads in rows]
    mask = [[0] * len(p) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(p) for r, p in rows]
    return torch.tensor(ids), torch.tensor(mask)


def busy(model) -> LayerInjector:
    """An injector of every kind of change but the blade, at sites of several kinds."""
    torch.manual_seed(3)
    linear = nn.Linear(32, 32).requires_grad_(False)
    return (
        LayerInjector(model)
        .noise("embed", 0.2, seed=1)
        .scale("layers.0.mlp", 0.5)
        .bias("layers.1", torch.linspace(-1, 1, 32), alpha=0.7)
        .noise("layers.1", 0.3, seed=2)
        .replace("layers.2.self_attn", linear)
        .scale("layers.3", 1.5)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_changes_that_change_nothing_leave_every_logit_bit_for_bit_at_every_site(family):
    model, ids = tiny(family), token_ids()
    plain = logits(model, ids)
    injector = LayerInjector(model)
    for site in sites_of(model):
        injector.scale(site, 1.0).bias(site, torch.zeros(1)).noise(site, 0.0).replace(site, nn.Identity())
    with injector:
        assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_restored_bit_for_bit(family):
    model, ids = tiny(family), token_ids()
    before, plain = {name: value.clone() for name, value in model.state_dict().items()}, logits(model, ids)
    with busy(model):
        assert not torch.allclose(logits(model, ids), plain, atol=1e-2)
    with pytest.raises(KeyError), busy(model):
        logits(model, ids)
        raise KeyError("inside")
    assert torch.equal(logits(model, ids), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_gives_the_tokens_that_it_gives_without_and_alone(family):
    model = tiny(family)
    ids, mask = padded("left")
    greedy = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    with busy(model):
        cached = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **greedy)
        assert torch.equal(cached, model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **greedy))
        for row, plain in enumerate(ROWS):
            alone = model.generate(input_ids=torch.tensor([plain]), **greedy)[0, len(plain) :]
            assert torch.equal(cached[row, ids.shape[1] :], alone)
    unchanged = model.generate(input_ids=ids, attention_mask=mask, **greedy)
    assert not torch.equal(cached, unchanged)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_and_padding_side_change_no_logit(family, side):
    model = tiny(family)
    ids, mask = padded(side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"position_ids": positions} if family not in ("bloom", "opt") else {}
    with busy(model):
        together = model(input_ids=ids, attention_mask=mask, use_cache=False, **given).logits
        for row, plain in enumerate(ROWS):
            alone = logits(model, torch.tensor([plain]))[0]
            torch.testing.assert_close(together[row][mask[row].bool()], alone, atol=1e-4, rtol=1e-4)


def test_each_change_is_its_formula():
    model, ids = tiny("llama"), token_ids()
    vector = torch.linspace(-1, 1, 32)
    with reading(model, ["layers.1"]) as states:
        logits(model, ids)
        plain = states["layers.1"].clone()
    for injector, expected in (
        (LayerInjector(model).scale("layers.1", vector), plain * vector),
        (LayerInjector(model).bias("layers.1", vector, alpha=0.3), plain + 0.3 * vector),
        (LayerInjector(model).replace("layers.1", torch.tanh), plain.tanh()),
        (LayerInjector(model).replace("layers.1", lambda state: state.mul_(2)), plain * 2),
    ):
        with injector, reading(model, ["layers.1"]) as states:
            logits(model, ids)
        torch.testing.assert_close(states["layers.1"], expected)


def test_noise_has_the_stated_size_and_is_its_seeds_alone():
    model, ids = tiny("llama"), token_ids(2, 60)
    told = {}
    for name, seed in (("one", 4), ("same", 4), ("other", 5)):
        with reading(model, ["layers.1"]) as states:
            logits(model, ids)
            plain = states["layers.1"].clone()
            with LayerInjector(model).noise("layers.1", 0.5, seed=seed), reading(model, ["layers.1"]) as changed:
                logits(model, ids)
        told[name] = (changed["layers.1"] - plain) / plain.square().mean(-1, keepdim=True).sqrt()
    assert torch.equal(told["one"], told["same"])
    assert not torch.allclose(told["one"], told["other"], atol=0.1)
    assert told["one"][0].std().item() == pytest.approx(0.5, rel=0.05)
    torch.testing.assert_close(told["one"][0], told["one"][1], atol=1e-4, rtol=1e-3)


def test_changes_of_one_site_work_in_the_order_of_their_calls_and_an_outer_injector_first():
    model, ids, one = tiny("gpt2"), token_ids(), torch.linspace(-1, 1, 32)
    with LayerInjector(model).scale("layers.2", 3.0).bias("layers.2", one):
        first = logits(model, ids)
    with LayerInjector(model).bias("layers.2", one).scale("layers.2", 3.0):
        second = logits(model, ids)
    assert not torch.allclose(first, second, atol=1e-3)
    with LayerInjector(model).scale("layers.2", 3.0), LayerInjector(model).bias("layers.2", one):
        assert torch.equal(logits(model, ids), first)


@pytest.mark.parametrize("site", ["layers.1.mlp.router", "layers.1.mlp.experts.2", "layers.1.self_attn.heads.3"])
def test_a_function_that_writes_in_place_is_heard_where_a_site_is_a_copy(site):
    model, ids = tiny("mixtral"), token_ids()
    with LayerInjector(model).replace(site, lambda state: state.mul_(-2)):
        written = logits(model, ids)
    with LayerInjector(model).scale(site, -2.0):
        assert torch.equal(logits(model, ids), written)
    assert not torch.allclose(written, logits(model, ids), atol=1e-4)


def test_a_bfloat16_model_stays_in_bfloat16():
    model = tiny("llama").to(torch.bfloat16)
    vector = torch.linspace(-1, 1, 32)
    with LayerInjector(model).noise("embed", 0.2).scale("layers.0.mlp", vector).bias("layers.1", vector):
        assert logits(model, token_ids()).dtype == torch.bfloat16


def test_gradients_reach_a_trained_module():
    model, module = tiny("llama"), nn.Linear(32, 32)
    with LayerInjector(model).replace("layers.1", module):
        logits(model, token_ids()).square().sum().backward()
    assert module.weight.grad is not None and module.weight.grad.abs().sum() > 0


def test_a_change_that_never_happens_is_an_error_unless_another_is_under_way():
    model = tiny("llama")
    with pytest.raises(BadInput, match="reach layers.1, but none did"), LayerInjector(model).scale("layers.1", 2.0):
        pass
    with pytest.raises(KeyError), LayerInjector(model).scale("layers.1", 2.0):
        raise KeyError("inside")


def test_wrong_use_is_refused_in_one_sentence():
    model, ids = tiny("llama"), token_ids()
    with pytest.raises(BadInput, match="layers go from 0 to 3"):
        LayerInjector(model).scale("layers.7", 2.0)
    with pytest.raises(BadInput, match="at least one change"), LayerInjector(model):
        pass
    narrow = LayerInjector(model).bias("layers.1", torch.ones(16))
    with pytest.raises(BadInput, match=r"broadcasts to \[3, 11, 32\] at layers.1, got \[16\]"), narrow:
        logits(model, ids)
    with LayerInjector(model).scale("layers.1", 2.0) as injector:
        with pytest.raises(BadInput, match="not in use"), injector:
            pass
        with pytest.raises(BadInput, match="before the block is entered"):
            injector.scale("layers.1", 2.0)
        logits(model, ids)
