"""What is shown of a graft: answers by generate, right ones by their kind, gates beside every token."""

import json
from typing import Any

import pytest
import torch

from stages import showcase as stage
from stages.amounts import amounts
from stages.anatomy.loading import load, load_tokenizer
from stages.answers import answers, begins, mentions
from stages.errors import BadInput
from stages.showcase import Showcase, chosen, showcase, spaced
from stages.storage import write_jsonl
from tests import grafts

SETTINGS = Showcase(prompts=1, texts=1, answer_tokens=5, text_tokens=6)
QUESTION = {"id": "q1", "topic": "x", "question": "Which city?", "choices": ["Oslo", "Rome"], "answer": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("showcase")
    target, donor = grafts.target(root), grafts.characters(root)
    graft = grafts.built(root, target, donor, bridge="linear", mix="add")[1]
    return {"target": target, "donor": donor, "graft": graft}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    rows = [
        {"id": f"i{i}", "prompt": f"What is {i} + 1? Answer:", "answer": f" {i + 1}.", "seen": i % 2 == 0}
        for i in range(6)
    ]
    write_jsonl(root / "capability" / "test.jsonl", rows)
    write_jsonl(root / "retention" / "questions.jsonl", [QUESTION])
    texts = ["In 1900 there were 12 towns, and a river ran by them all.", "A café in the old town sells tea and bread."]
    write_jsonl(
        root / "retention" / "text.jsonl", [{"id": f"t{i}", "topic": "x", "text": t} for i, t in enumerate(texts)]
    )
    return root


def taken(models):
    return {name: lambda path=path: (load(path), load_tokenizer(path)) for name, path in models.items()}


@pytest.fixture(scope="module")
def shown(models, prompts):
    return showcase(SETTINGS, chosen(SETTINGS, prompts), taken(models))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_answers_in_a_batch_are_those_of_generate_alone(tmp_path, family):
    path = grafts.target(tmp_path, family)
    model: Any = load(path)
    tokenizer = load_tokenizer(path)
    asked = ["What is 12 + 30? Answer:", "A café", "The sum of 12 and 30 is 42, and the"]
    found = answers(model, tokenizer, asked, 6)
    for prompt, answer in zip(asked, found, strict=True):
        text = tokenizer(prompt, return_tensors="pt")
        told = model.generate(**text, max_new_tokens=6, do_sample=False, pad_token_id=0)
        whole: Any = tokenizer.decode(told[0, text.input_ids.shape[1] :], skip_special_tokens=True)
        lead = len(whole) - len(whole.lstrip())
        assert answer == whole[:lead] + whole[lead:].split("\n")[0]


def test_an_answer_ends_with_its_line(models):
    model, tokenizer = load(models["target"]), load_tokenizer(models["target"])
    end, word = tokenizer("\n").input_ids, tokenizer("What").input_ids
    spoken = iter([*end, *word, *end, *word, *word])

    def speak(module, args, kwargs, output):
        output.logits[:, -1] = torch.nn.functional.one_hot(torch.tensor(next(spoken)), output.logits.shape[-1]) * 9.0
        return output

    handle = model.register_forward_hook(speak, with_kwargs=True)
    assert answers(model, tokenizer, ["The"], 5) == ["\nWhat"]
    handle.remove()
    assert len(list(spoken)) == 2  # it stopped at the line's end, two tokens early


def test_what_is_shown_covers_every_kind(shown):
    assert [each["kind"] for each in shown["texts"]] == ["capability", "capability", "retention", "text", "text"]
    with_digits, without = (each["prompt"] for each in shown["texts"][3:])
    assert any(sign.isdigit() for sign in with_digits) and not any(sign.isdigit() for sign in without)
    assert shown["texts"][2]["prompt"] == "Question: Which city?\nAnswer:"
    assert shown["texts"][2]["expected"] == "Rome"
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_each_answer_and_each_gate_is_the_models_own(models, shown):
    loaded = {name: make() for name, make in taken(models).items()}
    for each in shown["texts"]:
        said = dict.fromkeys(loaded)
        if each["kind"] != "text":
            said = {name: answers(*model, [each["prompt"]], 5)[0] for name, model in loaded.items()}
        assert each["answers"] == {name: answer and answer.strip() for name, answer in said.items()}
        found = amounts(*loaded["graft"], each["prompt"] + (said["graft"] or ""))
        assert shown["parts"] == list(found.parts) == ["layers.2 injection"]
        assert [token["text"] for token in each["tokens"]] == list(found.tokens)
        for token, amount in zip(each["tokens"], found.open[:, 0].tolist(), strict=True):
            assert token["gates"] == [pytest.approx(amount, abs=5.1e-5)]
        own = "".join(token["text"] for token in each["tokens"] if not token["answer"])
        assert own == each["prompt"] or each["kind"] != "text"
        assert any(token["answer"] for token in each["tokens"]) == bool(said["graft"])


def test_texts_are_cut_and_have_no_answers(shown):
    for each in shown["texts"][3:]:
        assert len(each["tokens"]) == 6
        assert set(each["answers"].values()) == set(each["right"].values()) == {None}
        assert each["expected"] is None


def test_a_weights_graft_has_no_parts(models, prompts):
    alone = models | {"graft": models["target"]}
    found = showcase(SETTINGS, chosen(SETTINGS, prompts), taken(alone))
    assert found["parts"] == []
    assert {len(token["gates"]) for each in found["texts"] for token in each["tokens"]} == {0}
    assert all(each["answers"]["graft"] == each["answers"]["target"] for each in found["texts"])


@pytest.mark.parametrize(
    ("answer", "expected", "how", "right"),
    [
        (" 703. And so on", "703.", begins, True),
        (" 7031.", "703.", begins, False),
        ("the sum is 703.", "703.", begins, False),
        ("It is Rome, of course", "rome", mentions, True),
        ("Jerome knows", "Rome", mentions, False),
        ("Jerome knows Rome", "Rome", mentions, True),
        ("", "Rome", mentions, False),
    ],
)
def test_a_right_answer(answer, expected, how, right):
    assert how(answer, expected) == right


def test_items_are_spread_over_the_whole():
    assert spaced(list(range(100)), 4) == [12, 37, 62, 87]
    assert spaced([1, 2], 4) == [1, 2] and spaced([], 2) == []


def test_the_same_run_gives_the_same_bytes(models, prompts, tmp_path):
    (tmp_path / "params.yaml").write_text("showcase: {prompts: 1, texts: 1, answer_tokens: 3, text_tokens: 6}")
    for name in ("one", "two"):
        stage.main(**models, prompts=prompts, out=tmp_path / f"{name}.json", params=tmp_path / "params.yaml")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize(("prompt", "got"), [("", "0"), ("12 " * 300, "302")])
def test_a_prompt_that_cannot_be_answered_is_refused(models, prompt, got):
    with pytest.raises(BadInput, match=f"Expected a prompt of 1 to 246 tokens, got {got}"):
        answers(load(models["target"]), load_tokenizer(models["target"]), ["fine", prompt], 10)
