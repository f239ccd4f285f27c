"""A mixture is the target at 0, the donor at 1, and its slopes are those of finite differences."""

import pytest
import torch

from stages.anatomy.blocks import blocks, linear_modules
from stages.anatomy.encoding import texts_of
from stages.anatomy.head import logits_at
from stages.anatomy.modules import linear_paths, weighted_paths
from stages.anatomy.strengths import mixing
from stages.errors import BadInput
from tests.families import FAMILIES, MIXTURES, SMOOTH, tiny, token_ids

BATCH = texts_of(token_ids(3, 9).tolist(), 10**6)[0]


def told(logits: torch.Tensor) -> torch.Tensor:
    return -logits.log_softmax(-1).gather(-1, BATCH.following[:, None]).mean()


def loss_of(model) -> float:
    with torch.no_grad():
        return float(told(logits_at(model, BATCH.ids, BATCH.row, BATCH.column)))


@pytest.mark.parametrize("channels", [None, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_are_finite_differences(family, channels):
    smooth = {"activation_function": "gelu"} if family == "opt" else SMOOTH.get(family, {})
    target, donor = (tiny(family, seed=seed, **smooth) for seed in (0, 1))
    noise = 5e-4
    if family in MIXTURES:  # its kernel knows no double precision
        noise = 5e-3
    else:
        target.double(), donor.double()
    with mixing(target, donor, channels) as mixture:
        here = torch.linspace(0.05, 0.95, len(mixture.names), dtype=torch.float64)
        mixture.set(here)
        value, slopes = mixture.slopes(BATCH, told)
        assert value == pytest.approx(loss_of(target), abs=1e-5)
        for index in range(0, len(here), 5 if channels is None else 17):
            near = []
            for step in (2e-4, -2e-4):
                mixture.set(here.index_add(0, torch.tensor([index]), torch.tensor([step], dtype=torch.float64)))
                near.append(loss_of(target))
            slope = (near[0] - near[1]) / 4e-4
            assert float(slopes[index]) == pytest.approx(slope, rel=0.01, abs=noise), mixture.names[index]


@pytest.mark.parametrize("channels", [None, 12])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_whole_strength_is_the_donor_s_blocks_and_none_the_target_s(family, channels):
    target, donor, before = tiny(family), tiny(family, seed=1), tiny(family).state_dict()
    with pytest.raises(KeyError), mixing(target, donor, channels) as mixture:
        ones = torch.ones(len(mixture.names))
        mixture.set(0.3 * ones)
        mixture.set(ones)
        for ours, theirs in zip(blocks(target), blocks(donor), strict=True):
            assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
        mixture.set(0 * ones)
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
        mixture.set(0.7 * ones)
        mixture.slopes(BATCH, told)
        raise KeyError("inside")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in target.parameters())


def test_only_modules_that_differ_are_mixed():
    target, donor = tiny("llama"), tiny("llama")
    changed = ["layers.1.mlp.up_proj", "layers.2.input_layernorm", "layers.3.self_attn.q_proj"]
    for name in changed:
        donor.get_submodule(weighted_paths(donor)[name]).weight.mul_(1.5)
    with mixing(target, donor) as mixture:
        assert mixture.names == ["layers.1.mlp.up_proj", "layers.2.input_layernorm", "layers.3.self_attn.q_proj"]
        assert mixture.sizes.tolist() == [64 * 32, 32, 32 * 32]


def test_parts_are_heads_and_neurons_and_nothing_else_moves():
    target, donor, before = tiny("llama"), tiny("llama", seed=1), tiny("llama").state_dict()
    with mixing(target, donor, channels=8) as mixture:
        assert sum(name.startswith("layers.0.self_attn.q_proj[") for name in mixture.names) == 4, "heads of 8 channels"
        strengths = torch.zeros(len(mixture.names))
        for name in ("layers.1.self_attn.o_proj[8:16]", "layers.2.mlp.up_proj[56:64]"):
            strengths[mixture.names.index(name)] = 1.0
            assert mixture.sizes[mixture.names.index(name)] == 8 * 32
        mixture.set(strengths)
        expected = {name: value.clone() for name, value in before.items()}
        given = donor.state_dict()
        columns, rows = "model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.up_proj.weight"
        expected[columns][:, 8:16] = given[columns][:, 8:16]
        expected[rows][56:64] = given[rows][56:64]
        assert all(torch.equal(value, expected[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_linear_modules_are_among_the_weighted_ones(family):
    model = tiny(family)
    paths = weighted_paths(model)
    assert linear_paths(model).items() <= paths.items()
    held = sum(p.numel() for path in paths.values() for p in model.get_submodule(path).parameters(recurse=False))
    assert held == sum(p.numel() for p in blocks(model).parameters())
    assert len(linear_modules(model)) < len(paths)


@pytest.mark.parametrize("donor", [tiny("llama", hidden_size=16), tiny("gpt2"), tiny("llama", num_hidden_layers=2)])
def test_weights_of_another_shape_are_refused(donor):
    with (
        pytest.raises(BadInput, match="of the donor to have the target's weights, got others.*use a blade"),
        mixing(tiny("llama"), donor),
    ):
        pass
