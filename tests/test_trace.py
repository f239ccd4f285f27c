"""Traced effects against models patched the long way."""

import copy
import json

import pyarrow.parquet
import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.hooks import reading, replacing
from stages.anatomy.outcomes import Judge
from stages.errors import BadInput
from stages.trace import Trace, main, trace
from tests.families import saved, tiny, token_ids, tokenizer

ITEMS = encode(tokenizer(), [(f"{a} + {a * 7} =", f" {a * 8}.") for a in (1, 2, 30, 41, 555)])
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]
SETTINGS = Trace(resamples=200)


def answers_and_texts(budget: int = 40):
    return answers_of(ITEMS, budget), texts_of(TEXTS, budget)


def traced(target, donor, budget: int = 40):
    return trace(SETTINGS, target, donor, Judge(target, *answers_and_texts(budget))).to_pylist()


def loglikelihoods(model) -> torch.Tensor:
    told = []
    for e in ITEMS:
        logprobs = model(input_ids=torch.tensor([e.ids[:-1]]), use_cache=False).logits[0].log_softmax(-1)
        told.append(sum(logprobs[e.start - 1 + i, token] for i, token in enumerate(e.ids[e.start :])))
    return torch.stack(told)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_an_identical_donor_has_no_effect_anywhere(family):
    rows = traced(tiny(family), tiny(family))
    assert len(rows) == 1 + 3 * 4
    for row in rows:
        assert row["capability"] == pytest.approx(0, abs=1e-5) and row["match"] == 0
        assert row["retention"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_each_intervention_is_that_of_a_model_patched_the_long_way(family):
    target, donor = tiny(family), tiny(family, seed=1)
    rows = {(r["intervention"], r["layer"]): r for r in traced(target, donor)}
    ours, theirs = loglikelihoods(target), loglikelihoods(donor)
    assert rows["donor", None]["capability"] == pytest.approx((theirs - ours).mean().item(), abs=1e-4)
    for layer in range(4):
        inside, outside = copy.deepcopy(target), copy.deepcopy(donor)
        blocks(inside)[layer], blocks(outside)[layer] = blocks(donor)[layer], blocks(target)[layer]
        expected = (loglikelihoods(inside) - ours).mean().item()
        assert rows["weights_in", layer]["capability"] == pytest.approx(expected, abs=1e-4)
        expected = (loglikelihoods(outside) - theirs).mean().item()
        assert rows["weights_out", layer]["capability"] == pytest.approx(expected, abs=1e-4)
    assert rows["weights_out", 2]["host"] == "donor"


def test_states_patched_are_the_donor_s():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    row = next(r for r in traced(target, donor) if (r["intervention"], r["layer"]) == ("states", 1))
    changes = []
    for e, before in zip(ITEMS, loglikelihoods(target), strict=True):
        ids = torch.tensor([e.ids[:-1]])
        with reading(donor, ["layers.1"]) as states:
            donor(input_ids=ids, use_cache=False)
        with replacing(target, {"layers.1": lambda _, states=states: states["layers.1"]}):
            logprobs = target(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        after = sum(logprobs[e.start - 1 + i, token] for i, token in enumerate(e.ids[e.start :]))
        changes.append((after - before).item())
    assert row["capability"] == pytest.approx(sum(changes) / len(changes), abs=1e-4)


def test_the_last_block_s_states_carry_the_whole_donor_but_for_norm_and_head():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    donor.model.norm, donor.lm_head = target.model.norm, target.lm_head
    rows = {(r["intervention"], r["layer"]): r for r in traced(target, donor)}
    for figure in ("capability", "retention", "retention_low", "retention_high"):
        assert rows["states", 3][figure] == pytest.approx(rows["donor", None][figure], abs=1e-5)


def test_batches_change_nothing_and_both_models_are_restored():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    few, many = traced(target, donor, 1), traced(target, donor, 10**6)
    for one, other in zip(few, many, strict=True):
        assert {k: pytest.approx(v, abs=1e-4) if isinstance(v, float) else v for k, v in one.items()} == other
    for model, seed in ((target, 0), (donor, 1)):
        fresh = tiny("llama", seed=seed).state_dict()
        assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_intervals_hold_their_means_and_are_the_same_every_time():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    rows = traced(target, donor)
    assert rows == traced(target, donor)
    for row in rows:
        assert row["capability_low"] <= row["capability"] <= row["capability_high"]
        assert row["retention_low"] <= row["retention"] <= row["retention_high"]


@pytest.mark.parametrize("donor", [tiny("llama", hidden_size=16), tiny("qwen2"), tiny("llama", num_hidden_layers=3)])
def test_another_architecture_is_refused_in_one_sentence(donor):
    with pytest.raises(BadInput, match="Tracing needs a donor of the target's architecture and equal widths, got"):
        traced(tiny("llama"), donor)


def test_the_stage_writes_the_same_bytes_every_time_and_refuses_another_tokenizer(tmp_path):
    items = [{"prompt": f"{a} + 1 =", "answer": f" {a + 1}"} for a in range(4)]
    texts = [{"text": "A text to be kept as it is, and read."}, {"text": "Another one."}, {"text": "x"}]
    for name, rows in (("items", items), ("texts", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "params.yaml").write_text("trace: {prompts: 4, texts: 3, resamples: 100}\n")
    target, donor = (saved(tiny("llama", seed=seed), tmp_path / str(seed)) for seed in (0, 1))
    rest = (tmp_path / "items.jsonl", tmp_path / "texts.jsonl")
    for name in ("a", "b"):
        main(target, donor, *rest, tmp_path / f"{name}.parquet", tmp_path / "params.yaml")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert table.num_rows == 13 and set(table["texts"].to_pylist()) == {2}
    strange = saved(tiny("llama"), tmp_path / "strange", r"\d|[^\d]{1,3}")
    with pytest.raises(BadInput, match="the target's tokenizer, got another"):
        main(target, strange, *rest, tmp_path / "c.parquet", tmp_path / "params.yaml")
