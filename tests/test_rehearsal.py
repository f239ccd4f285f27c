"""Texts that a model makes up, and donors that rehearse them."""

import contextlib

import pytest
import torch
from peft import PeftModel

from stages.anatomy.loading import load, load_tokenizer
from stages.rehearsal import Rehearsal, divergence, made_up
from stages.specialize import Adapter, specialize
from tests import toy
from tests.families import tiny
from tests.grafts import VOCABULARY, bpe

RECIPE = Rehearsal(weight=1.0, texts=9, tokens=12, batch=2)


def test_made_up_texts_have_their_length_begin_as_texts_do_and_end_nowhere():
    model = tiny("llama", vocab_size=VOCABULARY)
    told = made_up(model, bpe(), RECIPE, seed=3, at_once=4)
    assert told.shape == (9, 12)
    assert set(told[:, 0].tolist()) <= {1, 2} and len(set(told[:, 0].tolist())) == 2
    assert not (told[:, 5:] == model.config.eos_token_id).any()
    assert torch.equal(told, made_up(model, bpe(), RECIPE, seed=3, at_once=4))
    assert not torch.equal(told, made_up(model, bpe(), RECIPE, seed=4, at_once=4))


def test_sampling_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made_up(tiny("llama", vocab_size=VOCABULARY), bpe(), RECIPE, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_divergence_is_nothing_from_itself_and_the_mean_over_tokens_from_another():
    one, other = tiny("llama", 0), tiny("llama", 1)
    ids = torch.randint(3, 128, (2, 5), generator=torch.Generator().manual_seed(0))
    reference, own = (m(input_ids=ids).logits.log_softmax(-1) for m in (one, other))
    assert divergence(one, ids, reference).item() == pytest.approx(0, abs=1e-6)
    expected = (reference.exp() * (reference - own)).sum(-1).mean().item()
    assert divergence(other, ids, reference).item() == pytest.approx(expected, rel=1e-5)


def test_a_donor_that_rehearses_stays_nearer_to_the_target(tmp_path):
    toy.target(tmp_path / "target")
    drift = {}
    for name, weight in (("free", None), ("held", 30.0)):
        rehearsal = None if weight is None else {"weight": weight, "texts": 32, "tokens": 16, "batch": 8}
        recipe = Adapter(recipe="adapter", rank=4, alpha=8, rehearsal=rehearsal, **toy.DONOR)
        with contextlib.redirect_stdout(None):
            specialize(recipe, tmp_path / "target", name, tmp_path / name)
        drift[name] = far(tmp_path, name)
    assert drift["held"] < 0.5 * drift["free"]


def far(root, name: str) -> float:
    """Divergence of the adapter `name` from the target on texts that neither has seen."""
    target = load(root / "target")
    ids = made_up(target, load_tokenizer(root / "target"), RECIPE, seed=9)
    with torch.no_grad():
        reference = target(input_ids=ids).logits.log_softmax(-1)
        return divergence(PeftModel.from_pretrained(target, root / name), ids, reference).item()
