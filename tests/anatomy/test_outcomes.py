"""Outcomes against plain passes that compute every logit."""

import pytest
import torch

from stages.anatomy.head import logits_of
from stages.anatomy.likelihood import encode, score
from stages.anatomy.outcomes import Judge, answers_of, texts_of
from tests.families import FAMILIES, tiny, token_ids, tokenizer

ITEMS = [(f"{a} + {b} =", f" {a + b}.") for a, b in ((1, 2), (30, 4), (555, 66), (7, 8), (1, 2))]
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_final_states_are_the_model_s(family):
    model, ids = tiny(family), token_ids(1, 9)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(logits_of(model, states), model(input_ids=ids, use_cache=False).logits[0])
    assert not any("forward" in vars(module) for module in model.modules())


def test_mixtures_of_experts_have_a_head_too():
    model, ids = tiny("mixtral"), token_ids(1, 9)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(logits_of(model, states), model(input_ids=ids, use_cache=False).logits[0])


@pytest.mark.parametrize("budget", [16, 1000])
def test_answers_score_as_they_do_one_by_one(budget):
    model, encoded = tiny("llama", initializer_range=0.5), encode(tokenizer(), ITEMS)
    outcome = Judge(model, answers_of(encoded, budget), texts_of(TEXTS, budget)).outcome(model)
    scores = score(model, encoded)
    torch.testing.assert_close(outcome.loglikelihood, scores.loglikelihood, rtol=1e-5, atol=1e-5)
    assert torch.equal(outcome.match, scores.greedy.double())


def test_an_answer_that_greedy_decoding_gives_matches():
    model, encoded = tiny("llama"), encode(tokenizer(), ITEMS)
    first = encoded[0]
    greedy = model(input_ids=torch.tensor([first.ids[: first.start]])).logits[0, -1].argmax().item()
    told = [type(first)((*first.ids[: first.start], greedy), first.start), *encoded[1:]]
    assert Judge(model, answers_of(told, 100), texts_of(TEXTS, 100)).outcome(model).match.tolist()[0] == 1


@pytest.mark.parametrize("budget", [8, 1000])
def test_divergence_is_the_sum_over_a_text_s_positions_of_kl_from_the_target(budget):
    target, donor = tiny("qwen2"), tiny("qwen2", seed=1)
    judge = Judge(target, answers_of(encode(tokenizer(), ITEMS), budget), texts_of(TEXTS, budget))
    outcome = judge.outcome(donor)
    for index, text in enumerate(TEXTS):
        p, q = (model(input_ids=torch.tensor([text[:-1]])).logits[0].log_softmax(-1) for model in (target, donor))
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").double()
        torch.testing.assert_close(outcome.divergence[index], expected, rtol=1e-4, atol=1e-5)
    assert judge.tokens.tolist() == [8, 3, 13]
    assert judge.outcome(target).divergence.max() < 1e-4
