"""Outcomes against plain passes that compute every logit."""

import pytest
import torch

from stages.anatomy.encoding import Encoded, answers_of, bundles_of, encode, texts_of
from stages.anatomy.head import logits_at
from stages.anatomy.likelihood import Reference, read, score
from stages.anatomy.outcomes import Judge
from tests.families import FAMILIES, tiny, token_ids, tokenizer

ITEMS = [(f"{a} + {b} =", f" {a + b}.") for a, b in ((1, 2), (30, 4), (555, 66), (7, 8), (1, 2))]
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_logits_at_chosen_positions_are_the_model_s(family):
    model, ids = tiny(family), token_ids(2, 9)
    row, column = torch.tensor([0, 1, 1, 0]), torch.tensor([8, 0, 4, 8])
    whole = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(logits_at(model, ids, row, column), whole[row, column])
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, whole)  # the head is as before


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [8, 1000])
def test_continuations_score_as_in_plain_passes_one_by_one(family, budget):
    model = tiny(family, initializer_range=0.5)
    first = encode(tokenizer(), ITEMS)
    ends = [Encoded((*e.ids[:-1], token), e.start) for e in first for token in (3, 9, 11)]  # share all but the last
    scores = score(model, [*first, *ends], budget)
    for index, e in enumerate([*first, *ends]):
        logprobs = model(input_ids=torch.tensor([e.ids])).logits[0, e.start - 1 : -1].double().log_softmax(-1)
        answer = torch.tensor(e.ids[e.start :])
        told = logprobs.gather(-1, answer[:, None]).sum()
        torch.testing.assert_close(scores.loglikelihood[index], told, rtol=1e-4, atol=1e-5)
        assert bool(scores.greedy[index]) == (logprobs.argmax(-1) == answer).all()


@pytest.mark.parametrize("budget", [9, 1000])
def test_beginnings_leave_the_fewest_tokens_to_read(budget):
    contexts = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 2, 3, 7), (1, 8, 8, 8, 8), (1, 8, 8, 8, 9), (5,), (1, 2, 3)]
    encoded = [Encoded((*context, 0), len(context)) for context in contexts]
    bundles = bundles_of(encoded, budget)
    whole = [
        [*bundle.beginnings[origin[row]].tolist(), *batch.ids[row].tolist()]
        for bundle in bundles for origin, batch in bundle.batches for row in range(len(batch.ids))
    ]  # fmt: skip
    assert all(any(ids[: len(context)] == list(context) for ids in whole) for context in contexts)
    shared = sorted(
        beginning for bundle in bundles if bundle.beginnings.shape[1] for beginning in bundle.beginnings.tolist()
    )
    assert shared == [[1, 2], [1, 8, 8, 8]]  # the shortest context, 1 2 3, has to keep a token of its own
    assert sorted(i for b in bundles for _, batch in b.batches for i in batch.item.tolist()) == list(range(7))


@pytest.mark.parametrize("budget", [8, 1000])
def test_a_text_is_read_as_in_plain_passes(budget):
    model, reference = tiny("qwen2"), tiny("qwen2", seed=1)
    known = Reference(reference, [each.states for each in read(reference, TEXTS, budget=1000)])
    for text, told in zip(TEXTS, read(model, TEXTS, known, budget), strict=True):
        q, p = (m(input_ids=torch.tensor([text[:-1]])).logits[0].double().log_softmax(-1) for m in (model, reference))
        assert told.tokens == len(text) - 1
        assert told.loglikelihood == pytest.approx(q.gather(-1, torch.tensor(text[1:])[:, None]).sum().item(), rel=1e-5)
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item()
        assert told.divergence == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert told.agreement == pytest.approx((q.argmax(-1) == p.argmax(-1)).double().mean().item())
