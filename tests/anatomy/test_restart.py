"""A pass resumed in the middle is the whole pass, bit for bit."""

import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.hooks import reading
from stages.anatomy.restart import resumed
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, token_ids


def logits(model, ids):
    return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_from_own_states_gives_the_same_logits_from_every_layer(family):
    model, ids = tiny(family), token_ids()
    with reading(model, [f"layers.{i}" for i in range(4)]) as states:
        plain = logits(model, ids)
    for layer in range(4):
        with resumed(model, layer, states[f"layers.{layer}"]):
            assert torch.equal(logits(model, ids), plain)
    assert torch.equal(logits(model, ids), plain)


def test_earlier_blocks_do_not_run():
    model, ids = tiny("llama"), token_ids()
    ran = []
    for index, block in enumerate(blocks(model)):
        block.get_submodule("self_attn").register_forward_hook(lambda *_, index=index: ran.append(index))
    with resumed(model, 1, torch.zeros(3, 11, 32)):
        logits(model, ids)
    assert ran == [2, 3]


def test_blocks_that_give_tuples_are_resumed_in_their_own_form():
    model, ids = tiny("bloom"), token_ids()
    forms = []
    blocks(model)[0].register_forward_hook(lambda _module, _inputs, output: forms.append(len(output)))
    plain = logits(model, ids)
    with resumed(model, 2, torch.zeros(3, 11, 32)):
        assert not torch.equal(logits(model, ids), plain)
    assert forms == [2, 2]


def test_an_exception_restores_every_block():
    model = tiny("mistral")
    with pytest.raises(KeyError), resumed(model, 3, torch.zeros(3, 11, 32)):
        raise KeyError("inside")
    assert all("forward" not in vars(block) for block in blocks(model))


def test_a_forward_that_was_already_replaced_comes_back():
    model = tiny("llama")
    mine = blocks(model)[0].forward
    blocks(model)[0].forward = mine
    with resumed(model, 1, torch.zeros(3, 11, 32)):
        pass
    assert vars(blocks(model)[0])["forward"] is mine


def test_gradients_flow_into_the_states():
    model = tiny("gpt2")
    states = torch.randn(3, 11, 32, requires_grad=True)
    with resumed(model, 1, states):
        logits(model, token_ids()).square().sum().backward()
    assert states.grad is not None and (states.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize(("layer", "width"), [(4, 32), (1, 16)])
def test_a_layer_or_width_that_does_not_fit_is_one_sentence(layer, width):
    model = tiny("llama")
    with pytest.raises(BadInput, match="Expected"), resumed(model, layer, torch.zeros(3, 11, width)):
        logits(model, token_ids())
