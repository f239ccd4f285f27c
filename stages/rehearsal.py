"""Texts that a model makes up itself, to rehearse while it learns something else, so that it forgets less."""

import pydantic
import torch
from torch.nn.functional import kl_div
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.settings import Settings


class Rehearsal(Settings):
    """How the target's own texts hold a donor to the target's distribution (pseudo-rehearsal, arXiv 2403.01244)."""

    weight: float = pydantic.Field(gt=0)
    """Of KL(target ‖ donor) in nats a token, beside the cross-entropy of the answers."""
    texts: int = pydantic.Field(gt=0)
    """Sampled beforehand."""
    tokens: int = pydantic.Field(gt=0)
    """Of each text."""
    batch: int = pydantic.Field(gt=0)
    """Texts a step."""


@torch.inference_mode()
def made_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Rehearsal, seed: int, at_once: int = 1024
) -> torch.Tensor:
    """[texts, tokens], sampled from `model` at temperature 1 without any data.

    Each begins with one of the special tokens that texts begin with; half of them go on with a word drawn from the
    vocabulary, and half of these with a number, since a model left alone seldom writes any.
    """
    starts = sorted({t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id) if t is not None})
    words = [i for token, i in sorted(tokenizer.get_vocab().items()) if token.isalpha() and token.istitle()]
    generator = torch.Generator().manual_seed(seed)

    def drawn(choices: list[int]) -> int:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    begun: dict[int, list[list[int]]] = {}
    for n in range(recipe.texts):
        opening = [drawn(starts)]
        if words and n % 2:
            opening.append(drawn(words))
            if n % 4 == 3:
                opening += tokenizer(f" {drawn(list(range(1, 2100)))}", add_special_tokens=False).input_ids
        begun.setdefault(len(opening), []).append(opening)
    told = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for length, openings in sorted(begun.items()):
            for ids in torch.tensor(openings, device=model.device).split(at_once):
                told.append(
                    model.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        do_sample=True,
                        top_k=0,
                        max_new_tokens=recipe.tokens - length,
                        min_new_tokens=recipe.tokens - length,
                        pad_token_id=starts[0],
                    )
                )
    whole = torch.cat(told).cpu()
    return whole[torch.randperm(len(whole), generator=generator)]


def divergence(model: PreTrainedModel, ids: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean KL(reference ‖ model) in nats a token, for texts [batch, tokens] and log-probabilities of the reference."""
    own = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    return kl_div(own.flatten(0, 1), reference.flatten(0, 1), log_target=True, reduction="batchmean")
