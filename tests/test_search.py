"""The descent finds the modules that matter, at the prices that it is given."""

import copy

import pytest
import torch

from stages.anatomy.encoding import Encoded
from stages.anatomy.modules import linear_paths
from stages.anatomy.strengths import mixing
from stages.search import Descent, descend
from tests.families import tiny, token_ids

PLANTED = ["layers.1.mlp.up_proj", "layers.2.self_attn.v_proj", "layers.3.mlp.down_proj"]
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 12, 7, 14)]
HOW = Descent(steps=40, prompts=8, texts=4, start=0.5, prices=(0.5, 0.5), rate=0.05)


def planted() -> tuple[torch.nn.Module, torch.nn.Module, list[Encoded]]:
    """A target; a donor whose planted modules alone make the answers, and whose others are merely stirred; the answers
    that the target with the planted modules gives."""
    target, right = tiny("llama"), tiny("llama")
    other = tiny("llama", seed=1)
    for name in PLANTED:
        right.get_submodule(linear_paths(right)[name]).weight.copy_(
            other.get_submodule(linear_paths(other)[name]).weight
        )
    donor = copy.deepcopy(right)
    generator = torch.Generator().manual_seed(0)
    for name, path in linear_paths(donor).items():
        if name not in PLANTED:
            weight = donor.get_submodule(path).weight
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    prompts = token_ids(24, 6, seed=5)
    following = right(input_ids=prompts, use_cache=False).logits[:, -1].argmax(-1)
    return target, donor, [Encoded((*p, t), 6) for p, t in zip(prompts.tolist(), following.tolist(), strict=True)]


def found(how: Descent = HOW, texts=TEXTS):
    target, donor, answers = planted()
    with mixing(target, donor) as mixture:
        return mixture.names, descend(mixture, answers, texts, how)


def test_modules_that_matter_are_kept_and_the_others_given_up():
    names, steps = found()
    strengths = dict(zip(names, steps[-1].strengths.tolist(), strict=True))
    own, others = ([v for n, v in strengths.items() if (n in PLANTED) == inside] for inside in (True, False))
    assert min(own) > 0.6
    assert sum(others) / len(others) < 0.2
    assert {name for name in strengths if strengths[name] > 0.6} - set(PLANTED) <= {"layers.2.self_attn.q_proj"}


@pytest.mark.parametrize(("price", "limit"), [(1e-6, 0.8), (1e6, 1e-3)])
def test_without_a_price_the_answers_are_learned_and_at_any_price_nothing_is_left(price, limit):
    _, steps = found(Descent(60, 24, 4, 0.5, (price, price), 0.05))
    first, last = steps[0], steps[-1]
    assert (last.cross_entropy < limit * first.cross_entropy) if price < 1 else (last.divergence < limit)
    if price > 1:
        assert steps[-1].strengths.max() < 0.05


def test_strengths_stay_between_target_and_donor_and_prices_rise_geometrically():
    _, steps = found(Descent(5, 4, 2, 0.5, (0.1, 10.0), 0.3))
    assert all(((each.strengths >= 0) & (each.strengths <= 1)).all() for each in steps)
    assert [each.price for each in steps] == pytest.approx([0.1, 0.1 * 10**0.5, 1.0, 10**0.5, 10.0])


def test_the_same_seed_gives_the_same_strengths_and_another_other_ones():
    few = Descent(3, 4, 2, 0.5, (0.1, 1.0), 0.1)
    first, second, other = (found(how)[1][-1] for how in (few, few, Descent(3, 4, 2, 0.5, (0.1, 1.0), 0.1, seed=1)))
    assert torch.equal(first.strengths, second.strengths)
    assert not torch.equal(first.strengths, other.strengths)


def test_a_step_reads_what_there_is_when_more_is_asked_for():
    assert len(found(Descent(2, 1000, 1000, 0.5, (0.1, 1.0), 0.1))[1]) == 2
