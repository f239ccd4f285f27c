"""Traced effects against models patched the long way."""

import copy
import json

import pyarrow.parquet
import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.contrast import contrast, partners
from stages.anatomy.encoding import answers_of, encode, texts_of
from stages.anatomy.hooks import reading, replacing
from stages.anatomy.outcomes import Judge
from stages.errors import BadInput
from stages.trace import Trace, main, trace
from tests.families import loglikelihoods, saved, tiny, token_ids, tokenizer

ITEMS = encode(tokenizer(), [(f"{a} + {a * 7} =", f" {a * 8}.") for a in (1, 2, 30, 41, 555)])
TEXTS = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 4, 14)]
SETTINGS = Trace(resamples=200)


def answers_and_texts(budget: int = 40):
    return answers_of(ITEMS, budget), texts_of(TEXTS, budget)


def traced(target, donor, budget: int = 40, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return trace(settings, target, donor, Judge(target, *answers_and_texts(budget))).to_pylist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_an_identical_donor_has_no_effect_anywhere(family):
    rows = traced(tiny(family), tiny(family))
    assert sum(row["layer"] is not None for row in rows) == 3 * 4
    for row in rows:
        assert row["capability"] == pytest.approx(0, abs=1e-5) and row["match"] in (0, None)
        assert row["retention"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
def test_each_intervention_is_that_of_a_model_patched_the_long_way(family):
    target, donor = tiny(family), tiny(family, seed=1)
    rows = {(r["intervention"], r["layer"]): r for r in traced(target, donor)}
    ours, theirs = loglikelihoods(target, ITEMS), loglikelihoods(donor, ITEMS)
    assert rows["donor", None]["capability"] == pytest.approx((theirs - ours).mean().item(), abs=1e-4)
    for layer in range(4):
        inside, outside = copy.deepcopy(target), copy.deepcopy(donor)
        blocks(inside)[layer], blocks(outside)[layer] = blocks(donor)[layer], blocks(target)[layer]
        expected = (loglikelihoods(inside, ITEMS) - ours).mean().item()
        assert rows["weights_in", layer]["capability"] == pytest.approx(expected, abs=1e-4)
        expected = (loglikelihoods(outside, ITEMS) - theirs).mean().item()
        assert rows["weights_out", layer]["capability"] == pytest.approx(expected, abs=1e-4)
    assert rows["weights_out", 2]["host"] == "donor"


def test_states_patched_are_the_donor_s():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    row = next(r for r in traced(target, donor) if (r["intervention"], r["layer"]) == ("states", 1))
    changes = []
    for e, before in zip(ITEMS, loglikelihoods(target, ITEMS), strict=True):
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
    everything = {"modules": 3, "activations": ("donor", "zero", "mean")}
    few, many = (traced(target, donor, n, batch_tokens=n, **everything) for n in (1, 10**6))
    for one, other in zip(few, many, strict=True):
        assert {k: pytest.approx(v, rel=1e-4, abs=1e-4) if isinstance(v, float) else v for k, v in one.items()} == other
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
        assert 0 < row["capability_q"] <= 1 and 0 < row["retention_q"] <= 1


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
        main(target, donor, *rest, tmp_path / f"{name}.parquet", tmp_path / f"{name}.json", tmp_path / "params.yaml")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert set(table["texts"].to_pylist()) == {2}
    drawn = json.loads((tmp_path / "a.json").read_text())
    whole = [r for r in table.to_pylist() if (r["site"], r["intervention"]) == ("layers.2", "states")]
    assert [row["layer"] for row in drawn] == [0, 1, 2, 3]
    assert (drawn[2]["states_capability"], drawn[2]["states_retention"]) == (
        whole[0]["capability"],
        whole[0]["retention"],
    )
    strange = saved(tiny("llama"), tmp_path / "strange", r"\d|[^\d]{1,3}")
    with pytest.raises(BadInput, match="the target's tokenizer, got another"):
        main(target, strange, *rest, tmp_path / "c.parquet", tmp_path / "c.json", tmp_path / "params.yaml")


def test_a_single_module_exchanged_is_that_of_a_model_patched_the_long_way():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    rows = [row for row in traced(target, donor, modules=28) if row["intervention"] == "module_in"]
    ours = loglikelihoods(target, ITEMS)
    assert len(rows) == 28 == len({row["site"] for row in rows})
    for row in rows[::5]:
        inside = copy.deepcopy(target)
        inside.base_model.set_submodule(row["site"], donor.base_model.get_submodule(row["site"]))
        assert row["capability"] == pytest.approx((loglikelihoods(inside, ITEMS) - ours).mean().item(), abs=1e-4)
        assert row["layer"] is None and row["match"] is not None


def near(model, step: float, seed: int = 5):
    """`model` after a small random step of all weights inside the blocks."""
    moved = copy.deepcopy(model)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for weight in blocks(moved).parameters():
            weight.add_(step * torch.randn_like(weight))
    return moved


def test_close_to_the_target_estimates_are_exact():
    target = tiny("llama")
    rows = traced(target, near(target, 1e-4), modules=28, probes=64, activations=("donor",))
    found = {
        name: {r["site"]: r for r in rows if r["intervention"] == name} for name in {r["intervention"] for r in rows}
    }
    for estimated, exact in (
        ("attribution_weights", "module_in"),
        ("attribution_states", "states"),
        ("attribution_states", "donor_states"),
    ):
        for site, row in found[exact].items():
            assert found[estimated][site]["capability"] == pytest.approx(row["capability"], rel=0.05, abs=2e-5)
    assert len(found["attribution_weights"]) == 28 and len(found["attribution_states"]) == 12


def test_agreement_stands_in_the_metadata_with_its_count_of_sites():
    target = tiny("llama")
    judge = Judge(target, *answers_and_texts())
    settings = SETTINGS.model_copy(update={"modules": 28, "probes": 32})
    table = trace(settings, target, near(target, 0.003), judge)
    agreement = {each["estimate"]: each for each in json.loads(table.schema.metadata[b"agreement"])}
    assert {name: each["sites"] for name, each in agreement.items()} == {
        "attribution_blocks": 4, "attribution_weights": 28, "attribution_states": 4,
    }  # fmt: skip
    found = agreement["attribution_weights"]
    for measure in ("capability", "retention"):
        assert found[measure]["low"] <= found[measure]["value"] <= found[measure]["high"]
    assert found["capability"]["value"] > 0.9 and found["retention"]["value"] > 0.7


def test_clean_states_at_the_last_block_restore_the_clean_prompts_answer():
    target = tiny("llama")
    prompts = [f"{a} + 3 =" for a in (1, 2, 4, 5)]
    encoded = encode(tokenizer(), [(prompt, f" {a + 3}.") for prompt, a in zip(prompts, (1, 2, 4, 5), strict=True)])
    pairs = contrast(partners(prompts, encoded, 4), 64)
    settings = SETTINGS.model_copy(update={"activations": ("clean",), "attribution": False})
    rows = trace(settings, target, tiny("llama", seed=1), Judge(target, *answers_and_texts()), pairs).to_pylist()
    rows = {row["site"]: row for row in rows if row["intervention"] == "clean_states"}
    clean, corrupted = (
        Judge(target, side, []).outcome(target).loglikelihood for side in (pairs.clean, pairs.corrupted)
    )
    assert len(rows) == 12 and rows["layers.0.mlp"]["retention"] is None
    assert rows["layers.3"]["capability"] == pytest.approx((clean - corrupted).mean().item(), abs=1e-4)


def test_heads_and_neurons_are_exchanged_estimated_and_compared():
    target = tiny("llama")
    parts = ("layers.*.self_attn.heads.*", "layers.*.mlp.neurons.*")
    settings = SETTINGS.model_copy(
        update={"sites": parts, "neuron_groups": 2, "activations": ("donor", "zero", "mean")}
    )
    table = trace(settings, target, near(target, 1e-4), Judge(target, *answers_and_texts()))
    rows = {(row["intervention"], row["site"]): row for row in table.to_pylist()}
    sites = [site for name, site in rows if name == "donor_states"]
    assert len(sites) == 4 * (4 + 2) and {f"layers.{i}.mlp.neurons.32:64" for i in range(4)} < set(sites)
    for site in sites:
        exact, estimate = rows["donor_states", site], rows["attribution_states", site]
        assert estimate["capability"] == pytest.approx(exact["capability"], rel=0.05, abs=2e-5)
        assert rows["zero", site]["capability_q"] > 0 and rows["mean", site]["match"] is not None
    (found,) = (each for each in json.loads(table.schema.metadata[b"agreement"]) if each["exact"] == "donor_states")
    assert found["sites"] == 24
    assert {kind: each["sites"] for kind, each in found["kinds"].items()} == {"head": 16, "neurons": 8}
    assert found["kinds"]["head"]["capability"]["value"] > 0.9


def test_states_at_single_positions_stand_apart_and_the_rest_is_untouched():
    target, donor = tiny("llama"), tiny("llama", seed=1)
    asked = {
        "sites": ("layers.1",),
        "activations": ("donor", "zero"),
        "attribution": False,
        "positions": (-1, "but_first"),
    }
    settings = SETTINGS.model_copy(update=asked)
    rows = trace(settings, target, donor, Judge(target, *answers_and_texts())).to_pylist()
    plain = [row for row in rows if row["position"] is None]
    alone = {(row["intervention"], row["position"]): row for row in rows if row["position"]}
    assert set(alone) == {(name, at) for name in ("donor_states", "zero") for at in ("-1", "but_first")}
    assert plain == traced(target, donor, **asked | {"positions": ()})
    changes = []
    for e, before in zip(ITEMS, loglikelihoods(target, ITEMS), strict=True):
        ids, last = torch.tensor([e.ids[:-1]]), e.start - 1

        def change(state, last=last):
            return torch.cat([state[:, :last], torch.zeros_like(state[:, :1]), state[:, last + 1 :]], dim=1)

        with replacing(target, {"layers.1": change}):
            logprobs = target(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        told = sum(logprobs[e.start - 1 + i, token] for i, token in enumerate(e.ids[e.start :]))
        changes.append((told - before).item())
    assert alone["zero", "-1"]["capability"] == pytest.approx(sum(changes) / len(changes), abs=1e-4)


def test_a_pattern_of_no_site_is_one_sentence():
    with pytest.raises(BadInput, match=r"got 'layers\.\*\.mpl'.* did you mean 'layers\.\*\.mlp'"):
        traced(tiny("llama"), tiny("llama", seed=1), sites=("layers.*.mpl",))
