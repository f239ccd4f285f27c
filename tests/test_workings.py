"""Catalogs of models that are run again, to look inside."""

import pyarrow.parquet
import pytest
import torch

from stages.analyze import Analyze, analyze
from stages.analyze import main as analyze_main
from stages.catalog import curves
from stages.errors import BadInput
from stages.workings import sample, workings
from tests.captures import ANSWERS, MODELS, captures
from tests.families import saved, tiny

LENS = ("lens_agreement", "donor_lens_agreement", "lens_divergence", "donor_lens_divergence")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return captures(tmp_path_factory.mktemp("captures"))


@pytest.fixture(scope="module")
def catalog(files):
    """The rows of a donor's catalog by site."""
    made = {}

    def rows(donor: str, **settings) -> list[dict]:
        key = donor, *settings.items()
        if key not in made:
            models = MODELS["target"], MODELS[donor]
            made[key] = analyze(Analyze(**settings), files["target"], files[donor], models, ANSWERS)
        return made[key].to_pylist()

    return rows


def by_site(rows: list[dict]) -> dict[str, dict]:
    return {row["site"]: row for row in rows}


def test_a_twin_is_the_target_inside_as_well(catalog):
    for row in catalog("twin"):
        for on in ("capability", "text"):
            found = {name.removeprefix(f"{on}_"): value for name, value in row.items() if name.startswith(on)}
            if row["kind"] != "norm" and row["kind"] != "head":
                assert (found["local_change"], found["own_share"], found["locality"]) == (0, None, None)
            if row["kind"] in ("attention", "head"):
                assert found["head_similarity"] == pytest.approx(1)
            if row["kind"] == "mlp":
                assert found["neuron_overlap"] == 1
            for name in ("rank", "entropy", "active", "gini", "lens_agreement", "lens_divergence"):
                assert found[name] == found[f"donor_{name}"]


def test_every_kind_of_site_has_its_figures_and_no_others(catalog):
    told = {"block": ["local_change", "rank", *LENS], "attention": ["local_change", "entropy", "head_similarity"],
            "head": ["entropy", "donor_entropy", "head_similarity"], "linear": ["local_change", "local_consistency"],
            "mlp": ["local_change", "active", "donor_gini", "neuron_overlap"], "norm": ["rank", "change"]}  # fmt: skip
    rows = catalog("other")
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in told}
    assert counts == {"block": 4, "attention": 4, "head": 16, "linear": 28, "mlp": 4, "norm": 1}
    for row in rows:
        for kind, names in told.items():
            for name in names:
                belongs = name in told[row["kind"]] or (name == "rank" and row["kind"] in ("attention", "mlp"))
                belongs |= name == "change" and row["kind"] in ("block", "attention", "mlp")
                belongs |= name in ("local_consistency", "local_change") and row["kind"] not in ("head", "norm")
                belongs |= name == "donor_entropy" and row["kind"] == "attention"
                assert (row[f"text_{name}"] is not None) == belongs, (row["site"], kind, name)


def test_a_change_of_one_matrix_is_local_to_it_and_handed_on_by_those_behind(catalog):
    rows = by_site(catalog("taught"))
    assert rows["layers.1.mlp.up_proj"]["text_local_change"] == pytest.approx(0.5, rel=1e-5)
    for site in ("layers.1.mlp", "layers.1"):
        assert rows[site]["text_locality"] == pytest.approx(1)
        assert rows[site]["text_own_share"] == pytest.approx(1, abs=1e-4)
    assert rows["layers.1.mlp"]["text_local_change"] == pytest.approx(rows["layers.1.mlp"]["text_change"], rel=0.3)
    for site in ("layers.2.mlp", "layers.3.self_attn", "layers.3"):
        assert rows[site]["text_change"] > 0
        assert (rows[site]["text_local_change"], rows[site]["text_own_share"]) == (0, 0)
    assert rows["layers.0"]["text_change"] == 0


def test_parts_of_locality_sum_to_one_by_kind(catalog):
    rows = catalog("other")
    for kind in ("block", "attention", "mlp", "linear"):
        parts = [row["capability_locality"] for row in rows if row["kind"] == kind]
        assert sum(parts) == pytest.approx(1) and min(parts) > 0


def test_predictions_are_read_before_each_token_of_an_answer_and_the_last_block_tells_the_models_own(catalog):
    rows = by_site(catalog("other", prompts=5, texts=2, positions=3))
    last = rows["layers.3"]
    assert last["capability_lens_rows"] == sum(len(f" {i * 38}") for i in range(5))
    assert last["text_lens_rows"] == 6
    for on in ("capability", "text"):
        assert (last[f"{on}_lens_agreement"], last[f"{on}_donor_lens_agreement"]) == (1, 1)
        assert last[f"{on}_donor_lens_divergence"] == pytest.approx(0, abs=1e-5)
        assert rows["layers.0"][f"{on}_lens_divergence"] > 0.01


@pytest.mark.parametrize("donor", ["wide", "coarse"])
def test_a_donor_of_other_widths_or_tokens_has_its_own_figures_and_none_between(catalog, donor):
    rows = catalog(donor)
    own = {row["donor_site"]: row for row in rows if row["site"] is None}
    assert 0 < own["layers.1.self_attn"]["text_donor_entropy"] < 4
    assert own["layers.1.self_attn.heads.2"]["text_donor_entropy"] > 0
    assert 0 < own["layers.1.mlp"]["capability_donor_active"] < 1
    assert own[f"layers.{2 if donor == 'wide' else 3}"]["capability_donor_lens_agreement"] == 1
    for row in rows:
        for name in ("local_change", "own_share", "locality", "head_similarity", "neuron_overlap", "change"):
            assert row[f"text_{name}"] is None


def test_what_else_is_in_the_batch_changes_nothing(files):
    file, model = files["target"], MODELS["target"]
    rows = [torch.arange(*file.starts[i : i + 2].tolist())[2:] for i in (0, 12, 22)]
    together = workings(model, sample(file, torch.cat(rows), ANSWERS, 4))
    alone = workings(model, sample(file, rows[1], ANSWERS, 4))
    own = slice(len(rows[0]), len(rows[0]) + len(rows[1]))
    for site, states in alone.states.items():
        torch.testing.assert_close(together.states[site][own], states, rtol=1e-4, atol=1e-5)
    for layer, pattern in alone.patterns.items():
        keys = pattern.shape[-1]
        torch.testing.assert_close(together.patterns[layer][:, own, :keys], pattern, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.neurons[layer][own], alone.neurons[layer], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "mixtral"])
def test_neurons_are_what_enters_the_last_matrix(files, family):
    model, given = tiny(family), sample(files["target"], torch.arange(5, 40), ANSWERS, 4)
    found = workings(model, given)
    if family == "mixtral":
        assert found.neurons == {}
        return
    width = 128 if family == "bloom" else 64
    assert {layer: states.shape for layer, states in found.neurons.items()} == {i: (35, width) for i in range(4)}
    assert bool((found.neurons[1] >= 0).all()) == (family == "opt")


def test_a_file_of_another_model_is_refused(files):
    with pytest.raises(BadInput, match=r"the states of the model that is run, got others at layers\.\d"):
        analyze(Analyze(), files["target"], files["twin"], (MODELS["target"], MODELS["other"]), ANSWERS)
    with pytest.raises(BadInput, match="of a model of width 48 with 128 tokens, got .* of width 32"):
        analyze(Analyze(), files["target"], files["twin"], (MODELS["target"], MODELS["wide"]), ANSWERS)


def test_without_prompts_and_texts_no_model_runs(files):
    rows = analyze(Analyze(prompts=0, texts=0), files["target"], files["other"], (MODELS["target"], MODELS["other"]))
    assert [row["site"] for row in rows.to_pylist()] == files["target"].sites
    assert {row["text_local_change"] for row in rows.to_pylist()} == {None}


@pytest.mark.parametrize("donor", ["other", "wide"])
def test_the_curves_are_those_of_the_catalog(files, catalog, donor):
    rows = catalog(donor)
    models = MODELS["target"], MODELS[donor]
    table = analyze(Analyze(), files["target"], files[donor], models, ANSWERS)
    told = curves(table)
    assert [row["layer"] for row in told] == [0, 1, 2, 3]
    own = {
        (r["donor_site"] if donor == "wide" else r["site"]): r for r in rows if r["site"] is None or donor == "other"
    }
    for layer, row in enumerate(told[:3]):
        expected = own[f"layers.{layer}"]["capability_donor_lens_agreement"]
        assert row["block_capability_donor_lens_agreement"] == expected
    assert (told[1]["mlp_text_local_change"] is None) == (donor == "wide")
    assert (told[3]["block_text_cka"] is None) == (donor == "wide")
    best = max(
        r["text_cka"] for r in rows if r["donor_layer"] == 1 and r["text_cka"] is not None and r["kind"] == "block"
    )
    assert told[1]["block_text_cka"] == best


def test_a_catalog_and_its_curves_have_the_same_bytes_every_time(files, tmp_path):
    params, prompts = tmp_path / "params.yaml", tmp_path / "prompts.jsonl"
    params.write_text("analyze: {prompts: 4, texts: 2}\n")
    prompts.write_text('{"id": "c1", "prompt": "37 + 1 ="}\n')
    models = [saved(MODELS[name], tmp_path / name) for name in ("target", "wide")]
    for name in ("a", "b"):
        out = [tmp_path / f"{name}.parquet", tmp_path / f"{name}.json"]
        analyze_main(files["target"].path, files["wide"].path, *models, prompts, *out, params)
    for end in ("parquet", "json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").num_rows > 12
