"""Patches that restart, in batches, against whole passes one by one."""

import pytest
import torch

from stages.anatomy.blocks import blocks, mlp_of
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.hooks import reading, replacing
from stages.anatomy.outcomes import Judge, states_at
from stages.anatomy.patching import Patch, mean_states, only_at, patched, to_states, to_vector
from stages.anatomy.positions import positions_at
from stages.anatomy.sites import sites_of
from stages.errors import BadInput
from tests.families import tiny, token_ids, tokenizer

ITEMS = encode(tokenizer(), [(f"{a} + {a * 7} =", f" {a * 8}.") for a in (1, 2, 30, 41, 555)])
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]
FAMILIES = ["llama", "opt", "bloom", "gpt2", "gemma2", "mixtral"]


def judge_of(model, budget: int = 60) -> Judge:
    return Judge(model, answers_of(ITEMS, budget), texts_of(TEXTS, budget))


def sites(model) -> list[str]:
    return [site for site in sites_of(model) if site != "lm_head"]


def the_long_way(model, site, change) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihoods and divergences by whole passes, item by item; `change` from ids to what changes the state."""
    told = []
    for e in ITEMS:
        ids = torch.tensor([e.ids[:-1]])
        with replacing(model, {site: change(ids)}):
            logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        told.append(sum(logprobs[e.start - 1 + i, token] for i, token in enumerate(e.ids[e.start :])))
    kl = []
    for text in TEXTS:
        ids = torch.tensor([text[:-1]])
        expected = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        with replacing(model, {site: change(ids)}):
            logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        kl.append((expected.exp() * (expected - logprobs)).sum())
    return torch.stack(told).double(), torch.stack(kl).double()


def assert_same(outcome, expected) -> None:
    assert torch.allclose(outcome.loglikelihood, expected[0], atol=2e-4)
    assert torch.allclose(outcome.divergence, expected[1], atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_donor_s_states_at_every_site_are_those_of_whole_passes(family):
    target, donor = tiny(family), tiny(family, seed=1)
    judge = judge_of(target)
    theirs = states_at(donor, judge.batches, sites(target))
    patches = [Patch(site, to_states(theirs[site])) for site in sites(target)]
    outcomes = patched(judge, target, judge.states(target), patches)

    def from_donor(site):
        def change(ids):
            with reading(donor, [site]) as states:
                donor(input_ids=ids, use_cache=False)
            return lambda _: states[site]

        return change

    for patch, outcome in list(zip(patches, outcomes, strict=True))[::3]:
        assert_same(outcome, the_long_way(target, patch.site, from_donor(patch.site)))


@pytest.mark.parametrize("family", FAMILIES)
def test_ablations_are_those_of_whole_passes(family):
    model = tiny(family)
    judge = judge_of(model)
    some = ["embed", "layers.0.mlp", "layers.1.self_attn", "layers.2", "norm"]
    means = mean_states(model, judge.texts, some)
    for vectors in (dict.fromkeys(some, 0.0), means):
        patches = [Patch(site, to_vector(vectors[site])) for site in some]
        for patch, outcome in zip(patches, patched(judge, model, judge.states(model), patches, 10**4), strict=True):
            vector = torch.as_tensor(vectors[patch.site])
            assert_same(outcome, the_long_way(model, patch.site, lambda _, v=vector: lambda s: v.expand_as(s).to(s)))


def test_means_leave_out_first_positions_and_pads():
    model = tiny("llama")
    states = []
    for text in TEXTS:
        with reading(model, ["layers.1"]) as read:
            model(input_ids=torch.tensor([text[:-1]]), use_cache=False)
        states.append(read["layers.1"][0, 1:])
    for budget in (1, 100):
        found = mean_states(model, texts_of(TEXTS, budget), ["layers.1"])["layers.1"]
        assert torch.allclose(found, torch.cat(states).mean(0), atol=1e-5)
    with pytest.raises(BadInput, match="Expected texts of at least three tokens to take means over, got none"):
        mean_states(model, texts_of([[5, 6]], 9), ["layers.1"])


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_patches_in_company_are_those_alone(family):
    target, donor = tiny(family), tiny(family, seed=1)
    judge = judge_of(target)
    theirs, kept = states_at(donor, judge.batches, sites(target)), judge.states(target)
    patches = [Patch(site, to_states(theirs[site])) for site in sites(target)]
    patches += [Patch(site, to_vector(0.0)) for site in sites(target)]
    for alone, together in zip(
        patched(judge, target, kept, patches), patched(judge, target, kept, patches, 10**4), strict=True
    ):
        assert torch.allclose(alone.loglikelihood, together.loglikelihood, atol=1e-4)
        assert torch.equal(alone.match, together.match)
        assert torch.allclose(alone.divergence, together.divergence, atol=1e-4)


def test_single_positions_are_patched_alone():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    judge = judge_of(target)
    theirs = states_at(donor, judge.batches, ["layers.1.mlp"])["layers.1.mlp"]
    masks = positions_at(2, judge.answers, judge.texts)
    patch = Patch("layers.1.mlp", only_at(masks, to_states(theirs)))
    (outcome,) = patched(judge, target, judge.states(target), [patch])

    def change(ids):
        with reading(donor, ["layers.1.mlp"]) as states:
            donor(input_ids=ids, use_cache=False)

        def at_two(state):
            changed = state.clone()
            changed[:, 2] = states["layers.1.mlp"][:, 2]
            return changed

        return at_two

    assert_same(outcome, the_long_way(target, "layers.1.mlp", change))


def test_the_model_s_own_states_change_nothing():
    model = tiny("qwen2")
    judge = judge_of(model)
    own = states_at(model, judge.batches, sites(model))
    patches = [Patch(site, to_states(own[site])) for site in sites(model)]
    for outcome in patched(judge, model, judge.states(model), patches):
        assert torch.equal(outcome.loglikelihood, judge.outcome(model).loglikelihood)


def test_only_blocks_that_can_differ_run():
    model = tiny("llama")
    judge = judge_of(model, 10**4)
    kept = judge.states(model)
    ran = []
    for index, block in enumerate(blocks(model)):
        block.get_submodule("self_attn").register_forward_hook(lambda *_, index=index: ran.append(index))
    for site, expected in (("layers.1", [2, 3]), ("layers.2.mlp", [2, 3]), ("layers.3", []), ("norm", [])):
        ran.clear()
        patched(judge, model, kept, [Patch(site, to_vector(0.0))])
        assert sorted(set(ran)) == expected


def test_a_site_that_cannot_be_patched_is_one_sentence():
    model = tiny("llama")
    judge = judge_of(model)
    with pytest.raises(BadInput, match="Expected a site before the head to patch, got 'lm_head'"):
        patched(judge, model, judge.states(model), [Patch("lm_head", to_vector(0.0))])
    with pytest.raises(BadInput, match="Expected a site of the model, got 'layers.1.nothing'"):
        patched(judge, model, judge.states(model), [Patch("layers.1.nothing", to_vector(0.0))])


def test_a_site_whose_hook_never_fires_is_an_error():
    model = tiny("llama")
    judge = judge_of(model)
    kept = judge.states(model)
    block = blocks(model)[1]
    block.forward = lambda hidden_states, **_: hidden_states  # a block that does not use its attention
    with pytest.raises(BadInput, match=r"Expected a forward pass to reach layers\.1\.self_attn, but none did"):
        patched(judge, model, kept, [Patch("layers.1.self_attn", to_vector(0.0))])


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt", "bloom"])
def test_neurons_of_an_mlp_that_does_not_run_are_an_error(family):
    model = tiny(family)
    judge = judge_of(model)
    kept = judge.states(model)
    block = blocks(model)[1]
    (mlp_of(block) or block).forward = lambda states, *_, **__: states
    site = next(site for site in sites(model) if site.startswith("layers.1.mlp.neurons"))
    with pytest.raises(BadInput, match=rf"Expected a forward pass to reach {site}, but none did"):
        patched(judge, model, kept, [Patch(site, to_vector(0.0))])
