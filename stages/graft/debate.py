"""One model in debate with itself: perturbed views of it read the same text, and their predictions are reconciled."""

import math

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from .donor import accepted
from .host import HostConfig, HostForCausalLM
from .noise import Normal

KINDS = ("average", "entropy", "maximum", "gate")


class DebateConfig(HostConfig):
    """The target's configuration, its views, and how they are reconciled.

    A view is `{temperature, noise, layer, seed, skip}`: noise of so many root mean squares leaves block `layer`, the
    blocks in the list `skip` are passed by, and the logits are divided by the temperature.
    """

    model_type = "debate"

    def __init__(self, views: list[dict] | None = None, reconcile: str = "average", **kwargs):
        self.views, self.reconcile = views or [], reconcile
        super().__init__(**kwargs)


class DebateCache(DynamicCache):
    """The target's cache with a row for each view of each text; beams and batches rearrange whole texts."""

    def __init__(self, config: PreTrainedConfig, views: int):
        super().__init__(config=config)
        self.views = views

    def _rows(self, texts):
        return (texts[:, None] * self.views + torch.arange(self.views, device=texts.device)).flatten()

    def reorder_cache(self, beam_idx):
        super().reorder_cache(self._rows(beam_idx))  # type: ignore[arg-type]

    def batch_select_indices(self, indices):
        super().batch_select_indices(self._rows(indices))

    def batch_repeat_interleave(self, repeats):
        if self.get_seq_length():
            held = self.layers[0].keys  # type: ignore[union-attr]
            assert isinstance(held, torch.Tensor)
            texts = torch.arange(len(held) // self.views, device=held.device)
            self.batch_select_indices(texts.repeat_interleave(repeats))


class Reconcile(nn.Module):
    """log p = Σ_v w_v log p_v + constant, with p_v = softmax(z_v / T_v) and weights w_v ≥ 0 that sum to 1.

    `average`: w_v = 1 / views. `entropy`: w_v ∝ exp(−H(p_v)). `maximum`: w_v ∝ max p_v. `gate`: w = softmax of a linear
    map of every view's H / log vocabulary and max p. Views of temperature alone only change how sure all of it is,
    and never the likeliest token. Debate among copies: arXiv 2305.14325; self-consistency: 2203.11171.
    """

    def __init__(self, kind: str, temperatures: list[float]):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"Expected reconcile {', '.join(KINDS)}, got {kind!r}; name one of these.")
        self.kind, self.temperatures = kind, temperatures
        if kind == "gate":
            self.gate = nn.Linear(2 * len(temperatures), len(temperatures))
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def weights(self, logprobs: torch.Tensor) -> torch.Tensor:
        """[batch, views, tokens] for log-probabilities [batch, views, tokens, vocabulary]."""
        if self.kind == "average":
            return torch.full_like(logprobs[..., 0], 1 / logprobs.shape[1])
        surest = logprobs.max(-1).values.exp()
        if self.kind == "maximum":
            return surest / surest.sum(1, keepdim=True)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        if self.kind == "entropy":
            return (-entropy).softmax(1)
        read = torch.cat([entropy / math.log(logprobs.shape[-1]), surest], dim=1).transpose(1, 2)
        return self.gate(read.to(self.gate.weight.dtype)).float().softmax(-1).transpose(1, 2)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [batch, tokens, vocabulary] from the views' [batch, views, tokens, vocabulary].

        The first view's logits and what the others say beyond it, so that equal views give theirs, bit for bit.
        """
        heat = torch.tensor(self.temperatures, device=logits.device)[:, None, None]
        scaled = logits.float() / heat
        logprobs = scaled.log_softmax(-1)
        beyond = self.weights(logprobs)[..., None] * (logprobs - logprobs[:, :1])
        return (scaled[:, 0] + beyond.sum(1)).to(logits.dtype)


class DebateForCausalLM(HostForCausalLM):
    """The target read by all views at once, as rows of one batch; it takes and gives what the target does."""

    config_class = DebateConfig

    def __init__(self, config: DebateConfig):
        super().__init__(config)
        self.head = nn.Identity()  # sees the views' states side by side, so that who picks positions picks all views'
        self.reconcile = Reconcile(config.reconcile, [view["temperature"] for view in config.views])
        self.noises = [Normal(view["seed"]) for view in config.views]
        self.post_init()

    def get_output_embeddings(self):
        return self.head

    cache_class = DebateCache

    def new_cache(self) -> DebateCache:
        return DebateCache(self.config.target_config(), len(self.config.views))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, tokens kept, vocabulary]; every argument as in the target's forward."""
        new = input_ids if inputs_embeds is None else inputs_embeds
        if new is None or (attention_mask is not None and attention_mask.dim() != 2):
            raise ValueError("Expected input_ids or inputs_embeds, and an attention mask [batch, tokens] or none.")
        views = len(self.config.views)
        use_cache = past_key_values is not None if use_cache is None else use_cache
        cache = self.own_cache(past_key_values) if use_cache else None
        seen = 0 if cache is None else cache.get_seq_length()
        if attention_mask is None:
            position = torch.arange(seen, seen + new.shape[1], device=new.device).expand(len(new), -1)
        else:
            position = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
            position_ids = position if position_ids is None else position_ids  # type: ignore[assignment]
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        if "position_ids" in accepted(self.target):
            given["position_ids"] = None if position_ids is None else position_ids.expand(len(new), -1)
        rows = {k: None if v is None else v.repeat_interleave(views, dim=0) for k, v in given.items()}
        fired: dict[str, int] = {}
        handles = self._perturb(position, fired)
        try:
            output = self.target(
                past_key_values=cache, use_cache=use_cache, logits_to_keep=logits_to_keep, **rows, **kwargs
            )
        finally:
            for handle in handles:
                handle.remove()
        if len(fired) != len(handles) or set(fired.values()) != {1}:
            raise RuntimeError(f"Of {len(handles)} hooks of the views, {fired} ran in one pass, expected each once.")
        logits = output.logits = self.reconcile(output.logits.unflatten(0, (-1, views)))
        if labels is not None:
            output.loss = self.target.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1])
        return output

    def _perturb(self, position: torch.Tensor, fired: dict[str, int]) -> list:
        """Hooks by which each view's rows are disturbed or pass blocks by; `position` [batch, tokens] in each text."""
        views, inner = self.config.views, self.target.get_submodule(self.config.target_blocks)

        def of_block(index: int):
            def leave(block, args, kwargs, output):
                fired[f"block {index}"] = fired.get(f"block {index}", 0) + 1
                state = output[0] if isinstance(output, tuple) else output
                entered = args[0] if args else kwargs["hidden_states"]
                rows = list(state.unflatten(0, (-1, len(views))).unbind(1))
                for number, view in enumerate(views):
                    if index in view["skip"]:
                        rows[number] = entered[number :: len(views)]
                    if view["noise"] and view["layer"] == index:
                        rows[number] = self.noises[number].disturb(rows[number], view["noise"], position)
                changed = torch.stack(rows, dim=1).flatten(0, 1)
                return (changed, *output[1:]) if isinstance(output, tuple) else changed

            return leave

        def enter_head(_, args):
            fired["head"] = fired.get("head", 0) + 1
            states = args[0].unflatten(0, (-1, len(views))).transpose(1, 2)  # [batch, tokens, views, width]
            chosen = self.head(states.flatten(2)).unflatten(2, (len(views), -1))
            return (chosen.transpose(1, 2).flatten(0, 1), *args[1:])

        held = {view["layer"] for view in views if view["noise"]} | {i for view in views for i in view["skip"]}
        handles = [inner[i].register_forward_hook(of_block(i), with_kwargs=True) for i in sorted(held)]
        return [*handles, self.target.get_output_embeddings().register_forward_pre_hook(enter_head)]


DebateConfig.register_for_auto_class()
DebateForCausalLM.register_for_auto_class("AutoModelForCausalLM")
