"""Attention patterns are the model's own, and reading them changes nothing."""

import pytest
import torch

from stages.anatomy.attention import attending
from stages.anatomy.hooks import reading
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, token_ids


def patterns(model, ids: torch.Tensor) -> dict[int, torch.Tensor]:
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad(), attending(model, found.__setitem__):
        model(input_ids=ids, use_cache=False)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_those_that_the_model_gives_out_itself(family):
    model = tiny(family)
    found = patterns(model, token_ids())
    eager = tiny(family, attn_implementation="eager")
    with torch.no_grad():
        told = eager(input_ids=token_ids(), use_cache=False, output_attentions=True).attentions
    assert list(found) == [0, 1, 2, 3]
    for layer, expected in enumerate(told):
        assert torch.equal(found[layer], expected)
        torch.testing.assert_close(found[layer].sum(-1), torch.ones(3, 4, 11))
        assert not found[layer].triu(1).any()


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "gemma"])
def test_values_weighed_by_the_patterns_are_the_heads_states(family):
    """With two queries to a group, and for a window of six tokens."""
    model, ids = tiny(family), token_ids()
    found, values = patterns(model, ids), {}
    projection = model.get_submodule("model.layers.2.self_attn.v_proj")
    handle = projection.register_forward_hook(lambda _m, _i, output: values.update(v=output))
    heads = [f"layers.2.self_attn.heads.{i}" for i in range(4)]
    with torch.no_grad(), reading(model, heads) as states:
        model(input_ids=ids, use_cache=False)
    handle.remove()
    for i, head in enumerate(heads):
        own = values["v"].unflatten(-1, (2, -1))[:, :, i // 2]
        torch.testing.assert_close(found[2][:, i] @ own, states[head], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pads_to_the_right_and_other_rows_change_nothing(family):
    model, ids = tiny(family), token_ids()
    alone, padded = patterns(model, ids[:1, :7]), patterns(model, torch.cat([ids[:, :7], 0 * ids[:, :4]], 1))
    for layer in range(4):
        torch.testing.assert_close(padded[layer][:1, :, :7, :7], alone[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_attention_afterwards_as_before(family):
    model = tiny(family)
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attending(model, lambda layer, pattern: None):
        raise ZeroDivisionError
    assert model.config._attn_implementation == before
    assert torch.equal(model(input_ids=token_ids()).logits, tiny(family)(input_ids=token_ids()).logits)


def test_a_model_that_tells_no_weights_is_refused(monkeypatch):
    monkeypatch.setattr("stages.anatomy.attention.attention_of", lambda block: None)
    with pytest.raises(BadInput, match="got LlamaForCausalLM, which tells none in a pass; set"):
        patterns(tiny("llama"), token_ids())
