"""Estimates against finite differences, and what must not change them."""

import copy
import gc

import pytest
import torch

from stages.anatomy.attribution import attribute
from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.hooks import reading, replacing
from stages.anatomy.modules import linear_paths
from stages.errors import BadInput
from tests.families import FAMILIES, MIXTURES, SMOOTH, loglikelihoods, tiny, token_ids, tokenizer

ITEMS = encode(tokenizer(), [("1 + 7 =", " 8."), ("1 + 7 =", " 8!"), ("30 + 12 =", " 42."), ("5 + 5 =", " 10.")])
"""The first two share a row."""
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]


def answers_and_texts(budget: int = 40):
    return answers_of(ITEMS, budget), texts_of(TEXTS, budget)


def pair(family: str):
    """A target and a donor in double precision, for finer differences; some norms stay in single precision inside, and
    so do all parts of a mixture, whose experts know no other.
    """
    models = tiny(family, **SMOOTH.get(family, {})), tiny(family, seed=1, **SMOOTH.get(family, {}))
    return models if family in MIXTURES else tuple(model.double() for model in models)


def text_logits(model) -> list[torch.Tensor]:
    return [model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0] for ids in TEXTS]


def derivative(measure, move, family: str = "llama"):
    """Central difference of `measure()` while `move(t)` moves towards the donor by t.

    The step is short where the measure has kinks (OPT's ReLU), long where parts of it are rounded.
    """
    step = 1e-5 if family == "opt" else 1e-3
    ends = []
    for t in (step, -step):
        move(t)
        ends.append(measure())
    move(0.0)
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_have_the_derivative_of_the_log_likelihood_towards_the_donor(family):
    target, donor = pair(family)
    found = attribute(target, donor, answers_of(ITEMS, 40), [])
    ours, theirs = linear_paths(target), linear_paths(donor)
    assert {site for kind, site in found if kind == "weights"} == set(ours)
    for site in list(ours)[:: max(1, len(ours) // 5)]:
        module, other = target.get_submodule(ours[site]), donor.get_submodule(theirs[site])
        start = copy.deepcopy(module.state_dict())

        def move(t, module=module, start=start, other=other):
            for name, weight in module.named_parameters():
                weight.data = torch.lerp(start[name], other.get_parameter(name), t)

        expected = derivative(lambda: loglikelihoods(target, ITEMS), move, family).double()
        assert torch.allclose(found["weights", site].capability, expected, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "gemma2"])
@pytest.mark.parametrize("site", ["embed", "layers.1", "layers.2.self_attn", "layers.2.mlp"])
def test_states_have_the_derivative_of_the_log_likelihood_towards_the_donor(family, site):
    target, donor = pair(family)
    found = attribute(target, donor, answers_of(ITEMS, 40), [], [site])["states", site].capability
    share = 0.0

    def measure() -> torch.Tensor:
        told = []
        for e in ITEMS:
            ids = torch.tensor([e.ids[:-1]])
            with reading(donor, [site]) as states:
                donor(input_ids=ids, use_cache=False)
            with replacing(target, {site: lambda state, states=states: torch.lerp(state, states[site], share)}):
                logprobs = target(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            told.append(sum(logprobs[e.start - 1 + i, token] for i, token in enumerate(e.ids[e.start :])))
        return torch.stack(told)

    def move(t):
        nonlocal share
        share = t

    assert torch.allclose(found, derivative(measure, move, family), rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_divergence_is_half_the_fisher_form_of_the_step(family):
    target, donor = pair(family)
    found = attribute(target, donor, [], texts_of(TEXTS, 40), probes=300, seed=1)
    for layer in (0, 3):
        site = next(s for s in linear_paths(target) if s.startswith(f"layers.{layer}.mlp"))
        module, other = (m.get_submodule(linear_paths(m)[site]) for m in (target, donor))
        start = copy.deepcopy(module.state_dict())

        def move(t, module=module, start=start, other=other):
            for name, weight in module.named_parameters():
                weight.data = torch.lerp(start[name], other.get_parameter(name), t)

        slopes = derivative(lambda: torch.cat(text_logits(target)), move)
        likely = torch.cat(text_logits(target)).softmax(-1)
        variance = (likely * slopes**2).sum(-1) - (likely * slopes).sum(-1) ** 2
        expected = torch.stack([part.sum() for part in variance.split([len(ids) - 1 for ids in TEXTS])]) / 2
        assert torch.allclose(found["weights", site].retention, expected, rtol=0.2)
        total = found["weights", site].retention.sum()
        assert total.item() == pytest.approx(expected.sum().item(), rel=0.15)


def test_a_block_is_the_sum_of_its_modules_before_squaring():
    target, donor = pair("llama")
    found = attribute(target, donor, *answers_and_texts(), probes=1)
    for layer in range(4):
        modules = [found["weights", s] for s in linear_paths(target) if s.startswith(f"layers.{layer}.")]
        block = found["blocks", f"layers.{layer}"]
        assert torch.allclose(block.capability, sum(each.capability for each in modules))
        assert (block.retention <= 7 * sum(each.retention for each in modules) + 1e-12).all()
        assert not torch.allclose(block.retention, sum(each.retention for each in modules))


def test_batches_change_no_estimate_and_the_same_seed_gives_the_same():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    sites = ["layers.1", "layers.2.mlp"]
    one, other = (attribute(target, donor, *answers_and_texts(budget), sites) for budget in (1, 10**6))
    assert list(one) == list(other)
    for of in one:
        assert torch.allclose(one[of].capability, other[of].capability, rtol=1e-3, atol=1e-4)
        assert torch.allclose(one[of].retention, other[of].retention, rtol=1e-3, atol=1e-4)
    seeded = [
        attribute(target, donor, *answers_and_texts(), sites, seed=seed)["states", "layers.1"] for seed in (3, 3, 4)
    ]
    assert torch.equal(seeded[0].retention, seeded[1].retention)
    assert not torch.equal(seeded[0].retention, seeded[2].retention)
    assert torch.equal(seeded[0].capability, seeded[2].capability)


def test_neither_model_is_changed():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    attribute(target, donor, *answers_and_texts(), ["layers.1"])
    for model, seed in ((target, 0), (donor, 1)):
        fresh = tiny("llama", seed=seed).state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_no_graph_outlives_its_passes():
    target, donor = tiny("llama"), tiny("llama", seed=1)

    def held() -> int:
        gc.collect()
        return sum(type(each) is torch.Tensor and each.grad_fn is not None for each in gc.get_objects())

    before = held()
    attribute(target, donor, *answers_and_texts(1), ["layers.1"])
    assert held() == before


def test_a_module_that_never_runs_is_an_error():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    for model in (target, donor):
        blocks(model)[2].add_module("unused", torch.nn.Linear(2, 2))
    with pytest.raises(BadInput, match=r"Expected a gradient at layers\.2\.unused, but none came"):
        attribute(target, donor, *answers_and_texts())
