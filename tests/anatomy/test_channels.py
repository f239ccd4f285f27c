"""A component's weights are those that make its state, in every family."""

import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.channels import Piece, alike, chosen, components
from stages.anatomy.hooks import reading
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, token_ids

IDS = token_ids()


def mixes(model) -> bool:
    """Whether its MLPs are mixtures of experts."""
    return any(name.endswith("experts") for name, _ in model.named_modules())


def put(model, donor, pieces: tuple[Piece, ...]):
    """`model` with the donor's weights in these pieces."""
    for piece in pieces:
        ours, theirs = model.get_parameter(piece.parameter), donor.get_parameter(piece.parameter)
        index = torch.arange(ours.shape[piece.axis]) if piece.index is None else torch.tensor(piece.index)
        ours.index_copy_(piece.axis, index, theirs.index_select(piece.axis, index))
    return model


def normed_together(model) -> bool:
    """Whether queries are normed over all heads at once, so that each head depends on all."""
    norms = [module for name, module in model.named_modules() if name.endswith("q_norm")]
    return any(p.numel() == model.config.hidden_size for norm in norms for p in norm.parameters())


def changed_first_block(family: str):
    """The target, with another's weights in block 0: a donor that sees what the target sees there."""
    donor = tiny(family)
    block = blocks(tiny(family, seed=1))[0].state_dict()
    own = blocks(donor)[0]
    generator = torch.Generator().manual_seed(5)
    keep = {n: v for n, v in own.state_dict().items() if "norm" in n.lower() or n.startswith("ln_")}
    drawn = {n: v if v.ndim > 1 else 0.3 * torch.randn(v.shape, generator=generator) for n, v in block.items()}
    own.load_state_dict(drawn | keep)
    return donor


def states(model, sites: list[str]) -> dict[str, torch.Tensor]:
    with torch.no_grad(), reading(model, sites) as found:
        model(input_ids=IDS, use_cache=False)
    return found


def attention_output(model) -> torch.Tensor:
    return states(model, ["layers.0.self_attn"])["layers.0.self_attn"]


HEADS = [f"layers.0.self_attn.heads.{j}" for j in range(4)]


@pytest.mark.parametrize("family", [f for f in FAMILIES if not normed_together(tiny(f))])
def test_a_group_of_heads_comes_over_whole_and_no_other_head_changes(family):
    known = components(tiny(family))
    groups = [site for site in known if site.startswith("layers.0.self_attn.groups.")]
    share = 4 // len(groups)
    before, given = (states(model, HEADS) for model in (tiny(family), changed_first_block(family)))
    for number, group in enumerate(groups):
        after = states(put(tiny(family), changed_first_block(family), known[group]), HEADS)
        for j, head in enumerate(HEADS):
            expected = given[head] if j // share == number else before[head]
            torch.testing.assert_close(after[head], expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(given[head], before[head], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_together_write_what_the_donor_s_attention_writes_but_for_its_bias(family):
    found = chosen(tiny(family), ["layers.0.self_attn.heads.*"])
    assert list(found) == HEADS
    donor = changed_first_block(family)
    made = put(tiny(family), donor, tuple(piece for pieces in found.values() for piece in pieces))
    for head, state in states(made, HEADS).items():
        torch.testing.assert_close(state, states(donor, HEADS)[head], rtol=1e-4, atol=1e-5)
    gap = attention_output(made) - attention_output(donor)
    torch.testing.assert_close(gap, gap[:1, :1].expand_as(gap), rtol=1e-3, atol=1e-4)  # constant: the writer's bias


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_a_head_of_a_shared_key_brings_its_queries_and_leaves_the_key(family):
    donor = changed_first_block(family)
    made = put(tiny(family), donor, chosen(tiny(family), [HEADS[1]])[HEADS[1]])
    before, after = (states(model, HEADS) for model in (tiny(family), made))
    for j in (0, 2, 3):
        assert torch.equal(before[HEADS[j]], after[HEADS[j]])
    assert not torch.allclose(before[HEADS[1]], after[HEADS[1]], atol=1e-3)
    assert torch.equal(before[HEADS[1]][:, 0], after[HEADS[1]][:, 0]), "one token: the target's value, whoever asks"
    both = chosen(tiny(family), HEADS[:2])
    whole = {(p.parameter, i) for pieces in both.values() for p in pieces for i in p.index or ()}
    group = {(p.parameter, i) for p in components(tiny(family))["layers.0.self_attn.groups.0"] for i in p.index or ()}
    assert whole == group, "named together they bring it along"


@pytest.mark.parametrize("family", [f for f in FAMILIES if not mixes(tiny(f))])
def test_a_range_of_neurons_comes_over_and_the_others_stay(family):
    sites = ["layers.0.mlp.neurons.0:20", "layers.0.mlp.neurons.20:64"]
    donor = tiny(family)
    own, other = blocks(donor)[0], blocks(tiny(family, seed=1))[0].state_dict()
    mlp = {n: v for n, v in other.items() if n.split(".")[0] in ("mlp", "fc1", "fc2")}
    own.load_state_dict(own.state_dict() | mlp)
    made = put(tiny(family), donor, chosen(tiny(family), ["layers.0.mlp.neurons.0:20"])[sites[0]])
    after, given, before = (states(model, sites) for model in (made, donor, tiny(family)))
    torch.testing.assert_close(after[sites[0]], given[sites[0]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[sites[1]], before[sites[1]], rtol=1e-4, atol=1e-5)
    last = "layers.0.mlp"
    assert not torch.allclose(states(made, [last])[last], states(tiny(family), [last])[last], atol=1e-3)


def test_one_expert_comes_over_and_no_other():
    donor, site = tiny("mixtral", seed=1), "layers.1.mlp.experts.2"
    made = put(tiny("mixtral"), donor, components(tiny("mixtral"))[site])
    for name, value in made.named_parameters():
        before, given = tiny("mixtral").get_parameter(name), donor.get_parameter(name)
        expected = before.clone()
        if "layers.1.mlp.experts" in name:
            expected[2] = given[2]
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_all_their_parameters_and_parts_lie_inside(family):
    model = tiny(family)
    known = components(model)
    for index, block in enumerate(blocks(model)):
        held = {p.parameter for p in known[f"layers.{index}"]}
        assert sum(model.get_parameter(name).numel() for name in held) == sum(p.numel() for p in block.parameters())
        parts = [{p.parameter for p in known[f"layers.{index}.{part}"]} for part in ("self_attn", "mlp")]
        assert parts[0] < held and parts[1] < held and not parts[0] & parts[1]
        assert all(model.get_parameter(name).ndim for name in held)


def test_forms_group_what_can_stand_for_each_other():
    found = alike(tiny("llama"), ["layers.1.mlp", "layers.3.self_attn.heads.2", "layers.0.mlp.neurons.8:24"])
    counts = {"layers.*.mlp": 4, "layers.*.mlp.neurons.8:24": 4, "layers.*.self_attn.heads.*": 16}
    assert {form: len(sites) for form, sites in found.items()} == counts


@pytest.mark.parametrize(
    ("family", "pattern", "sentence"),
    [
        ("llama", "layers.9", "got 'layers.9', which means none"),
        ("llama", "layers.1.self_attn.heads.7", "which means none"),
        ("llama", "layers.1.mlp.neurons.60:80", "Expected neurons from 0 to 64, got"),
        ("llama", "layers.1.self_attn.neurons.0:8", "Expected neurons of a plain MLP"),
        ("mixtral", "layers.1.mlp.neurons.0:8", "Expected neurons of a plain MLP"),
        ("llama", "layers.1.mlp.experts.0", "which means none"),
    ],
)
def test_what_the_model_does_not_have_is_refused(family, pattern, sentence):
    with pytest.raises(BadInput, match=sentence):
        chosen(tiny(family), [pattern])
