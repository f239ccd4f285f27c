"""Input that evidence cannot use ends a stage with one sentence and exit code 2, and nothing that was there is lost."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import yaml

from stages import align, analyze, capture, trace, train_gates
from stages.activations import Activations
from stages.command import run
from stages.fingerprint import fingerprint
from stages.train_gates import main as train_main
from tests import toy
from tests.families import saved, tiny

PARAMS = {
    "capture": {"prompts": 6, "texts": 3, "batch_tokens": 256},
    "trace": {"prompts": 6, "texts": 3, "resamples": 50},
    "analyze": {},
    "align": {"kinds": ["ridge"]},
    "inject": {"blade": toy.PARAMS["inject"]["blade"]},
}
PROMPTS = [{"id": f"c{i}", "prompt": f"{i * 7} + {i} =", "answer": f" {i * 8}."} for i in range(6)]
TEXTS = [{"id": f"t{i}", "text": f"Text number {i} is here to be read and kept."} for i in range(3)]
MADE_BEFORE = b"what an earlier run left"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Model directories: a target, a donor of its kind, one of another width, one of another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    return {
        "target": saved(tiny("llama"), root / "target"),
        "donor": saved(tiny("llama", seed=1), root / "donor"),
        "wide": saved(tiny("llama", seed=1, hidden_size=48), root / "wide"),
        "strange": saved(tiny("llama", seed=1), root / "strange", r"\d|[^\d]{1,3}"),
    }


@pytest.fixture
def options(models, tmp_path) -> Callable[..., dict[str, Path]]:
    """A stage's options, after `change` was made to its inputs; `rows` stand in place of prompts or texts."""

    def made(**changes) -> dict[str, Path]:
        params = {name: section | changes.pop(name, {}) for name, section in PARAMS.items()}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        for name, rows in (("prompts", changes.pop("prompts", PROMPTS)), ("texts", changes.pop("texts", TEXTS))):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert not changes, changes
        data = {"capability": tmp_path / "prompts.jsonl", "text": tmp_path / "texts.jsonl"}
        return data | {"params": tmp_path / "params.yaml", "out": tmp_path / "out"}

    return made


@pytest.fixture
def refused(monkeypatch, capsys) -> Callable[..., str]:
    """Calls a stage's command line, which must fail and leave an earlier output; gives its sentence."""

    def call(main: Callable, **given: str | Path) -> str:
        out = Path(given["out"])
        out.write_bytes(MADE_BEFORE)
        words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        monkeypatch.setattr(sys, "argv", ["stage", *words])
        with pytest.raises(SystemExit) as ended:
            run(main)
        said = capsys.readouterr().err.splitlines()
        assert (ended.value.code, len(said)) == (2, 1), said
        assert out.read_bytes() == MADE_BEFORE
        return said[0].removeprefix("graftline: ")

    return call


def of_capture(options, models) -> dict:
    return options | {"model": models["target"]}


def of_training(options, models, donor: str = "donor") -> dict:
    return options | {"target": models["target"], "donor": models[donor], "variant": "blade"}


def of_trace(options, models, donor: str = "donor") -> dict:
    found = of_training(options, models, donor)
    del found["variant"]
    return found | {"curves_out": options["out"].with_suffix(".json")}


STAGES = [(capture.main, of_capture), (trace.main, of_trace), (train_main, of_training)]
BAD_ROWS = [
    ({"prompts": [PROMPTS[0], PROMPTS[1] | {"prompt": ""}]}, "words under 'prompt'", "got '' in line 2, c1"),
    ({"prompts": [PROMPTS[0] | {"answer": " "}]}, "words under 'answer'", "got ' ' in line 1, c0"),
    ({"prompts": [{"id": "c9", "prompt": "1 + 1 ="}]}, "words under 'answer'", "got no such key in line 1, c9"),
    ({"prompts": [{"id": "c9", "prompt": 7, "answer": " 7"}]}, "words under 'prompt'", "got 7 in line 1, c9"),
    ({"texts": [TEXTS[0], TEXTS[1] | {"text": ""}]}, "words under 'text'", "got '' in line 2, t1"),
    ({"prompts": ["a row"]}, "words under", "got no such key in line 1"),
    ({"prompts": []}, "prompts.jsonl is empty", "expected at least one JSON object a line"),
    ({"texts": []}, "texts.jsonl is empty", "expected at least one JSON object a line"),
]


@pytest.mark.parametrize(("main", "given"), STAGES, ids=["capture", "trace", "train_gates"])
@pytest.mark.parametrize(("change", "expected", "got"), BAD_ROWS)
def test_empty_prompts_answers_and_texts(refused, options, models, main, given, change, expected, got):
    sentence = refused(main, **given(options(**change), models))
    assert expected in sentence and got in sentence


@pytest.mark.parametrize(("main", "given"), STAGES[:2], ids=["capture", "trace"])
@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("layers.*.mpl", "did you mean 'layers.*.mlp'?"),
        ("layers.2.self_attn.heads.9", "did you mean 'layers.2.self_attn.heads.3'?"),
        ("layers.7.mlp", "layers go from 0 to 3."),
        ("layers.*.mlp.experts.*", "did you mean 'layers.*.mlp"),
    ],
)
def test_a_pattern_that_the_model_lacks(refused, options, models, main, given, pattern, hint):
    section = "capture" if main is capture.main else "trace"
    sentence = refused(main, **given(options(**{section: {"sites": [pattern]}}), models))
    assert f"got {pattern!r}, which means none of the model's" in sentence and hint in sentence


@pytest.mark.parametrize("kinds", [[], ["zero"]])
def test_the_head_is_no_site_to_trace(refused, options, models, kinds):
    sentence = refused(trace.main, **of_trace(options(trace={"sites": ["lm_head"], "activations": kinds}), models))
    assert "lm_head" in sentence


def test_more_groups_than_neurons(refused, options, models):
    sentence = refused(trace.main, **of_trace(options(trace={"neuron_groups": 65}), models))
    assert sentence == "Expected 1 to 64 groups of an MLP's 64 neurons, got 65; ask for fewer."


@pytest.mark.parametrize(
    ("position", "got"), [(-40, "Expected a prompt with a position -40, got none"), ("first", "positions")]
)
def test_positions_that_no_prompt_has(refused, options, models, position, got):
    changed = options(trace={"positions": [position], "activations": ["zero"], "attribution": False})
    assert got in refused(trace.main, **of_trace(changed, models))


def test_texts_too_short_to_predict_anything(refused, options, models):
    sentence = refused(trace.main, **of_trace(options(texts=[{"text": "x"}, {"text": "y"}]), models))
    assert "Expected a text of at least two tokens in" in sentence


def test_a_donor_that_cannot_be_traced(refused, options, models):
    assert "the target's tokenizer, got another in" in refused(trace.main, **of_trace(options(), models, "strange"))
    assert "equal widths, got 4 × LlamaDecoderLayer of width 48" in refused(
        trace.main, **of_trace(options(), models, "wide")
    )


def test_an_identity_blade_spells_for_a_donor_with_another_tokenizer(options, models, tmp_path):
    given = of_training(options(), models, "strange") | {"out": tmp_path / "gate"}
    train_gates.main(**given)
    assert (tmp_path / "gate" / "gate.safetensors").is_file()


@pytest.fixture(scope="module")
def captured(models, tmp_path_factory) -> dict[str, Path]:
    """Activation files by the model that was captured, and one of fewer prompts."""
    root = tmp_path_factory.mktemp("captured")
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    for name, rows in (("prompts", PROMPTS), ("texts", TEXTS), ("fewer", PROMPTS[:5])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {"target": "prompts", "donor": "prompts", "wide": "prompts", "fewer": "fewer"}
    for name, prompts in made.items():
        model = models.get(name, models["donor"])
        files = (root / f"{prompts}.jsonl", root / "texts.jsonl", root / f"{name}.h5", root / "params.yaml")
        capture.main(model, *files)
    return {name: root / f"{name}.h5" for name in made}


def of_analyze(options, models, captured, **files: str) -> dict:
    given = of_align(options, models, captured, **files)
    return given | {"capability": options["capability"], "curves_out": given["out"].with_name("curves.json")}


def of_align(options, models, captured, target: str = "target", donor: str = "donor") -> dict:
    given = {name: options[name] for name in ("params", "out")}
    told = {"target_model": models["target"], "donor_model": models["donor"]}
    return given | told | {"target": captured[target], "donor": captured[donor]}


def test_a_file_tells_whose_states_it_holds_and_how_many_blocks_there_were(models, captured):
    file = Activations(captured["donor"])
    assert (file.model, file.blocks) == (fingerprint(models["donor"]), 4)
    assert file.model != Activations(captured["target"]).model
    file.check_model(models["donor"])


def test_a_fingerprint_is_the_model_s_wherever_it_lies_and_no_other_s(models, tmp_path):
    moved = shutil.copytree(models["donor"], tmp_path / "elsewhere")
    assert fingerprint(moved) == fingerprint(models["donor"])
    assert len({fingerprint(path) for path in models.values()}) == 3  # `strange` differs in its tokenizer alone


COMPARISONS = [(align.main, of_align), (analyze.main, of_analyze)]


@pytest.mark.parametrize(("main", "given"), COMPARISONS, ids=["align", "analyze"])
@pytest.mark.parametrize(("target", "donor"), [("donor", "target"), ("donor", "donor"), ("target", "wide")])
def test_a_file_of_another_model(refused, options, models, captured, main, given, target, donor):
    sentence = refused(main, **given(options(), models, captured, target=target, donor=donor))
    wrong, name = ("target", target) if target != "target" else ("donor", donor)
    assert f"Expected states of the model {models[wrong]} in {captured[name]}, got those of another one" in sentence


def test_a_file_that_does_not_say_whose_it_is_is_taken(options, models, captured, tmp_path):
    shutil.copy(captured["donor"], tmp_path / "unsaid.h5")
    with h5py.File(tmp_path / "unsaid.h5", "r+") as file:
        del file.attrs["model"], file.attrs["blocks"]
    given = of_align(options(), models, captured | {"donor": tmp_path / "unsaid.h5"})
    align.main(**given)
    assert (given["out"] / "alignment.json").is_file()


@pytest.mark.parametrize("length", [0, 100, 3000, -1])
@pytest.mark.parametrize(("main", "given"), COMPARISONS, ids=["align", "analyze"])
def test_a_truncated_file(refused, options, models, captured, tmp_path, main, given, length):
    cut = tmp_path / "cut.h5"
    cut.write_bytes(captured["donor"].read_bytes()[:length])
    sentence = refused(main, **given(options(), models, captured | {"donor": cut}))
    assert f"{cut} is" in sentence and "capture" in sentence


@pytest.mark.parametrize(("main", "given"), COMPARISONS, ids=["align", "analyze"])
def test_files_of_unequal_texts(refused, options, models, captured, main, given):
    sentence = refused(main, **given(options(), models, captured, donor="fewer"))
    assert "Expected two captures of the same texts, got 9 texts in" in sentence


def test_a_file_without_blocks(refused, options, models, captured, tmp_path):
    shutil.copy(captured["donor"], tmp_path / "none.h5")
    with h5py.File(tmp_path / "none.h5", "r+") as file:
        for layer in range(4):
            del file[f"sites/layers.{layer}"]
    given = of_align(options(), models, captured | {"donor": tmp_path / "none.h5"})
    assert "none.h5 holds no block's states; add layers.* to capture.sites" in refused(align.main, **given)
