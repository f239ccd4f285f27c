"""The terminal's view: answers side by side and gates token by token, and nothing that a prompt holds acts."""

import io
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from stages import ask as stage
from stages.amounts import Amounts, amounts
from stages.anatomy.loading import load, load_tokenizer
from stages.answers import answers
from stages.ask import Told, ask, donor_of, main, plain, prompts, shaded
from stages.errors import BadInput
from stages.program import program
from stages.visible import visible
from tests import grafts

SEEN = {"": "·", " ": "␠"}
PROMPT = "What is 12 + 30? Answer:"
HOSTILE = (
    "[red]x[/red] [link=http://evil]y[/link] :boom: \x1b[31m\x1b]8;;http://evil\x07 \r\b\u202e\u2066 \x9b2J \udcff"
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("ask")
    target, donor = grafts.target(root), grafts.target(root, seed=1)
    return {"target": target, "donor": donor, "graft": grafts.built(root / "made", target, donor)[1]}


@pytest.fixture(scope="module")
def models(places):
    return {name: (load(path), load_tokenizer(path)) for name, path in places.items()}


def test_every_model_answers_and_the_gates_cover_the_grafts_answer(models):
    told = ask(models, PROMPT, 4)
    said = {name: answers(*model, [PROMPT], 4)[0] for name, model in models.items()}
    assert told.answers == {name: answer.strip() for name, answer in said.items()}
    assert torch.equal(told.gates.open, amounts(*models["graft"], PROMPT + said["graft"]).open)


def test_plain_text_has_a_line_for_each_answer_and_each_token(models):
    told = ask(models, PROMPT, 4)
    lines = list(plain(told))
    assert lines[0] == PROMPT
    assert [line.split()[0] for line in lines[1:4]] == ["target", "donor", "graft"]
    assert lines[4] == "Gates, token by token (0 closed, 1 open): layers.2 injection"
    expected = [f"  {amount:.2f}  {SEEN.get(token, visible(token))}"
                for amount, token in zip(told.gates.open[:, 0].tolist(), told.gates.tokens, strict=True)]  # fmt: skip
    assert lines[5:] == expected


def drawn(told: Told, color: str | None = "truecolor") -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=color, width=80, highlight=False, markup=False)
    console.print(*shaded(told), sep="\n")
    return out.getvalue()


def test_a_terminal_shows_every_token_with_its_amount_shaded(models):
    told = ask(models, PROMPT, 4)
    text = drawn(told)
    assert "target" in text and "donor" in text and "graft" in text
    assert text.count("48;2;") >= len(told.gates.tokens)
    for amount in told.gates.open[:, 0].tolist():
        assert f"{amount:.2f}" in text


def test_several_parts_are_shown_each_by_its_name():
    gates = Amounts(
        ("layers.1 shared 1", "layers.1 shared 2"), ("a", " b"), (1, 3), torch.tensor([[0.1, 0.9], [0.5, 0.25]])
    )
    told = Told("a b", {"target": "x", "graft": "y"}, gates)
    lines = list(plain(told))
    assert lines[3].endswith("layers.1 shared 1, layers.1 shared 2")
    assert lines[4:] == ["  0.10  0.90  a", "  0.50  0.25   b"]
    text = drawn(told, None).split("layers.1 shared 1, layers.1 shared 2\n")[1]
    assert (
        text.index("layers.1 shared 1\n") < text.index("0.10") < text.index("layers.1 shared 2\n") < text.index("0.90")
    )


def test_a_graft_without_gates_says_so(models):
    alone = {"target": models["target"], "graft": models["target"]}
    assert list(plain(ask(alone, PROMPT, 2)))[3:] == [
        "This graft has no gate: it is changed in its weights, or by parts that work at every token."
    ]


def test_nothing_that_others_wrote_acts():
    gates = Amounts(
        ("layers.0 injection",), (HOSTILE, "", "\n"), (1, 1, 2), torch.tensor([[0.5], [0.0], [float("nan")]])
    )
    told = Told(HOSTILE, {"target": HOSTILE, "graft": HOSTILE}, gates)
    for text in ("\n".join(plain(told)), drawn(told, None)):
        assert not set(text) & set("\x1b\x07\r\b\u202e\u2066\x9b\udcff")
        shown = "".join(text.split())
        assert "[red]x[/red]" in shown and ":boom:" in shown and "␛[31m" in shown and "\\u202e" in shown
        text.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n\x7f", "a␉b␊␡"),
        ("é日🧮", "é日🧮"),
        ("\u200f\ufeff\ue000\x85", "\\u200f\\ufeff\\ue000\\u0085"),
        ("\x00", "␀"),
    ],
)
def test_control_characters_are_shown_and_letters_are_left(text, shown):
    assert visible(text) == shown


def test_lines_of_the_standard_input_are_prompts(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n  \r\ntwo \r\nthree"))
    assert list(prompts([])) == ["one", "two ", "three"]
    assert list(prompts(["given"])) == ["given"]


def test_the_donor_is_the_one_that_the_experiment_names(tmp_path):
    (tmp_path / "models" / "sibling").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"adopt": {"sibling": {}}, "inject": {"blade": {"donor": "sibling"}}})
    )
    assert donor_of(tmp_path / "grafts" / "blade", tmp_path / "params.yaml") == tmp_path / "models" / "sibling"
    assert donor_of(tmp_path / "grafts" / "other", tmp_path / "params.yaml") is None
    assert donor_of(tmp_path / "grafts" / "blade", tmp_path / "none.yaml") is None


def test_a_prompt_without_words_is_refused(models):
    with pytest.raises(BadInput, match="Expected a prompt with words"):
        ask(models, " \n", 2)


def test_one_bad_prompt_does_not_end_the_conversation(models, places, monkeypatch, capsys):
    monkeypatch.setattr(stage, "load", lambda path: models[next(n for n, p in places.items() if p == path)][0])
    ended = main(["12 " * 300, "The"], places["graft"], places["target"], places["donor"], 2, Path("none.yaml"))
    told = capsys.readouterr()
    assert ended == 2
    assert told.err.startswith("graftline: Expected a prompt of 1 to 254 tokens") and told.out.startswith("The\n")


@pytest.mark.parametrize(
    ("typed", "status", "said"),
    [
        (["hi", "--graft", "nowhere"], 2, "graftline: Expected a model directory"),
        (["hi", "--tokens", "0"], 2, "Invalid value for '--tokens'"),
        (["--help"], 0, ""),
    ],
)
def test_the_command_line_ends_with_a_sentence_and_a_status(places, tmp_path, typed, status, said, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ask", *typed, "--target", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        program(main)
    told = capsys.readouterr()
    assert ended.value.code == status
    assert said in " ".join(told.err.split())
