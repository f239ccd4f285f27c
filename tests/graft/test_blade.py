"""The injection's formula, and how a donor reads the target's tokens."""

import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.graft.blade import Injection
from stages.graft.heard import Heard
from stages.recipes.blade import BladeRecipe, parts
from stages.settings import read
from stages.specialize import character_tokenizer
from tests import grafts
from tests.families import FAMILIES

TEXT = "The sum of 12 and 30 is 42. What is 99 minus 1? Answer:"


def states(seed: int, width: int = 16) -> torch.Tensor:
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))


def injection(gate: str, mix: str, alpha: float | str, bridge: str = "identity", width: int = 16) -> Injection:
    made = Injection(gate, bridge, mix, alpha, width, 16)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("gate", ["identity", "scalar", "linear", "token", "channel"])
@pytest.mark.parametrize(("mix", "m"), [("delta", 1.0), ("add", 0.0)])
def test_the_injection_is_its_formula(gate, mix, m):
    made, h, d = injection(gate, mix, 0.3, "linear", 24), states(0), states(1, 24)
    x = made.bridge(d)
    assert torch.allclose(made(h, d), h + 0.3 * made.gate(h, x) * (x - m * h), atol=1e-6)


def test_delta_under_an_open_gate_puts_the_donors_state_in_place_of_the_targets():
    assert torch.allclose(injection("identity", "delta", 1.0)(states(0), states(1)), states(1), atol=1e-6)


@pytest.mark.parametrize("mix", ["delta", "add"])
def test_a_closed_gate_leaves_every_state_bit_for_bit(mix):
    assert torch.equal(injection("closed", mix, 1.0)(states(0), states(1)), states(0))


def test_where_the_donor_has_read_nothing_the_state_stays_bit_for_bit():
    known = torch.tensor([[False, True, True, False, True]] * 2)
    h = states(0)
    changed = injection("token", "add", 1.0)(h, states(1), known)
    assert torch.equal(changed[~known], h[~known])
    assert (changed[known] != h[known]).any(-1).all()


def test_a_learned_alpha_starts_at_one_and_stays_finite():
    learned, fixed = injection("identity", "add", "learned"), injection("identity", "add", 1.0)
    with torch.no_grad():
        learned.alpha.zero_()
    assert torch.allclose(learned(states(0), states(1)), fixed(states(0), states(1)))
    for value, amount in ((1e6, 2.0), (-1e6, 0.0)):
        with torch.no_grad():
            learned.alpha.fill_(value)
        assert torch.allclose(learned(states(0), states(1)), states(0) + amount * states(1))
    with pytest.raises(ValueError, match="a number or learned, got 'learnt'"):
        injection("identity", "add", "learnt")


def test_an_unknown_mix_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="delta or add, got 'blend'"):
        Injection("token", "identity", "blend", 1.0, 16, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_donor_with_the_targets_tokenizer_gives_the_stream_that_leaves_its_block(tmp_path, family):
    giving = grafts.target(tmp_path, family, seed=1)
    made = parts(grafts.recipe(donor_layer=1), grafts.target(tmp_path, family), giving)
    ids = torch.tensor([grafts.bpe()(TEXT).input_ids])
    (read,), known = made.readings[0].donor.states(ids, torch.ones_like(ids), None)
    whole = load(giving)(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[2]
    assert known is None
    assert torch.equal(read, whole)
    assert len(made.readings[0].donor.donor.get_submodule(made.readings[0].donor.blocks)) == 2
    assert not made.readings[0].donor.donor._forward_hooks and not any(
        b._forward_hooks for b in made.readings[0].donor.donor.modules()
    )


@pytest.fixture(scope="module")
def spelt(tmp_path_factory):
    """The parts of a graft whose donor reads characters, and that donor whole."""
    root = tmp_path_factory.mktemp("spelt")
    giving = grafts.characters(root)
    recipe = grafts.recipe(donor_layer=1, bridge="linear", mix="add")
    return parts(recipe, grafts.target(root), giving), load(giving)


def stream(donor, text: str) -> torch.Tensor:
    """The donor's states [characters, width] leaving its block 1, for characters read at once."""
    ids = torch.tensor([character_tokenizer()(text).input_ids])
    return donor(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[2][0]


def test_each_token_takes_the_donors_state_at_its_last_character(spelt):
    made, donor = spelt
    told = grafts.bpe()(TEXT, return_offsets_mapping=True)
    ids = torch.tensor([told.input_ids])
    assert any(end - start > 1 for start, end in told.offset_mapping)
    (read,), known = made.readings[0].donor.states(ids, torch.ones_like(ids), None)
    last = [end - 1 for _, end in told.offset_mapping]
    assert torch.allclose(read[0], stream(donor, TEXT)[last], atol=1e-5)
    assert known is not None and known.all()


def test_a_special_token_repeats_the_state_before_it_and_is_unknown_at_the_start(spelt):
    made, _ = spelt
    plain = grafts.bpe()(TEXT).input_ids
    ids = torch.tensor([[1, 2, *plain[:4], 2, 0, *plain[4:], 2]])
    (read,), known = made.readings[0].donor.states(ids, torch.ones_like(ids), None)
    (expected,), _ = made.readings[0].donor.states(
        torch.tensor([plain]), torch.ones(1, len(plain), dtype=torch.long), None
    )
    assert known is not None
    assert known[0].tolist() == [False, False, *[True] * (len(plain) + 3)]
    again = torch.cat([expected[0, :4], expected[0, 3:4], expected[0, 3:4], expected[0, 4:], expected[0, -1:]])
    assert torch.allclose(read[0, 2:], again, atol=1e-5)


def test_a_character_that_tokens_share_is_unknown_to_a_donor_of_ascii_and_breaks_nothing(spelt):
    made, _ = spelt
    ids = torch.tensor([grafts.bpe()("日 1").input_ids])
    (read,), known = made.readings[0].donor.states(ids, torch.ones_like(ids), None)
    assert read.isfinite().all() and known is not None and known.all()


@pytest.mark.parametrize("sizes", [[1] * 40, [3, 1, 1, 5, 1, 2, 7, 1, 1, 1, 1, 1], [2, 30]])
def test_reading_on_is_the_same_as_reading_at_once(spelt, sizes):
    made, _ = spelt
    plain = grafts.bpe()(TEXT).input_ids
    rows = [[1, 2, *plain[:9]], [2, 1, 0, 2, *plain[9:12], 2, *plain[12:15]], [*plain[:3], 2, 2, *plain[3:7], 2, 2]]
    ids, mask = grafts.padded([*rows, plain[:5]])
    (whole,), known = made.readings[0].donor.states(ids, mask, None)
    heard, read, found, begin = Heard(), [], [], 0
    for size in sizes:
        if begin >= ids.shape[1]:
            break
        end = min(begin + size, ids.shape[1])
        (each,), where = made.readings[0].donor.states(ids[:, begin:end], mask[:, :end], heard)
        read.append(each)
        found.append(where)
        begin = end
    assert begin == ids.shape[1]
    assert torch.equal(torch.cat(found, dim=1), known)
    assert torch.allclose(torch.cat(read, dim=1)[known], whole[known], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_state(spelt, side):
    made, _ = spelt
    rows = [grafts.bpe()(TEXT).input_ids, grafts.bpe()("What is 1").input_ids, [2]]
    ids, mask = grafts.padded(rows, side, filler=40)
    (read,), known = made.readings[0].donor.states(ids, mask, None)
    for row, plain in enumerate(rows):
        (alone,), sure = made.readings[0].donor.states(
            torch.tensor([plain]), torch.ones(1, len(plain), dtype=torch.long), None
        )
        assert torch.allclose(read[row][mask[row].bool()], alone[0], atol=1e-5)
        assert torch.equal(known[row][mask[row].bool()], sure[0])


def test_a_failing_donor_leaves_no_hook_behind(spelt):
    made, _ = spelt
    with pytest.raises(IndexError):
        made.readings[0].donor._run(torch.tensor([[10**6]]), torch.ones(1, 1), None)
    assert not any(module._forward_hooks for module in made.readings[0].donor.modules())


def test_layers_are_given_as_index_from_the_end_or_depth_and_must_exist(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    assert parts(grafts.recipe(layer="n-1", donor_layer=0.25), receiving, giving).specs[0]["layer"] == 3
    with pytest.raises(BadInput, match=r"4"):
        parts(grafts.recipe(layer=4), receiving, giving)
    with pytest.raises(BadInput, match=r"4"):
        parts(grafts.recipe(donor_layer="n-5"), receiving, giving)
    with pytest.raises(BadInput, match=r"layers that differ, got \[2, 2\]"):
        parts(grafts.recipe(layer=[2, "n-2"], donor_layer=[1, 2]), receiving, giving)


def test_layers_and_donor_layers_come_in_pairs():
    with pytest.raises(ValueError, match="as many donor layers as layers, got 1 and 2"):
        grafts.recipe(layer=[1, 2])


def test_a_donor_that_is_taken_at_several_layers_is_one_donor(tmp_path):
    made = parts(
        grafts.recipe(layer=[0, 3], donor_layer=[2, 1]), grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    )
    assert [(spec["layer"], spec["taken"]) for spec in made.specs] == [(0, 0), (3, 1)]
    (read,) = made.readings
    ids = torch.tensor([grafts.bpe()(TEXT).input_ids])
    (late, early), _ = read.donor.states(ids, torch.ones_like(ids), None)
    whole = load(grafts.target(tmp_path, seed=1))(
        input_ids=ids, use_cache=False, output_hidden_states=True
    ).hidden_states
    assert torch.equal(late, whole[3]) and torch.equal(early, whole[2])


def test_a_donor_of_another_width_without_a_bridge_is_refused(tmp_path):
    with pytest.raises(BadInput, match="'donor' has width 24 and the target 32; .*set bridge: linear"):
        parts(grafts.recipe(), grafts.target(tmp_path), grafts.characters(tmp_path))


def test_a_recipe_that_learns_needs_training_and_one_that_does_not_refuses_it():
    fixed = {"donor": "d", "layer": 1, "donor_layer": 1}
    with pytest.raises(ValueError, match="token gate over a identity bridge has to learn"):
        BladeRecipe.model_validate({**fixed, "gate": "token"})
    with pytest.raises(ValueError, match="nothing to learn; drop the training section"):
        BladeRecipe.model_validate({**fixed, "gate": "closed", "training": grafts.UNTRAINED})


def test_a_variant_that_follows_the_plan_is_sent_to_its_section(tmp_path):
    (tmp_path / "params.yaml").write_text("inject: {blade: {donor: sibling, strategy: auto}}\n")
    with pytest.raises(BadInput, match=r"inject\.blade.*stands under `auto`; move it there"):
        read(tmp_path / "params.yaml", "inject.blade", BladeRecipe)


def test_cutting_changes_no_weight_that_is_kept(tmp_path):
    giving = grafts.target(tmp_path, seed=1)
    made = parts(grafts.recipe(donor_layer=1), grafts.target(tmp_path), giving)
    whole = dict(load(giving).base_model.named_parameters())
    kept = dict(made.readings[0].donor.donor.named_parameters())
    assert len(blocks(load(giving))) == 4
    assert all(torch.equal(value, whole[name]) for name, value in kept.items())
    assert not any(value.requires_grad for value in kept.values())


def test_a_mixture_has_bridges_and_only_maps_start_fitted():
    with pytest.raises(ValueError, match="got 1 of kind mixture; set bridge: mixture with bridges: 4, say"):
        grafts.recipe(bridge="mixture")
    with pytest.raises(ValueError, match="got 3 of kind linear"):
        grafts.recipe(bridge="linear", bridges=3)
    with pytest.raises(ValueError, match="only maps can start fitted, got bridge identity"):
        grafts.recipe(start="fitted")
