"""What models say by themselves is what generation step by step says, however it is batched."""

import pytest
import torch

from stages.anatomy.decoding import answer, generate
from stages.anatomy.encoding import Encoded
from stages.anatomy.likelihood import score
from stages.anatomy.loading import load
from tests import grafts
from tests.families import FAMILIES, tiny

PROMPTS = [(5, 6, 7, 8), (5, 6, 7, 9, 10), (5, 6), (11,), (12, 13, 14, 15, 16, 17, 18), (5, 6, 7, 8, 20)]
MOST = 6


def plainly(model, prompt, most: int, ends=lambda token: False) -> tuple[list[int], list[torch.Tensor]]:
    """Tokens and the distributions that they are the likeliest of, each by a pass over all before it."""
    ids, told = list(prompt), []
    while len(ids) < len(prompt) + most:
        told.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double().softmax(-1))
        ids.append(int(told[-1].argmax()))
        if ends(ids[-1]):
            break
    return ids[len(prompt) :], told


def agree(said, tokens: list[int], told: list[torch.Tensor]) -> None:
    """Both the tokens and how sure the model is of them."""
    assert list(said.tokens) == tokens
    top = [p.sort(descending=True).values for p in told]
    assert said.loglikelihood == pytest.approx(sum(p[0].log().item() for p in top), abs=1e-4)
    assert said.margin == pytest.approx(min((p[0] - p[1]).item() for p in top), abs=1e-5)
    entropies = [torch.distributions.Categorical(probs=p).entropy().item() for p in told]
    assert said.entropy == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_own_answers_are_those_of_passes_one_by_one(family):
    model = tiny(family, initializer_range=0.5)
    encoded, wanted = [], []
    for number, prompt in enumerate(PROMPTS):
        tokens, told = plainly(model, prompt, 4)
        keep = number % 5  # leaves the continuation after so many tokens, or never
        given = tokens if keep == 4 else [*tokens[:keep], (tokens[keep] + 1) % 100, 9, 11][:4]
        encoded.append(Encoded((*prompt, *given), len(prompt)))
        wanted.append(plainly(model, prompt, 4))
    scores, said = answer(model, encoded, [4] * len(encoded), lambda token: False, budget=24)
    for each, (tokens, told) in zip(said, wanted, strict=True):
        agree(each, tokens, told)
    expected = score(model, encoded, budget=24)
    torch.testing.assert_close(scores.loglikelihood, expected.loglikelihood, rtol=1e-5, atol=1e-5)
    assert scores.greedy.tolist() == expected.greedy.tolist() and 0 < scores.greedy.sum() < len(encoded)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_go_on_together_as_they_do_alone(family):
    model = tiny(family, initializer_range=0.5)
    ends = {int(plainly(model, PROMPTS[0], 2)[0][1])}  # one prompt at least ends early
    said = generate(model, PROMPTS, lambda n, tokens: len(tokens) >= MOST - n % 2 or tokens[-1] in ends)
    for number, prompt in enumerate(PROMPTS):
        agree(said[number], *plainly(model, prompt, MOST - number % 2, lambda token: token in ends))
    assert len({len(each.tokens) for each in said}) > 1


@pytest.mark.parametrize("budget", [1, 12, 4096])
def test_an_answer_ends_where_it_is_told_to(budget):
    model = tiny("llama", initializer_range=0.5)
    first = [plainly(model, prompt, 3)[0] for prompt in PROMPTS]
    ends = {tokens[1] for tokens in first[:3]}
    encoded = [Encoded((*prompt, 3, 4, 5), len(prompt)) for prompt in PROMPTS]
    said = answer(model, encoded, [3] * len(encoded), lambda token: token in ends, budget)[1]
    for each, prompt in zip(said, PROMPTS, strict=True):
        agree(each, *plainly(model, prompt, 3, lambda token: token in ends))


@pytest.mark.parametrize("donor", ["alike", "characters"])
def test_a_graft_goes_on_as_it_reads(donor, tmp_path):
    target = grafts.target(tmp_path)
    giving = grafts.target(tmp_path, seed=1) if donor == "alike" else grafts.characters(tmp_path)
    bridge = {} if donor == "alike" else {"bridge": "linear", "mix": "add"}
    model = load(grafts.built(tmp_path / "graft", target, giving, **bridge)[1])
    texts = ["What is 12 + 30?", "The sum of 12", "A café", "Question: What is 99 minus 1?"]
    prompts = [grafts.bpe()(text).input_ids for text in texts]
    encoded = [Encoded((*prompt, 40, 41, 42), len(prompt)) for prompt in prompts]
    for said in (
        answer(model, encoded, [5] * 4, lambda token: False)[1],
        generate(model, prompts, lambda n, t: len(t) > 4),
    ):
        for each, prompt in zip(said, prompts, strict=True):
            agree(each, *plainly(model, prompt, 5))


def test_a_model_without_a_cache_of_rows_says_the_same(monkeypatch):
    model = tiny("llama", initializer_range=0.5)
    before = generate(model, PROMPTS, lambda n, tokens: len(tokens) >= 3)
    monkeypatch.setattr("stages.anatomy.head.DynamicCache", type("Other", (), {}))
    after = generate(model, PROMPTS, lambda n, tokens: len(tokens) >= 3)
    assert [each.tokens for each in after] == [each.tokens for each in before]
