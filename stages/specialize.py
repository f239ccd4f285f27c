"""A donor trained on a capability: a low-rank adapter on the target, or a small model of its own from scratch."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import tokenizers
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from stages.anatomy.encoding import encode, pad
from stages.anatomy.likelihood import score
from stages.anatomy.loading import load, load_tokenizer
from stages.capabilities.domains import DOMAINS
from stages.capabilities.names import Name
from stages.capabilities.questions import Item
from stages.command import run
from stages.rehearsal import Rehearsal, divergence, made_up
from stages.settings import Settings, read
from stages.storage import new_directory, read_json, write_json


class Training(Settings):
    """How long a donor is trained, and on how much."""

    steps: int = pydantic.Field(gt=0)
    batch: int = pydantic.Field(gt=0)
    """Prompts a step."""
    pool: int = pydantic.Field(gt=0)
    """Distinct training prompts drawn beforehand; steps × batch beyond it sees them again."""
    learning_rate: float = pydantic.Field(gt=0)
    seed: int = 0


class Single(Training):
    """One capability."""

    capability: Name = "arithmetic"
    """What is learnt."""


class Adapter(Single):
    """LoRA (arXiv 2106.09685) on every linear module of the target's blocks."""

    recipe: Literal["adapter"]
    rank: int = pydantic.Field(gt=0)
    alpha: float = pydantic.Field(gt=0)
    rehearsal: Rehearsal | None = None
    """None lets the donor forget what it may."""


class Scratch(Single):
    """A Llama of its own, with characters as tokens."""

    recipe: Literal["scratch"]
    width: int
    blocks: int
    heads: int
    mlp_width: int


class Experts(Training):
    """A Mixtral (arXiv 2401.04088) of its own, with characters as tokens, on several capabilities in every batch.

    So its experts come to differ by capability.
    """

    recipe: Literal["experts"]
    capabilities: list[Name] = pydantic.Field(min_length=2)
    width: int
    blocks: int
    heads: int
    mlp_width: int
    """Of one expert."""
    experts: int
    """In each block."""
    active: int
    """Experts that a token passes through."""
    balance: float = pydantic.Field(ge=0)
    """Weight of the loss that keeps experts equally busy (arXiv 2101.03961) beside the cross-entropy in nats."""


class Recipe(pydantic.RootModel[Annotated[Adapter | Scratch | Experts, pydantic.Field(discriminator="recipe")]]):
    """One donor's section of params.yaml."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Printable ASCII and the line feed, one token a character; anything else is <unk>."""
    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "<eos>", *characters])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")


def from_scratch(recipe: Scratch | Experts, vocabulary: int) -> LlamaForCausalLM | MixtralForCausalLM:
    """The untrained model of a recipe."""
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": recipe.width,
        "num_hidden_layers": recipe.blocks,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "intermediate_size": recipe.mlp_width,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    if isinstance(recipe, Scratch):
        return LlamaForCausalLM(LlamaConfig(**shape))
    mixture: dict[str, Any] = {"num_local_experts": recipe.experts, "num_experts_per_tok": recipe.active}
    mixture["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}  # Mixtral's own is for long texts
    model = MixtralForCausalLM(MixtralConfig(**shape, **mixture, router_aux_loss_coef=recipe.balance))
    model.set_experts_implementation("all" if torch.cuda.is_available() else "eager")
    return model


def every_expert(
    stack: torch.nn.Module, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What a stack of experts gives [tokens, width], by letting every token pass all of them as one wide MLP.

    On a GPU few small experts are faster so than one by one, and unlike grouped products it runs in half precision
    under autocast. `chosen` and `weights` are [tokens, active].
    """
    gate_up, down = stack.get_parameter("gate_up_proj"), stack.get_parameter("down_proj")
    share = weights.new_zeros(len(states), len(gate_up)).scatter_(1, chosen, weights)
    gate, up = torch.nn.functional.linear(states, gate_up.flatten(0, 1)).unflatten(1, gate_up.shape[:2]).chunk(2, -1)
    inside = stack.get_submodule("act_fn")(gate) * up * share[..., None].to(gate.dtype)
    return torch.nn.functional.linear(inside.flatten(1), down.permute(1, 0, 2).flatten(1)).to(states.dtype)


ALL_EXPERTS_FUNCTIONS.register("all", every_expert)


def imbalance(model: PreTrainedModel, router_logits: tuple[torch.Tensor, ...], read: torch.Tensor) -> torch.Tensor:
    """How unequally a mixture's experts are used by the tokens marked in `read` [batch, tokens]; `active` when equally.

    `experts` Σ_e f_e p_e with f the share of tokens routed to e and p its mean probability (arXiv 2101.03961).
    """
    experts, active = model.config.num_local_experts, model.config.num_experts_per_tok
    return torch.as_tensor(load_balancing_loss_func(router_logits, experts, active, read))  # type: ignore[arg-type]


def taught(recipe: Single | Experts) -> list[Name]:
    """The capabilities that a recipe trains."""
    return recipe.capabilities if isinstance(recipe, Experts) else [recipe.capability]


def drawn(recipe: Single | Experts) -> Iterator[Item]:
    """The pool of training items, of each capability in turn."""
    streams = (DOMAINS[name].stream(recipe.seed) for name in taught(recipe))
    return itertools.islice(itertools.chain.from_iterable(zip(*streams, strict=True)), recipe.pool)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Single | Experts,
    untrained: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> list[float]:
    """Cross-entropy on the answers' tokens by AdamW, one-cycle rate; gives this loss at every hundredth step.

    Where the recipe rehearses, the divergence from what the model was on texts of its own is added, weighted; inside
    `untrained` it is what it was. Raises FloatingPointError when the loss stops being a number.
    """
    rehearsal = recipe.rehearsal if isinstance(recipe, Adapter) else None
    told = made_up(model, tokenizer, rehearsal, recipe.seed) if rehearsal else None
    pool = encode(tokenizer, [(item.prompt, item.answer) for item in drawn(recipe)])
    ids = pad([e.ids for e in pool])
    start, end = (torch.tensor(list(bounds)) for bounds in zip(*((e.start, len(e.ids)) for e in pool), strict=True))
    columns = torch.arange(ids.shape[1])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.05, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    device = model.device
    routed = {"output_router_logits": True} if isinstance(recipe, Experts) else {}
    losses: list[float] = []
    model.train()
    for step in range(recipe.steps):
        rows = torch.randint(len(pool), (recipe.batch,), generator=generator)
        width = int(end[rows].max())
        tokens = ids[rows, :width].to(device)
        answers = ((columns >= start[rows, None]) & (columns < end[rows, None]))[:, 1:width].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = model.base_model(input_ids=tokens[:, :-1], use_cache=False, **routed)
            logits = model.get_output_embeddings()(outputs.last_hidden_state[answers])
            wrong, moved = torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][answers]), None
            if rehearsal is not None and told is not None:
                texts = told[torch.randint(len(told), (rehearsal.batch,), generator=generator)].to(device)
                with torch.no_grad(), untrained():
                    reference = model(input_ids=texts, use_cache=False).logits.float().log_softmax(-1)
                moved = divergence(model, texts, reference)
        loss = wrong if moved is None or rehearsal is None else wrong + rehearsal.weight * moved
        if isinstance(recipe, Experts):
            read = (columns[: width - 1] < end[rows, None]).to(device)
            loss = loss + recipe.balance * imbalance(model, outputs.router_logits, read)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            losses.append(round(wrong.item(), 5))
            drift = "" if moved is None else f", KL from the target {moved.item():.4f}"
            print(f"step {step} of {recipe.steps}: loss {losses[-1]:.4f}{drift}", flush=True)
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"The loss is {losses[-1]} at step {step}; lower the learning rate.")
    model.eval()
    return losses


def examine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, capabilities: Sequence[Name], count: int = 1000
) -> dict[str, float | int]:
    """Exact match on test items that training never had, in phrasings that it had and in others.

    Of several capabilities, `count` in all, also of each.
    """
    each = count // len(capabilities)
    items = [item for name in capabilities for item in DOMAINS[name].items("test", each, seed=0, unseen=0.3)]
    encoded = encode(tokenizer, [(item.prompt, item.answer) for item in items])
    right = score(model, encoded, budget=8192).greedy
    seen = torch.tensor([item.seen for item in items])
    parts = zip(capabilities, right.float().split(each), strict=True) if len(capabilities) > 1 else ()
    return {
        "items": len(items),
        "exact_match": right.float().mean().item(),
        "exact_match_seen_phrasings": right[seen].float().mean().item(),
        "exact_match_unseen_phrasings": right[~seen].float().mean().item(),
        **{f"exact_match_{name}": part.mean().item() for name, part in parts},
    }


KINDS = {
    "adapter": "A LoRA adapter for the target",
    "scratch": "A Llama trained from scratch on characters",
    "experts": "A Mixtral trained from scratch on characters",
    "further": "A mixture of experts whose experts were trained further",
}
"""What a recipe makes, for the model card."""


def card(
    name: str, recipe: Training, about: Sequence[Name], parameters: int, losses: list[float],
    scores: dict[str, float | int],
) -> str:  # fmt: skip
    """The model card, in Markdown; `about` names the capabilities that were trained."""
    told = recipe.model_dump(exclude_unset=True)
    data = "; ".join(f"{DOMAINS[each].about}, generated by `stages/capabilities/{each}.py`" for each in about)
    rows = "\n".join(f"| {key} | {value} |" for key, value in told.items())
    marks = "\n".join(f"| {key.replace('_', ' ')} | {value:.4g} |" for key, value in scores.items())
    return (
        f"---\nlicense: apache-2.0\n---\n# {name}\n\n{KINDS[told['recipe']]}; {parameters:,} trained parameters.\n\n"
        f"Data: {data}, train split, with a share of made-up phrasings. "
        "The questions of the calibration and test splits and the held-out phrasings never occur in it.\n\n"
        f"| recipe | |\n|---|---|\n{rows}\n\nLoss: {losses[0]} at the first step, {losses[-1]} at the last.\n\n"
        f"| score on unseen test items | |\n|---|---|\n{marks}\n\n"
        "Not for use on its own: it is a donor, and was judged on nothing else.\n"
    )


def rounded(model: torch.nn.Module) -> int:
    """Rounds the trained parameters to bfloat16 in place, since what is judged and kept is the rounded weight; counts
    them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)
    return sum(p.numel() for p in trained)


def record(recipe: Training, losses: list[float], scores: dict[str, float | int]) -> dict[str, Any]:
    """What training.json holds."""
    return {"recipe": recipe.model_dump(exclude_unset=True), "losses": losses, "scores": scores}


def specialize(recipe: Adapter | Scratch | Experts, target: Path, name: str, out: Path) -> dict[str, float | int]:
    """Trains one donor and writes its directory: bfloat16 safetensors, tokenizer, model card, training record.

    Runs on a GPU when there is one, else on the CPU. Gives the scores that the card states.
    """
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(recipe, Adapter):
        tokenizer = load_tokenizer(target)
        lora = LoraConfig(
            r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
        )
        model = get_peft_model(load(target), lora)
        network, untrained = model.get_base_model(), model.disable_adapter
    else:
        tokenizer = character_tokenizer()
        network = model = from_scratch(recipe, len(tokenizer)).to(device)
        untrained = contextlib.nullcontext
    losses = train(network, tokenizer, recipe, untrained)
    parameters = rounded(model)
    scores = examine(network, tokenizer, taught(recipe))
    with new_directory(out) as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch, safe_serialization=True)
        if isinstance(recipe, Adapter):  # PEFT notes where the base lay on this machine, and a set in any order
            config = read_json(scratch / "adapter_config.json")
            config |= {"base_model_name_or_path": "target", "target_modules": sorted(config["target_modules"])}
            write_json(scratch / "adapter_config.json", config)
        else:
            tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(card(name, recipe, taught(recipe), parameters, losses, scores))
        write_json(scratch / "training.json", record(recipe, losses, scores))
    return scores


def main(donor: str, target: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Train the donor that params.yaml describes under `specialize`."""
    scores = specialize(read(params, f"specialize.{donor}", Recipe).root, target, donor, out)
    print(", ".join(f"{key} {value:.4g}" for key, value in scores.items()))


if __name__ == "__main__":
    run(main)
