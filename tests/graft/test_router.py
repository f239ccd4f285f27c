"""A mixture with biased routers, as a graft."""

from pathlib import Path

import pytest
import torch

from stages.anatomy.loading import load
from stages.anatomy.routing import biased, raised, routers_of
from stages.assembly import write_graft
from stages.graft.router import RouterBias
from tests import grafts
from tests.families import MIXTURES

CHOSEN = torch.tensor([[0, 3], [1, 2], [0, 1], [2, 3]])
ROWS = [grafts.bpe()(text).input_ids for text in ("What is 12 + 30? Answer:", "The sum of 1", "Question:\n99 minus")]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0}


def exported(root: Path, family: str, strength: float) -> tuple[Path, Path]:
    """The mixture's directory and that of the graft."""
    source = grafts.target(root, family)
    model = load(source)
    part = RouterBias(list(routers_of(model).values()), 4)
    part.bias.copy_(raised(CHOSEN, 4, strength))
    write_graft(
        model, grafts.bpe(), [], [(part, {"kind": "router", "routers": part.routers, "experts": 4})], root / "graft"
    )
    return source, root / "graft"


def logits(model, ids, mask=None) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


@pytest.mark.parametrize("family", MIXTURES)
def test_an_exported_bias_gives_the_logits_that_the_biased_model_gave(tmp_path, family):
    source, path = exported(tmp_path, family, 2.0)
    graft, model, ids = load(path), load(source), torch.tensor(ROWS[:1])
    with biased(model, raised(CHOSEN, 4, 2.0)):
        expected = logits(model, ids)
    assert torch.equal(logits(graft, ids), expected)
    assert not torch.allclose(expected, logits(model, ids), atol=1e-3)
    assert not any(module._forward_hooks for module in graft.modules())


@pytest.mark.parametrize("family", MIXTURES)
def test_a_bias_of_zero_gives_the_mixtures_logits_bit_for_bit(tmp_path, family):
    source, path = exported(tmp_path, family, 0.0)
    assert torch.equal(logits(load(path), torch.tensor(ROWS[:1])), logits(load(source), torch.tensor(ROWS[:1])))


@pytest.mark.parametrize("family", MIXTURES)
def test_generation_with_a_cache_and_in_a_batch_gives_the_tokens_that_it_gives_without(tmp_path, family):
    graft = load(exported(tmp_path, family, 3.0)[1])
    ids, mask = grafts.padded(ROWS)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **GREEDY)
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY))
    for row, plain in enumerate(ROWS):
        alone = graft.generate(input_ids=torch.tensor([plain]), **GREEDY)[0, len(plain) :]
        assert torch.equal(cached[row, ids.shape[1] :][: len(alone)], alone)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", MIXTURES)
def test_padding_changes_no_logit(tmp_path, family, side):
    graft = load(exported(tmp_path, family, 3.0)[1])
    ids, mask = grafts.padded(ROWS, side, filler=40)
    told = logits(graft, ids, mask)
    for row, plain in enumerate(ROWS):
        assert torch.allclose(told[row][mask[row].bool()], logits(graft, torch.tensor([plain]))[0], atol=1e-4)
