"""Changes by hand do what they say, at every site and in every family, and leave nothing behind."""

from typing import Any

import pytest
import torch
from torch import nn

from stages.anatomy.hooks import reading
from stages.anatomy.injector import LayerInjector
from stages.anatomy.loading import load, load_tokenizer
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from stages.graft.blade import Injection
from stages.reading import reading as reading_donor
from tests import grafts
from tests.families import FAMILIES, tiny, token_ids

ROWS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 6)]


def logits(model, ids, mask=None):
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def generated(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, **given) -> torch.Tensor:
    """What `model` says greedily, four tokens more."""
    greedy = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0} | given
    return model.generate(input_ids=ids, attention_mask=mask, **greedy)


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
    ids, mask = grafts.padded(ROWS, "left", filler=40)
    with busy(model):
        cached = generated(model, ids, mask)
        assert torch.equal(cached, generated(model, ids, mask, use_cache=False))
        for row, plain in enumerate(ROWS):
            alone = generated(model, torch.tensor([plain]))[0, len(plain) :]
            assert torch.equal(cached[row, ids.shape[1] :], alone)
    unchanged = generated(model, ids, mask)
    assert not torch.equal(cached, unchanged)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_and_padding_side_change_no_logit(family, side):
    model = tiny(family)
    ids, mask = grafts.padded(ROWS, side, filler=40)
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
    model = tiny("llama").bfloat16()
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


@pytest.fixture(scope="module")
def donors(tmp_path_factory):
    """For a family: its target and a donor of the same tokenizer; and one that reads characters, of width 24."""
    root = tmp_path_factory.mktemp("donors")
    made = {}

    def make(family: str, given: str):
        if (family, given) not in made:
            receiving = grafts.target(root, family)
            giving = grafts.characters(root) if given == "characters" else grafts.target(root, family, int(given))
            target, donor = load(receiving), load(giving)
            tokens, own = load_tokenizer(receiving), load_tokenizer(giving)
            made[family, given] = target, reading_donor(donor, own, target, tokens, [1, 2]).donor
        return made[family, given]

    return make


TEXTS = [grafts.bpe()(text).input_ids for text in grafts.SENTENCES[:3]]


def stirred(donor_width: int, bridge: str = "identity", mix: str = "delta") -> Injection:
    """A token gate that differs from token to token."""
    torch.manual_seed(5)
    injection = Injection("token", bridge, mix, 0.8, donor_width, 32)
    for parameter in injection.requires_grad_(False).parameters():
        parameter.normal_(std=0.5)
    return injection


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blade_of_the_model_itself_changes_no_logit(donors, family):
    model, donor = donors(family, "0")
    ids = torch.tensor(TEXTS[:1])
    with LayerInjector(model).blade("layers.1", donor, taken=0).blade("layers.2", donor, taken=1):
        told = logits(model, ids)
    torch.testing.assert_close(told, logits(model, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "given"), [*((family, "1") for family in FAMILIES), ("llama", "characters")])
def test_blades_are_heard_at_every_step_of_a_generation_in_any_batch(donors, family, given):
    model, donor = donors(family, given)
    injection = stirred(32) if given == "1" else stirred(24, "linear", "add")
    other = stirred(32, mix="add") if given == "1" else stirred(24, "linear")
    ids, mask = grafts.padded(TEXTS)
    plain = generated(model, ids, mask)
    with LayerInjector(model).blade("layers.1", donor, injection).blade("layers.2.mlp", donor, other, taken=1):
        cached = generated(model, ids, mask)
        assert torch.equal(cached, generated(model, ids, mask, use_cache=False))
        shortest = min(range(len(TEXTS)), key=lambda row: len(TEXTS[row]))
        alone = generated(model, torch.tensor([TEXTS[shortest]]))[0, len(TEXTS[shortest]) :]
        assert torch.equal(cached[shortest, ids.shape[1] :], alone)
    assert not torch.equal(cached, plain)


@pytest.mark.parametrize(("family", "given"), [("llama", "1"), ("gpt2", "1"), ("llama", "characters")])
def test_beams_are_the_same_with_a_cache_and_without(donors, family, given):
    model, donor = donors(family, given)
    injection = stirred(32) if given == "1" else stirred(24, "linear", "add")
    ids, mask = grafts.padded(TEXTS)
    with LayerInjector(model).blade("layers.1", donor, injection):
        cached = generated(model, ids, mask, num_beams=3)
        assert torch.equal(cached, generated(model, ids, mask, num_beams=3, use_cache=False))


def test_a_blade_is_what_a_graft_makes_of_it(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    made, path = grafts.built(tmp_path / "x", receiving, giving)
    model, ids = load(receiving), torch.tensor(TEXTS[:1])
    with LayerInjector(model).blade("layers.2", made.readings[0].donor, made.parts[0]), torch.no_grad():
        told = logits(model, ids)
    torch.testing.assert_close(told, logits(grafts.loaded(path), ids), atol=1e-4, rtol=1e-4)


def test_blades_that_cannot_be_are_refused_in_one_sentence(donors):
    model, donor = donors("llama", "1")
    _, narrow = donors("llama", "characters")
    ids = torch.tensor(TEXTS[:1])
    with pytest.raises(BadInput, match="width 32 at layers.1, got 24"), LayerInjector(model).blade("layers.1", narrow):
        logits(model, ids)
    outer, inner = (LayerInjector(model).blade(site, donor) for site in ("layers.1", "layers.2"))
    with pytest.raises(BadInput, match="give one injector all blades"), outer, inner:
        model(input_ids=ids, use_cache=True)
    past = model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(BadInput, match="which the donor has not read"), LayerInjector(model).blade("layers.1", donor):
        model(input_ids=ids, past_key_values=past)
    with pytest.raises(BadInput, match="pass the token ids"), LayerInjector(model).blade("layers.1", donor):
        model(inputs_embeds=torch.zeros(1, 2, 32))
