"""The logit lens is the model's own way from its last block to its logits."""

import pytest
import torch

from stages.anatomy.hooks import reading
from stages.anatomy.lens import lens
from tests.families import FAMILIES, tiny, token_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_the_last_block_give_the_models_own_logits(family):
    model, ids = tiny(family), token_ids()
    with torch.no_grad(), reading(model, ["layers.3"]) as states:
        logits = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(lens(model, states["layers.3"][1]), logits[1], rtol=1e-4, atol=1e-5)


def test_earlier_states_pass_the_final_norm_and_the_head_alone():
    model = tiny("llama")
    states = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.lm_head(model.model.norm(states))
    torch.testing.assert_close(lens(model, states), expected, rtol=1e-4, atol=1e-5)
