"""Tiny random models of many families: vocabulary 128, width 32, 4 blocks, grouped queries where a family has them."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from stages.anatomy.encoding import Encoded

_LLAMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SINGLE_QUERY = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_OPT = {key: value for key, value in _SINGLE_QUERY.items() if key not in ("intermediate_size", "initializer_range")}

CONFIGURATIONS: dict[str, dict] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 6},
    "mixtral": _LLAMA | {"num_local_experts": 4},
    "qwen2_moe": _LLAMA
    | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
    "qwen3_moe": _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": _LLAMA | {"num_local_experts": 4},
    "qwen2": _LLAMA,
    "phi3": _LLAMA,
    "gemma": _LLAMA | {"head_dim": 8},
    "gemma2": _LLAMA | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "gpt_neox": _SINGLE_QUERY,
    "opt": _OPT | {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2},
    "bloom": {
        "vocab_size": 128,
        "hidden_size": 32,
        "n_layer": 4,
        "n_head": 4,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt2": {
        "vocab_size": 128,
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_inner": 64,
        "n_positions": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
FAMILIES = sorted(CONFIGURATIONS)
MIXTURES = ("mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")
"""Those with experts behind a router in every block, four of them of which a token passes two."""
SMOOTH = dict.fromkeys(MIXTURES, {"num_experts_per_tok": 4}) | {"phimoe": {"num_local_experts": 2}}
"""Settings by which a token passes all experts, since one that goes to others is a jump; Phi-MoE knows but two."""


def tiny(family: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random model of `family` in evaluation mode, frozen; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **CONFIGURATIONS[family] | overrides))
    return model.requires_grad_(False).eval()


def token_ids(batch: int = 3, tokens: int = 11, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, tokens] that every family knows, none of them special."""
    return torch.randint(3, 128, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def tokenizer(pattern: str = r"[\s\S]") -> PreTrainedTokenizerFast:
    """A tokenizer of at most 128 tokens that cuts where `pattern` matches; by default a token is a character.

    What is no token of its own reads as <unk>, with its offsets.
    """
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<eos>", "\n", *map(chr, range(32, 127))])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def loglikelihoods(model: PreTrainedModel, encoded: Sequence[Encoded]) -> torch.Tensor:
    """[n], of each continuation, by a plain pass of its own, nats."""
    told = []
    for e in encoded:
        logprobs = model(input_ids=torch.tensor([e.ids[:-1]]), use_cache=False).logits[0].log_softmax(-1)
        told.append(sum(logprobs[e.start - 1 + i, token] for i, token in enumerate(e.ids[e.start :])))
    return torch.stack(told)


def saved(model: PreTrainedModel, directory: Path, pattern: str = r"[\s\S]") -> Path:
    """`model` and its tokenizer as a model directory."""
    model.save_pretrained(directory)
    tokenizer(pattern).save_pretrained(directory)
    return directory
