"""Heads, routers and experts are what the formulas say, and replacing one changes it and nothing beside it."""

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stages.anatomy.hooks import reading, replacing
from stages.anatomy.sites import resolve, sites_of
from stages.errors import BadInput
from tests import families
from tests.families import FAMILIES, tiny, token_ids

HEADS = [f"layers.2.self_attn.heads.{head}" for head in range(4)]
MLP, ROUTER = "layers.1.mlp", "layers.1.mlp.router"
EXPERTS = [f"layers.1.mlp.experts.{expert}" for expert in range(4)]
_MIXTURE = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 64, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_DEEPSEEK = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 2, "first_k_dense_replace": 1, "n_shared_experts": 1,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4,
}  # fmt: skip
MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "olmoe": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 64},
    "gpt_oss": {"num_local_experts": 4},
    "deepseek_v3": _DEEPSEEK,
}


def mixture(family: str) -> PreTrainedModel:
    """A random mixture of 4 experts of which a token goes to 2; its block 1 routes."""
    settings = _MIXTURE | MIXTURES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    return model.requires_grad_(False).eval()


def states_of(model: PreTrainedModel, sites: list[str]) -> dict[str, torch.Tensor]:
    with reading(model, sites) as states:
        model(input_ids=token_ids(), use_cache=False)
    return states


def near(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_heads_through_the_output_projection_are_the_attention_s_output(family):
    model = tiny(family)
    states = states_of(model, [*HEADS, "layers.2.self_attn"])
    assert {states[head].shape for head in HEADS} == {(3, 11, 8)}
    joined = torch.cat([states[head] for head in HEADS], dim=-1)
    near(resolve(model, HEADS[0]).module.forward(joined), states["layers.2.self_attn"])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3"])
def test_a_head_is_its_attention_times_the_values_of_its_group(family):
    """Against eager attention's own weights, so that the heads' order is that of the queries."""
    model = tiny(family)
    model.set_attn_implementation("eager")
    block = "model.layers.2.self_attn" if family != "gpt_neox" else "gpt_neox.layers.2.attention"
    attention: Any = model.get_submodule(block)
    kept: dict[str, Any] = {}
    handle = attention.register_forward_hook(
        lambda _m, inputs, kwargs, output: kept.update(x=kwargs.get("hidden_states", *inputs[:1]), weights=output[1]),
        with_kwargs=True,
    )
    states = states_of(model, HEADS)
    handle.remove()
    if family == "llama":
        values = attention.v_proj(kept["x"]).unflatten(-1, (2, 8)).repeat_interleave(2, 2)
    elif family == "phi3":
        values = attention.qkv_proj(kept["x"])[..., -16:].unflatten(-1, (2, 8)).repeat_interleave(2, 2)
    else:
        values = attention.query_key_value(kept["x"]).unflatten(-1, (4, 24))[..., 16:]
    for head, site in enumerate(HEADS):
        near(states[site], kept["weights"][:, head] @ values[:, :, head])


@pytest.mark.parametrize("family", FAMILIES)
def test_replacing_a_head_writes_its_slice_and_no_other(family):
    model, donor = tiny(family), tiny(family, seed=1)
    patch, before = states_of(donor, HEADS)[HEADS[1]], states_of(model, HEADS)
    with replacing(model, {HEADS[1]: lambda _: patch}):
        after = states_of(model, [*HEADS, "layers.2.self_attn"])
    assert torch.equal(after[HEADS[1]], patch)
    assert all(torch.equal(after[head], before[head]) for head in HEADS if head != HEADS[1])
    joined = torch.cat([before[HEADS[0]], patch, before[HEADS[2]], before[HEADS[3]]], dim=-1)
    near(after["layers.2.self_attn"], resolve(model, HEADS[0]).module.forward(joined))


@pytest.mark.parametrize("family", FAMILIES)
def test_replacing_all_heads_together_is_replacing_each(family):
    model = tiny(family)
    before = states_of(model, HEADS)
    with replacing(model, {head: lambda state, n=n: state * n for n, head in enumerate(HEADS)}):
        after = states_of(model, HEADS)
    assert all(torch.equal(after[head], before[head] * n) for n, head in enumerate(HEADS))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_a_head_that_is_replaced_and_those_that_are_read(family):
    model = tiny(family)
    leaf = torch.zeros(3, 11, 8, requires_grad=True)
    with replacing(model, {HEADS[3]: lambda state: state + leaf}), reading(model, [*HEADS, "layers.3"]) as states:
        model(input_ids=token_ids(), use_cache=False)
    loss = states["layers.3"].square().sum()
    written, *read = torch.autograd.grad(loss, [leaf, *(states[head] for head in HEADS)])
    assert written.abs().sum() > 0 and all(gradient.abs().sum() > 0 for gradient in read)
    assert torch.equal(read[3], written)


DENSE = [family for family in FAMILIES if family not in families.MIXTURES]


def neurons(model: PreTrainedModel, groups: int) -> list[str]:
    return [site for site in sites_of(model, groups) if site.startswith("layers.2.mlp.neurons")]


@pytest.mark.parametrize("family", DENSE)
def test_groups_of_neurons_through_the_last_matrix_are_the_mlp_s_output(family):
    model = tiny(family)
    groups = neurons(model, 3)
    states = states_of(model, [*groups, "layers.2.mlp"])
    joined = torch.cat([states[group] for group in groups], dim=-1)
    last: Any = resolve(model, groups[0]).module
    shown = joined.flatten(0, 1) if family == "opt" else joined
    near(last(shown).view_as(states["layers.2.mlp"]), states["layers.2.mlp"])


def test_neurons_are_what_the_gate_lets_through():
    """Also where gate and values come out of one fused matrix."""
    for family in ("llama", "phi3", "gemma"):
        model: Any = tiny(family)
        mlp = model.model.layers[2].mlp
        kept = []
        handle = mlp.register_forward_pre_hook(lambda _m, inputs, kept=kept: kept.append(inputs[0]))
        found = states_of(model, ["layers.2.mlp.neurons.7:30"])["layers.2.mlp.neurons.7:30"]
        handle.remove()
        gate, up = (
            mlp.gate_up_proj(kept[0]).chunk(2, -1)
            if family == "phi3"
            else (mlp.gate_proj(kept[0]), mlp.up_proj(kept[0]))
        )
        near(found, ((mlp.act_fn if family != "phi3" else mlp.activation_fn)(gate) * up)[..., 7:30])


@pytest.mark.parametrize("family", DENSE)
def test_silencing_neurons_is_silencing_their_columns_of_the_last_matrix(family):
    model, silent = tiny(family), tiny(family)
    site = neurons(model, 4)[1]
    place: Any = resolve(silent, site)
    weight = place.module.weight.data
    (weight if family == "gpt2" else weight.T)[place.channels] = 0
    with replacing(model, {site: torch.zeros_like}):
        logits = model(input_ids=token_ids(), use_cache=False).logits
    near(logits, silent(input_ids=token_ids(), use_cache=False).logits)
    assert not torch.allclose(logits, model(input_ids=token_ids(), use_cache=False).logits, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "phi3", "mistral"])
def test_the_heads_of_a_group_together_carry_what_its_values_change(family):
    """Another value matrix for one group moves the heads that share it and no others, and they carry all of it."""
    model, other = tiny(family), tiny(family)
    attention: Any = other.get_submodule("model.layers.2.self_attn")
    values = attention.qkv_proj.weight.data[-16:] if family == "phi3" else attention.v_proj.weight.data
    values[8:] *= -0.5  # the second of two groups of width 8
    before, after = (states_of(each, HEADS) for each in (model, other))
    moved = [not torch.allclose(before[head], after[head], atol=1e-5) for head in HEADS]
    assert moved == [False, False, True, True]
    shared = HEADS[2:]
    with replacing(model, {head: lambda _, state=after[head]: state for head in shared}):
        logits = model(input_ids=token_ids(), use_cache=False).logits
    near(logits, other(input_ids=token_ids(), use_cache=False).logits)


def test_a_mixture_has_no_neurons_of_its_own():
    for family in MIXTURES:
        assert not [site for site in sites_of(mixture(family)) if site.startswith("layers.1.mlp.neurons")]


@pytest.mark.parametrize("family", ["mixtral", "opt"])
def test_gradients_reach_every_site_that_is_read(family):
    """Those too that the architecture shows flattened, or that are computed beside it."""
    model = tiny(family)
    model.get_input_embeddings().requires_grad_(True)
    names = [name for name in sites_of(model) if "layers.3" not in name]
    plain = model(input_ids=token_ids(), use_cache=False).logits
    with reading(model, names) as states:
        logits = model(input_ids=token_ids(), use_cache=False).logits
    torch.testing.assert_close(logits, plain, rtol=0, atol=0)
    of_interest = [states[name] for name in names if name not in ("norm", "lm_head")]
    assert all(gradient.any() for gradient in torch.autograd.grad(logits.square().sum(), of_interest))


@pytest.mark.parametrize("family", ["gpt2", "bloom", "opt"])
def test_attention_and_mlp_sites_sum_to_the_residual_stream(family):
    """Also where the architecture's own modules add the residual stream themselves, as Bloom's do."""
    states = states_of(tiny(family), ["layers.0", "layers.1", "layers.1.self_attn", "layers.1.mlp"])
    near(states["layers.0"] + states["layers.1.self_attn"] + states["layers.1.mlp"], states["layers.1"])


@pytest.mark.parametrize("family", MIXTURES)
def test_the_experts_by_the_router_s_weights_sum_to_the_mixture_s_output(family):
    model, kept = mixture(family), {}
    stack = resolve(model, EXPERTS[0]).module
    handle = stack.register_forward_hook(lambda _m, inputs, output: kept.update(inputs=inputs, output=output))
    states = states_of(model, [*EXPERTS, ROUTER])
    handle.remove()
    _, chosen, weights = kept["inputs"]
    assert states[ROUTER].shape == (3, 11, 4)
    total = torch.zeros_like(kept["output"])
    for expert, site in enumerate(EXPERTS):
        own = states[site].flatten(0, 1)
        routed = (chosen == expert).any(-1)
        assert own[routed].any(-1).all() and not own[~routed].any()
        total += (weights * (chosen == expert)).sum(-1, keepdim=True) * own
    near(total, kept["output"])


def test_an_expert_of_a_mixtral_is_the_plain_formula_of_its_stacked_weights():
    model, kept = mixture("mixtral"), {}
    stack: Any = resolve(model, EXPERTS[0]).module
    router: Any = resolve(model, ROUTER).module
    handle = stack.register_forward_hook(lambda _m, inputs, _output: kept.update(x=inputs[0]))
    states = states_of(model, [*EXPERTS, ROUTER])
    handle.remove()
    logits = kept["x"] @ router.weight.T
    near(states[ROUTER].flatten(0, 1), logits)
    for expert, site in enumerate(EXPERTS):
        gate, up = (kept["x"] @ stack.gate_up_proj[expert].T).chunk(2, dim=-1)
        plain = (functional.silu(gate) * up) @ stack.down_proj[expert].T
        routed = (logits.topk(2).indices == expert).any(-1, keepdim=True)
        near(states[site].flatten(0, 1), plain * routed)


@pytest.mark.parametrize("family", MIXTURES)
def test_replacing_an_expert_moves_the_mixture_by_its_weight(family):
    model, kept = mixture(family), {}
    before = states_of(model, [EXPERTS[2], MLP])
    stack = resolve(model, EXPERTS[0]).module
    handle = stack.register_forward_hook(lambda _m, inputs, _output: kept.update(inputs=inputs))
    with replacing(model, {EXPERTS[2]: torch.zeros_like}):
        after = states_of(model, [MLP])
    handle.remove()
    _, chosen, weights = kept["inputs"]
    weight = (weights * (chosen == 2)).sum(-1).view(3, 11, 1)
    near(after[MLP], before[MLP] - weight * before[EXPERTS[2]])


@pytest.mark.parametrize("family", MIXTURES)
def test_replacing_the_router_s_logits_sends_tokens_to_other_experts(family):
    model = mixture(family)
    wanted = torch.tensor([9.0, 8.0, -9.0, -9.0]).expand(3, 11, 4)
    with replacing(model, {ROUTER: lambda _: wanted}):
        after = states_of(model, [*EXPERTS, ROUTER])
    assert torch.equal(after[ROUTER], wanted)
    assert [bool(after[site].any()) for site in EXPERTS] == [True, True, False, False]


def test_a_router_that_does_not_give_its_logits_first_is_not_replaced():
    model = mixture("mixtral")
    router = resolve(model, ROUTER).module
    plain = router.forward
    router.forward = lambda states: (plain(states)[0].softmax(-1), *plain(states)[1:])
    with (
        pytest.raises(BadInput, match="MixtralTopKRouter, which does not"),
        replacing(model, {ROUTER: lambda s: s * 2}),
    ):
        states_of(model, [MLP])


def test_a_plain_mlp_has_no_router_and_no_experts():
    assert not [site for site in sites_of(tiny("llama")) if "router" in site or "experts" in site]
