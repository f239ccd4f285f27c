"""Neurons are the same functions whatever matrices hold them, and can be chosen, widened, joined and bridged."""

import pytest
import torch
from transformers import PreTrainedModel

from stages.anatomy.activity import activity, silencing
from stages.anatomy.ffn import Neurons, feed_forwards, resize
from stages.errors import BadInput
from stages.maths.affine import Affine
from tests.anatomy.test_places import MIXTURES, mixture
from tests.families import FAMILIES, tiny, token_ids

DENSE = [family for family in FAMILIES if not any("experts" in name for name, _ in tiny(family).named_modules())]
FIXED = ["bloom"]
"""Families whose configuration has no number of neurons."""


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=token_ids(), use_cache=False).logits


def near(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


def stirred(family: str, seed: int = 0) -> PreTrainedModel:
    """A model whose biases are not zero, as they are in fresh ones."""
    model = tiny(family, seed)
    generator = torch.Generator().manual_seed(seed)
    for network in feed_forwards(model):
        for matrix in (network.up, network.down):
            if getattr(matrix, "bias", None) is not None:
                matrix.get_parameter("bias").data.normal_(generator=generator)
    return model


@pytest.mark.parametrize("family", DENSE)
def test_neurons_are_the_formula_of_what_the_network_does(family):
    model = stirred(family)
    network = feed_forwards(model)[2]
    neurons = network.neurons()
    seen = activity(model, {2: network}, token_ids().tolist())[2]
    act = next(m for m in model.modules() if str(m) == network.activation and not list(m.children()))
    gate = (
        None
        if neurons.gate is None
        else seen.entering @ neurons.gate.T + (torch.zeros(()) if neurons.gate_bias is None else neurons.gate_bias)
    )
    up = seen.entering @ neurons.up.T + (torch.zeros(()) if neurons.up_bias is None else neurons.up_bias)
    doing = act(up) if gate is None else act(gate) * up
    bias = torch.zeros(()) if neurons.out_bias is None else neurons.out_bias
    near(doing @ neurons.down + bias, seen.leaving)
    later = torch.ones(3, 11, dtype=torch.bool)
    later[:, 0] = False
    near(doing.abs()[later.flatten()].mean(0), seen.mean)
    assert ("gated" in network.form) == (neurons.gate is not None)


@pytest.mark.parametrize("family", DENSE)
def test_a_model_s_own_neurons_put_back_in_any_order_with_zeros_beside_change_no_logit(family):
    model, plain = stirred(family), logits(stirred(family))
    order = torch.randperm(len(feed_forwards(model)[0].neurons()), generator=torch.Generator().manual_seed(0))
    made = {layer: each.neurons()[order] for layer, each in enumerate(feed_forwards(model))}
    if family not in FIXED:
        made[1] = made[1].widened(len(order) + 7)
    width = resize(model, made)
    assert width == len(order) + 7 * (family not in FIXED)
    near(logits(model), plain)


@pytest.mark.parametrize("family", DENSE)
def test_dropping_neurons_is_silencing_them_and_survives_export(family, tmp_path):
    model = stirred(family)
    networks = dict(enumerate(feed_forwards(model)))
    count = len(networks[0].neurons())
    kept = {layer: torch.rand(count, generator=torch.Generator().manual_seed(layer)) > 0.4 for layer in networks}
    kept = {layer: mask.index_fill(0, mask.nonzero()[:, 0][30:], False) for layer, mask in kept.items()}
    with silencing(networks, kept):
        expected = logits(model)
    assert not torch.allclose(expected, logits(model), atol=1e-3)
    width = resize(model, {layer: networks[layer].neurons()[mask.nonzero()[:, 0]] for layer, mask in kept.items()})
    assert width == (count if family in FIXED else 30)
    near(logits(model), expected)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox"])
def test_neurons_side_by_side_write_the_sum(family):
    model, other = stirred(family), stirred(family, seed=1)
    network = feed_forwards(model)[0]
    seen = activity(model, {0: network}, token_ids().tolist())[0]
    theirs = feed_forwards(other)[0].neurons()
    network.put(theirs.scaled(0.5))
    half = activity(model, {0: network}, token_ids().tolist())[0]
    network.put(feed_forwards(stirred(family))[0].neurons().beside(theirs.scaled(0.5)))
    both = activity(model, {0: network}, token_ids().tolist())[0]
    near(both.leaving, seen.leaving + half.leaving)
    assert len(both.mean) == 2 * len(seen.mean)


def test_bridged_neurons_do_in_one_space_what_they_did_in_another():
    generator = torch.Generator().manual_seed(0)
    up, gate, down = (torch.randn(10, 6, generator=generator).double() for _ in range(3))
    maps = (torch.randn(*shape, generator=generator).double() for shape in ((8, 6), (6, 8)))
    into, out = (Affine(weight, torch.zeros(weight.shape[1]).double()) for weight in maps)
    moved = Neurons(up, down, gate).bridged(into, out)
    x = torch.randn(5, 8, generator=generator).double()

    def write(neurons: Neurons, states: torch.Tensor) -> torch.Tensor:
        assert neurons.gate is not None
        return (torch.relu(states @ neurons.gate.T) * (states @ neurons.up.T)) @ neurons.down

    near(write(moved, x), out(write(Neurons(up, down, gate), into(x))))


def test_sizes_do_not_depend_on_how_a_neuron_s_weights_share_its_scale():
    neurons = feed_forwards(tiny("llama"))[0].neurons()
    factor = torch.linspace(0.1, 10, len(neurons))[:, None]
    torch.testing.assert_close(
        Neurons(neurons.up * factor, neurons.down / factor, neurons.gate).sizes(), neurons.sizes()
    )


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_is_refused(family):
    with pytest.raises(BadInput, match="block [01], got a mixture of experts or none; name layers"):
        feed_forwards(mixture(family))


def test_more_neurons_than_the_configuration_can_tell_are_refused_before_anything_changes():
    model, plain = tiny("bloom"), logits(tiny("bloom"))
    with pytest.raises(
        BadInput, match="at most 128 neurons a block, since BloomConfig has no setting for more, got 130"
    ):
        resize(model, {0: feed_forwards(model)[0].neurons().widened(130)})
    assert torch.equal(logits(model), plain)
