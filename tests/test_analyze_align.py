"""Catalogs and bridges from captured states of tiny models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.stats
import torch
from safetensors.torch import load_file

from stages.activations import Activations, Text, create
from stages.align import Align, align, held_out, layer_pairs
from stages.align import main as align_main
from stages.analyze import Analyze, analyze
from stages.errors import BadInput
from stages.maths.cka import debiased_cka
from stages.maths.mixture import Mixture
from stages.pairs import PairedRows, paired
from stages.settings import parse
from tests.captures import captures


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return captures(tmp_path_factory.mktemp("captures"))


def test_an_identical_donor_changes_nothing_anywhere(files):
    rows = analyze(Analyze(), files["target"], files["twin"]).to_pylist()
    assert [row["site"] for row in rows] == files["target"].sites
    for row in rows:
        for kind in ("capability", "text"):
            assert row[f"{kind}_change"] == 0
            assert row[f"{kind}_consistency"] is None
            assert row[f"{kind}_cka"] == pytest.approx(1)
            assert row[f"{kind}_norm_ratio"] == 1


def test_figures_are_those_of_the_rows_of_their_kind_without_first_tokens(files):
    target, other = files["target"], files["other"]
    row = next(r for r in analyze(Analyze(), target, other).to_pylist() if r["site"] == "layers.2.mlp")
    for kind in ("capability", "text"):
        rows = target.of_kind(kind) & ~target.first
        t, d = target.site("layers.2.mlp")[rows], other.site("layers.2.mlp")[rows]
        assert row[f"{kind}_rows"] == len(t)
        assert row[f"{kind}_change"] == pytest.approx(((d - t).norm(dim=1) / t.norm(dim=1)).mean().item(), rel=1e-5)
    assert (row["kind"], row["layer"]) == ("mlp", 2)


@pytest.mark.parametrize("donor", ["wide", "coarse"])
def test_other_widths_and_tokenizers_give_cka_of_every_pair_of_blocks_and_each_models_own_ranks(files, donor):
    rows = analyze(Analyze(), files["target"], files[donor]).to_pylist()
    count = 3 if donor == "wide" else 4
    pairs = [row for row in rows if row["site"] and row["donor_site"]]
    assert [(r["layer"], r["donor_layer"]) for r in pairs] == [(i, j) for i in range(4) for j in range(count)]
    for row in pairs:
        assert -1 <= row["capability_cka"] <= 1 + 1e-6
        assert [row[f"text_{f}"] for f in ("change", "consistency", "norm_ratio", "rank")] == [None] * 4
    pairing = paired(files["target"], files[donor])
    of_text = files["target"].of_kind("text")[pairing.target]
    states = [file.site("layers.2")[index[of_text]]
              for file, index in ((files["target"], pairing.target), (files[donor], pairing.donor))]  # fmt: skip
    told = next(r for r in pairs if (r["layer"], r["donor_layer"]) == (2, 2))
    assert told["text_cka"] == pytest.approx(debiased_cka(*states), rel=1e-5)
    own = rows[len(pairs) :]
    assert [r["site"] or r["donor_site"] for r in own] == files["target"].sites + files[donor].sites
    assert all(1 <= (r["text_rank"] or r["text_donor_rank"]) <= 48 for r in own)
    assert {r["capability_cka"] for r in own} == {None}


def test_a_massive_state_behind_the_first_token_decides_nothing(files, tmp_path):
    row = int(files["target"].starts[3]) + 1

    def at_the_row(value: float):
        return lambda site, states: states.index_fill(0, torch.tensor([row]), value)

    target = rewritten(files["target"], tmp_path / "target.h5", lambda site, states: states)
    plain, spoilt = (rewritten(files["other"], tmp_path / f"{value}.h5", at_the_row(value)) for value in (0.0, 1e4))
    before, after = (analyze(Analyze(), target, donor).to_pylist() for donor in (plain, spoilt))
    for one, other in zip(before, after, strict=True):
        assert other["capability_rows"] == one["capability_rows"] - 1
        assert other["capability_cka"] == pytest.approx(one["capability_cka"], abs=0.03)
        assert other["capability_change"] == pytest.approx(one["capability_change"], rel=0.03)


def test_captures_of_different_texts_are_refused(files):
    with pytest.raises(BadInput, match="captures of the same texts, got 24 texts"):
        analyze(Analyze(), files["target"], files["less"])


def rewritten(source: Activations, path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Activations:
    """`source` with its residual states changed, its first tokens' states spoilt."""
    spans = list(zip(source.starts[:-1].tolist(), source.starts[1:].tolist(), strict=True))
    texts = [
        Text(i, kind, digest, source.tokens[b:e].tolist(), [tuple(o) for o in source.offsets[b:e].tolist()])
        for i, kind, digest, (b, e) in zip(source.ids, source.kinds, source.digests, spans, strict=True)
    ]
    changed = {site: change(site, source.site(site)) for site in (f"layers.{i}" for i in range(4))}
    arrays = create(path, texts, {site: states.shape[1] for site, states in changed.items()})
    for site, array in arrays.items():
        changed[site][source.first] = 1e4
        array[:] = changed[site].to(torch.bfloat16).view(torch.uint16).numpy()
        array.flush()
    return Activations(path)


TURN = torch.from_numpy(scipy.stats.ortho_group.rvs(32, random_state=0)).float()


@pytest.fixture
def turned(files, tmp_path):
    """The target itself, each of its residual states turned."""
    return rewritten(files["target"], tmp_path / "turned.h5", lambda site, states: states @ TURN)


def test_a_rotated_twin_is_aligned_wholly_and_its_rotation_recovered(files, turned):
    tensors, rows = align(Align(), files["target"], turned)
    assert [(r["donor_layer"], r["target_layer"]) for r in rows] == [(i, i) for i in range(4) for _ in range(2)]
    for row in rows:
        if row["kind"] == "orthogonal":
            bridge = tensors[f"{row['donor_layer']}-{row['target_layer']}.orthogonal.weight"]
            torch.testing.assert_close(bridge, TURN.T, rtol=0, atol=0.02)
            assert row["cosine"] > 0.9999 and row["r2"] > 0.9999
            assert abs(row["cosine_before"]) < 0.6 and row["mse"] < row["mse_before"] / 100


def test_one_row_is_the_best_and_has_the_highest_r2(files):
    rows = align(Align(), files["target"], files["other"])[1]
    assert [row["r2"] for row in rows if row["best"]] == [max(row["r2"] for row in rows)]


def test_every_kind_and_a_mixture_is_fitted_judged_and_written(files, turned):
    kinds = ["similarity", "ridge", "orthogonal", "low_rank", "affine"]
    settings = Align(kinds=kinds, rank=3, mixture={"bridges": 2, "epochs": 1}, strength=1e-3)
    tensors, rows = align(settings, files["target"], turned)
    assert [row["kind"] for row in rows[:6]] == sorted([*kinds, "mixture"])
    assert {row["kind"] for row in rows if row["r2"] > 0.99} >= {"similarity", "ridge", "orthogonal", "mixture"}
    assert torch.linalg.matrix_rank(tensors["1-1.low_rank.weight"], rtol=1e-4) == 3
    shapes = {name: tuple(tensors[f"2-2.mixture.{name}"].shape) for name in Mixture.__annotations__}
    assert shapes == {"weight": (2, 32, 32), "bias": (2, 32), "gate_weight": (32, 2), "gate_bias": (2,)}


def test_a_mixture_is_the_best_where_two_rotations_took_turns(files, tmp_path):
    """The donor's states were turned one way or another, by the sign of one channel that stayed as it was."""
    other = torch.from_numpy(scipy.stats.ortho_group.rvs(31, random_state=1)).float()

    def change(site: str, states: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(len(states), 32, generator=torch.Generator().manual_seed(int(site[-1])))
        return noise

    target = rewritten(files["target"], tmp_path / "target.h5", change)

    def turn(site: str, states: torch.Tensor) -> torch.Tensor:
        states = change(site, states)
        side, rest = states[:, :1].sign(), states[:, 1:]
        return torch.cat([10 * side, torch.where(side > 0, rest, rest @ other)], dim=1)

    donor = rewritten(files["target"], tmp_path / "donor.h5", turn)
    rows = align(Align(mixture={"bridges": 2}, strength=1e-3), target, donor)[1]
    by_kind = {row["kind"]: row["r2"] for row in rows if row["donor_layer"] == 1}
    assert by_kind["mixture"] > 0.9 > 0.6 > max(by_kind["ridge"], by_kind["orthogonal"])
    assert next(row["kind"] for row in rows if row["best"]) == "mixture"


def test_rows_are_those_of_the_files_whatever_the_chunk(files):
    target, donor = files["target"], files["wide"]
    pairing = paired(target, donor)
    rows = PairedRows(donor.mapped("layers.1"), target.mapped("layers.2"), pairing.donor, pairing.target, chunk=7)
    for _ in range(2):
        x, y = (torch.cat(parts) for parts in zip(*rows, strict=True))
        assert torch.equal(x, donor.site("layers.1")[pairing.donor])
        assert torch.equal(y, target.site("layers.2")[pairing.target])


def test_an_identical_donor_needs_no_bridge(files):
    tensors, rows = align(Align(), files["target"], files["twin"])
    for row in rows:
        assert (row["cosine_before"], row["mse_before"], row["r2_before"]) == (pytest.approx(1), 0, 1)
    for layer in range(4):
        torch.testing.assert_close(tensors[f"{layer}-{layer}.orthogonal.weight"], torch.eye(32), rtol=0, atol=1e-4)


def test_a_wider_donor_gets_bridges_from_every_block_to_the_listed_layers(files):
    tensors, rows = align(Align(target_layers=["n-1", 0.5]), files["target"], files["wide"])
    pairs = [(i, j) for i in range(3) for j in (2, 3) for _ in range(2)]
    assert [(r["donor_layer"], r["target_layer"]) for r in rows] == pairs
    assert {r["kind"] for r in rows} == {"orthogonal", "ridge"} and {r["r2_before"] for r in rows} == {None}
    assert tensors["2-3.ridge.weight"].shape == (48, 32) and tensors["2-3.ridge.bias"].shape == (32,)
    columns = tensors["2-3.orthogonal.weight"]
    torch.testing.assert_close(columns.T @ columns, torch.eye(32), rtol=0, atol=1e-5)


def test_judging_rows_are_never_fitted_on(files, tmp_path):
    """A donor of noise is fitted in part but explains nothing of the prompts held out."""

    def noise(site: str, states: torch.Tensor) -> torch.Tensor:
        return torch.randn(states.shape, generator=torch.Generator().manual_seed(0))

    donor = rewritten(files["target"], tmp_path / "noise.h5", noise)
    assert all(row["r2"] < 0.05 for row in align(Align(), files["target"], donor)[1])


def test_a_quarter_of_each_kind_is_held_out_and_never_all_of_it():
    chosen = held_out(["capability"] * 20 + ["text"] * 2, 0.25, seed=0)
    assert (chosen[:20].sum(), chosen[20:].sum()) == (5, 1)
    with pytest.raises(BadInput, match="two or more prompts"):
        held_out(["capability"], 0.25, seed=0)


def test_layer_pairs_go_by_depth_or_to_the_listed_layers():
    assert layer_pairs(3, 3, ["n-1"]) == [(0, 0), (1, 1), (2, 2)]
    assert layer_pairs(2, 30, ["n-4", 0.875, 20]) == [(0, 20), (0, 26), (1, 20), (1, 26)]
    with pytest.raises(BadInput, match="does not exist"):
        layer_pairs(2, 30, [31])


def test_bridges_on_disk_have_the_same_bytes_every_time(files, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text("align: {target_layers: [n-1], kinds: [ridge], mixture: {bridges: 2, epochs: 1}}\n")
    for name in ("a", "b"):
        align_main(files["target"].path, files["wide"].path, tmp_path / name, params)
    for name in ("bridges.safetensors", "alignment.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    parts = ["ridge.weight", "ridge.bias", *(f"mixture.{part}" for part in Mixture.__annotations__)]
    assert set(load_file(tmp_path / "a" / "bridges.safetensors")) == {f"{i}-3.{p}" for i in range(3) for p in parts}


def partly(source: Activations, path: Path, kept: list[int], blocks: int | None) -> Activations:
    """`source` with the residual states of some layers alone, as a capture of those would leave it."""
    spans = list(zip(source.starts[:-1].tolist(), source.starts[1:].tolist(), strict=True))
    texts = [
        Text(i, kind, digest, source.tokens[b:e].tolist(), [tuple(o) for o in source.offsets[b:e].tolist()])
        for i, kind, digest, (b, e) in zip(source.ids, source.kinds, source.digests, spans, strict=True)
    ]
    arrays = create(path, texts, {f"layers.{i}": source.width(f"layers.{i}") for i in kept}, blocks=blocks)
    for site, array in arrays.items():
        array[:] = source.mapped(site).view(torch.uint16).numpy()
        array.flush()
    return Activations(path)


def test_blocks_that_were_not_captured_are_left_out_and_the_others_keep_their_numbers(files, tmp_path):
    whole = align(Align(), files["target"], files["other"])[0]
    target = partly(files["target"], tmp_path / "t.h5", [1, 3], 4)
    tensors, rows = align(Align(), target, partly(files["other"], tmp_path / "d.h5", [0, 1, 3], 4))
    assert {(row["donor_layer"], row["target_layer"]) for row in rows} == {(1, 1), (3, 3)}
    torch.testing.assert_close(tensors["3-3.ridge.weight"], whole["3-3.ridge.weight"], rtol=0.2, atol=0.05)


def test_a_block_that_is_asked_for_and_was_not_captured_is_named(files, tmp_path):
    target = partly(files["target"], tmp_path / "t.h5", [0, 1], 4)
    with pytest.raises(BadInput, match=r"the states of layers\.3 in .*t\.h5, got none; add them to capture\.sites"):
        align(Align(target_layers=["n-1"]), target, files["wide"])
    with pytest.raises(BadInput, match="Expected a block that both"):
        align(Align(), target, partly(files["other"], tmp_path / "d.h5", [3], 4))


def test_settings_that_name_no_bridge_are_refused():
    with pytest.raises(BadInput, match="no bridge is named; name a kind, or a mixture"):
        parse({"kinds": []}, "align", Align)
