"""Hooks read, replace, restore, and never fail silently."""

import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import pad
from stages.anatomy.hooks import reading, replacing
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, token_ids


def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def hooks_in(model):
    return [hook for module in model.modules() for hook in module._forward_hooks.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_fires_and_the_model_is_restored(family):
    model, ids = tiny(family), token_ids()
    before = hooks_in(model)
    plain = logits(model, ids)
    with reading(model, sites_of(model)) as states:
        assert torch.equal(logits(model, ids), plain)
    assert {name: state.shape[:2] for name, state in states.items()} == dict.fromkeys(sites_of(model), ids.shape)
    assert hooks_in(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_block_states_are_the_hidden_states_that_the_model_reports(family):
    model, ids = tiny(family), token_ids()
    reported = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    with reading(model, [f"layers.{i}" for i in range(4)]) as states:
        logits(model, ids)
    for i in range(3):
        torch.testing.assert_close(states[f"layers.{i}"], reported[i + 1], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_an_identical_donor_s_states_changes_no_logit(family):
    model, donor, ids = tiny(family), tiny(family), token_ids()
    plain = logits(model, ids)
    names = [name for name in sites_of(model) if name != "lm_head"]
    with reading(donor, names) as states:
        logits(donor, ids)
    with replacing(model, {name: lambda _, name=name: states[name] for name in names}):
        assert torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_do_not_depend_on_batch_size_or_padding(family):
    model = tiny(family)
    sequences = [token_ids(1, length, seed=length)[0].tolist() for length in (3, 9, 5)]
    with reading(model, ["layers.3"]) as states:
        logits(model, pad(sequences))
        together = states["layers.3"]
        for row, sequence in enumerate(sequences):
            logits(model, torch.tensor([sequence]))
            torch.testing.assert_close(together[row, : len(sequence)], states["layers.3"][0], rtol=1e-4, atol=1e-4)


def test_replacing_changes_what_follows_and_only_inside_the_block():
    model, ids = tiny("llama"), token_ids()
    plain = logits(model, ids)
    with replacing(model, {"layers.1.mlp": torch.zeros_like}), reading(model, ["layers.1.mlp"]) as states:
        assert not torch.equal(logits(model, ids), plain)
    assert not states["layers.1.mlp"].any()
    assert torch.equal(logits(model, ids), plain)


def test_an_exception_restores_the_model():
    model, ids = tiny("gpt2"), token_ids()
    with pytest.raises(KeyError), reading(model, ["norm"]), replacing(model, {"layers.0": torch.zeros_like}):
        raise KeyError("inside")
    assert not hooks_in(model)
    assert torch.equal(logits(model, ids), logits(tiny("gpt2"), ids))


def test_a_hook_that_never_fires_is_an_error_that_names_the_site():
    model = tiny("llama")
    with (
        pytest.raises(BadInput, match="reach layers.2.mlp, lm_head, but none did"),
        reading(model, ["layers.2.mlp", "lm_head"]),
    ):
        blocks(model)


def test_a_change_of_shape_is_refused():
    model = tiny("llama")
    with pytest.raises(BadInput, match="shape .* for layers.2"), replacing(model, {"layers.2": lambda s: s[:, 1:]}):
        logits(model, token_ids())


def test_gradients_flow_through_what_was_read():
    model, ids = tiny("llama"), token_ids()
    leaf = torch.zeros(3, 11, 32, requires_grad=True)
    with replacing(model, {"layers.1": lambda state: state + leaf}), reading(model, ["layers.3"]) as states:
        logits(model, ids)
    states["layers.3"].square().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0
