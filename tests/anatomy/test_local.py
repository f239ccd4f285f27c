"""A donor's module on the target's own input, in every family."""

import pytest
import torch

from stages.anatomy.blocks import blocks
from stages.anatomy.hooks import reading
from stages.anatomy.local import compare_on_shared_inputs, fits
from stages.anatomy.modules import linear_paths
from stages.anatomy.restart import swapped
from stages.errors import BadInput
from tests.families import FAMILIES, tiny, token_ids

PARTS = [f"layers.{i}{part}" for i in range(4) for part in (".self_attn", ".mlp", "")]


def compared(target, donor, ids: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(site: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        found[site] = ours.clone(), theirs.clone()

    compare_on_shared_inputs(target, donor, ids, keep)
    return found


def states_of(model, sites: list[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad(), reading(model, sites) as states:
        model(input_ids=ids, use_cache=False)
    return states


@pytest.mark.parametrize("family", FAMILIES)
def test_each_site_shows_the_targets_state_and_what_the_donors_part_gives_in_its_place(family):
    """The oracle exchanges the part itself; nothing before it differs, so its input is the target's."""
    target, donor, ids = tiny(family), tiny(family, seed=1), token_ids()
    found = compared(target, donor, ids)
    own = states_of(target, PARTS, ids)
    for site in PARTS:
        torch.testing.assert_close(found[site][0], own[site], rtol=1e-5, atol=1e-6)
    for layer in (0, 2):
        with swapped(target, layer, blocks(donor)[layer]):
            expected = states_of(target, [f"layers.{layer}"], ids)
        torch.testing.assert_close(found[f"layers.{layer}"][1], expected[f"layers.{layer}"], rtol=1e-4, atol=1e-5)
    children = dict(blocks(target)[2].named_children())
    parts = {
        "layers.2.self_attn": [n for n in ("self_attn", "attn", "attention", "self_attention") if n in children],
        "layers.2.mlp": [n for n in ("mlp", "block_sparse_moe") if n in children] or ["fc1", "fc2"],
    }
    for site, inside in parts.items():
        target = tiny(family)
        for name in inside:
            blocks(target)[2].set_submodule(name, blocks(donor)[2].get_submodule(name))
        expected = states_of(target, [site], ids)[site]
        torch.testing.assert_close(found[site][1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_linear_module_is_given_the_targets_input(family):
    target, donor, ids = tiny(family), tiny(family, seed=1), token_ids()
    found, paths = compared(target, donor, ids), linear_paths(target)
    assert set(found) == {*PARTS, *paths}
    path = list(paths.values())[-1]
    entered = {}
    handle = target.get_submodule(path).register_forward_hook(lambda _m, inputs, _o: entered.update(x=inputs[0]))
    with torch.no_grad():
        target(input_ids=ids, use_cache=False)
        expected = donor.get_submodule(path)(entered["x"]).reshape(*ids.shape, -1)
    handle.remove()
    torch.testing.assert_close(found[list(paths)[-1]][1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_twin_changes_nothing_and_no_hook_stays(family):
    target, donor, ids = tiny(family), tiny(family), token_ids()
    for ours, theirs in compared(target, donor, ids).values():
        assert torch.equal(ours, theirs)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.modules())


def test_a_donor_that_changed_one_matrix_changes_its_own_sites_alone():
    target, donor = tiny("llama"), tiny("llama")
    donor.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(2)
    changed = [site for site, (ours, theirs) in compared(target, donor, token_ids()).items()
               if not torch.equal(ours, theirs)]  # fmt: skip
    assert sorted(changed) == ["layers.1", "layers.1.mlp", "layers.1.mlp.up_proj"]


def test_another_architecture_or_width_does_not_fit():
    assert fits(tiny("llama"), tiny("llama", seed=1))
    assert not fits(tiny("llama"), tiny("qwen2"))
    with pytest.raises(BadInput, match="Expected a donor with the target's blocks"):
        compared(tiny("llama"), tiny("llama", intermediate_size=48), token_ids())
