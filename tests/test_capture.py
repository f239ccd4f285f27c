"""Captured states are those of plain passes, whatever the batches; files are byte-stable; broken ones are refused."""

import json
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from stages.activations import Activations
from stages.anatomy.hooks import reading
from stages.anatomy.names import matching
from stages.anatomy.sites import sites_of
from stages.capture import Capture, capture, texts_of
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, tokenizer

SETTINGS = Capture(prompts=5, texts=2)


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def inputs(tmp_path) -> tuple[Path, Path]:
    prompts = [{"id": f"c{i}", "prompt": f"{i * i} + {i} =", "answer": f" {i * i + i}"} for i in range(9)]
    texts = [{"id": f"t{i}", "topic": "x", "text": "A longer text to read. " * (i + 1)} for i in range(4)]
    return jsonl(tmp_path / "train.jsonl", prompts), jsonl(tmp_path / "text.jsonl", texts)


def captured(inputs, out: Path, family: str = "llama", batch_tokens: int = 64) -> Activations:
    model = tiny(family)
    sites = matching(SETTINGS.sites, sites_of(model))
    capture(model, texts_of(tokenizer(), SETTINGS, *inputs), sites, out, batch_tokens)
    return Activations(out)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_text_alone_rounded_to_bfloat16(inputs, tmp_path, family):
    file, model = captured(inputs, tmp_path / "a.h5", family), tiny(family)
    assert file.sites == [*(f"layers.{i}{part}" for i in range(4) for part in (".self_attn", ".mlp", "")), "norm"]
    assert [file.ids, file.kinds] == [["c0", "c1", "c2", "c3", "c4", "t0", "t1"], ["capability"] * 5 + ["text"] * 2]
    for begin, end in zip(file.starts[:-1], file.starts[1:], strict=True):
        with reading(model, file.sites) as states:
            model.base_model(input_ids=file.tokens[None, begin:end].long(), use_cache=False)
        for site in file.sites:
            near = states[site][0].to(torch.bfloat16).float()
            torch.testing.assert_close(file.site(site)[begin:end], near, rtol=2**-7, atol=1e-3)


def test_bfloat16_is_kept_exactly(inputs, tmp_path):
    model, file = tiny("llama").bfloat16(), tmp_path / "a.h5"
    texts = texts_of(tokenizer(), SETTINGS, *inputs)
    capture(model, texts, ["layers.1"], file, batch_tokens=1)
    with reading(model, ["layers.1"]) as states:
        model.base_model(input_ids=torch.tensor([texts[0].tokens]), use_cache=False)
    assert torch.equal(Activations(file).site("layers.1")[: len(texts[0].tokens)], states["layers.1"][0].float())


@pytest.mark.parametrize("batch_tokens", [1, 30, 10**6])
def test_the_batch_size_changes_nothing_but_rounding(inputs, tmp_path, batch_tokens):
    one, other = captured(inputs, tmp_path / "a.h5"), captured(inputs, tmp_path / "b.h5", batch_tokens=batch_tokens)
    for site in one.sites:
        torch.testing.assert_close(one.site(site), other.site(site), rtol=2**-7, atol=1e-3)


def test_offsets_and_first_tokens_tell_where_each_row_stands(inputs, tmp_path):
    file = captured(inputs, tmp_path / "a.h5")
    text = "0 + 0 = 0"
    assert file.offsets[: len(text)].tolist() == [[i, i + 1] for i in range(len(text))]
    assert file.first.nonzero()[:, 0].tolist() == file.starts[:-1].tolist()
    assert file.of_kind("text").sum() == file.starts[-1] - file.starts[5]


def test_two_captures_a_second_apart_have_the_same_bytes(inputs, tmp_path):
    captured(inputs, tmp_path / "a.h5")
    time.sleep(1.1)
    captured(inputs, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_plain_h5py_reads_the_file(inputs, tmp_path):
    states = captured(inputs, tmp_path / "a.h5").site("layers.2.mlp")
    with h5py.File(tmp_path / "a.h5") as file:
        site = file["sites/layers.2.mlp"]
        assert isinstance(site, h5py.Dataset)
        assert site.attrs["dtype"] == "bfloat16" and site.chunks is None
        assert torch.equal(torch.from_numpy(site[:]).view(torch.bfloat16).float(), states)


def test_a_capture_that_fails_leaves_the_old_file(inputs, tmp_path):
    captured(inputs, tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(BadInput, match="reach lm_head"):
        capture(tiny("llama"), texts_of(tokenizer(), SETTINGS, *inputs), ["lm_head"], tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == before


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_truncated_file_is_refused_in_one_sentence(inputs, tmp_path, keep):
    captured(inputs, tmp_path / "a.h5")
    whole = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(BadInput, match=r"cut\.h5 is .*capture again"):
        Activations(tmp_path / "cut.h5")


def test_a_foreign_file_and_a_missing_one_are_refused(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(BadInput, match="not an activation file"):
        Activations(tmp_path / "foreign.h5")
    with pytest.raises(BadInput, match="not there"):
        Activations(tmp_path / "none.h5")


def test_a_text_longer_than_the_context_is_named(inputs, tmp_path):
    model = tiny("llama", max_position_embeddings=20)
    with pytest.raises(BadInput, match="at most 20 tokens, got 23 in t0"):
        capture(model, texts_of(tokenizer(), SETTINGS, *inputs), ["norm"], tmp_path / "a.h5")


def test_rows_without_their_keys_or_without_tokens_are_named(inputs, tmp_path):
    keyless = jsonl(tmp_path / "keyless.jsonl", [{"id": "c", "prompt": "1"}])
    with pytest.raises(
        BadInput, match="words under 'answer' in each row of .*, got no such key in line 1, c; complete"
    ):
        texts_of(tokenizer(), SETTINGS, keyless, inputs[1])
    empty = jsonl(tmp_path / "empty.jsonl", [{"id": "t9", "text": ""}])
    with pytest.raises(BadInput, match="got '' in line 1, t9; complete"):
        texts_of(tokenizer(), SETTINGS, inputs[0], empty)


def test_texts_are_the_same_however_many_are_tokenized_at_once(inputs, monkeypatch):
    def plain() -> list[tuple]:
        read = texts_of(tokenizer(), SETTINGS, *inputs)
        return [(text.id, text.digest, list(text.tokens), np.asarray(text.offsets).tolist()) for text in read]

    together = plain()
    monkeypatch.setattr("stages.capture._AT_ONCE", 2)
    assert plain() == together


def test_a_site_that_the_file_lacks_names_the_nearest(inputs, tmp_path):
    file = captured(inputs, tmp_path / "a.h5")
    shutil.copy(tmp_path / "a.h5", tmp_path / "b.h5")
    with pytest.raises(BadInput, match=r"no site 'layers\.1\.mpl'; did you mean 'layers\.1\.mlp'\?"):
        file.site("layers.1.mpl")
