"""Tiny grafts as the stages build them: a byte-level tokenizer, model directories in bfloat16, gates stirred or not."""

import functools
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.graft.modeling import GraftForCausalLM
from stages.inject import inject
from stages.recipes.blade import BladeRecipe, Parts, parts
from stages.specialize import character_tokenizer
from tests.families import tiny

SENTENCES = (
    "What is 12 + 30? Answer: 42.",
    "The sum of 12 and 30 is 42, and the difference is 18.",
    "A café in the old town sells tea and bread.",
    "Question: What is 99 minus 1?\nAnswer: 98.",
)
VOCABULARY = 320
UNTRAINED = {"steps": 1, "prompts": 1, "batch": 1, "texts": 1, "positions": 1, "learning_rate": 0.1, "divergence": 1.0}


@functools.cache
def bpe() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 320 tokens, whose tokens 0 to 2 are special and spell nothing."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def directory(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> Path:
    """`model` in bfloat16 and `tokenizer` as a model directory."""
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def target(root: Path, family: str = "llama", seed: int = 0) -> Path:
    return directory(tiny(family, seed, vocab_size=VOCABULARY), bpe(), root / f"{family}_{seed}")


def characters(root: Path) -> Path:
    """A donor of another width and tokenizer."""
    model = tiny("llama", seed=7, hidden_size=24, vocab_size=len(character_tokenizer()))
    return directory(model, character_tokenizer(), root / "characters")


def recipe(**given) -> BladeRecipe:
    settings = {"donor": "donor", "layer": 2, "donor_layer": 1, "gate": "token"} | given
    if settings["gate"] not in ("identity", "closed") or settings.get("bridge", "identity") != "identity":
        settings["training"] = UNTRAINED | settings.get("training", {})
    return BladeRecipe.model_validate(settings)


def stir(made: Parts, scale: float = 0.5) -> Parts:
    """Draws the parts' weights anew, so that the gate differs from token to token."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parts.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(drawn.to(torch.bfloat16))
    return made


def built(root: Path, receiving: Path, giving: Path, stirred: bool = True, **given) -> tuple[Parts, Path]:
    """The parts of a graft, and the directory that inject wrote from them."""
    made = parts(recipe(**given), receiving, giving)
    if stirred:
        stir(made)
    root.mkdir(parents=True, exist_ok=True)
    gate = {name: value.to(torch.bfloat16).contiguous() for name, value in made.parts.state_dict().items()}
    save_file(gate, root / "gate.safetensors")
    inject(made, root / "gate.safetensors", root / "graft")
    made = parts(recipe(**given), receiving, giving)  # since writing used up the first ones
    made.parts.load_state_dict(load_file(root / "gate.safetensors"))
    return made, root / "graft"


def loaded(path: Path) -> GraftForCausalLM:
    """The graft in float32, by the repository's own class."""
    return GraftForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def padded(rows: list[list[int]], side: str = "left", filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [batch, tokens] of ragged rows; `filler` is the pads' id."""
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        pads, ones = [filler] * (width - len(row)), [1] * len(row)
        ids.append([*pads, *row] if side == "left" else [*row, *pads])
        mask.append([0] * len(pads) + ones if side == "left" else ones + [0] * len(pads))
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def logits(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """[batch, tokens, vocabulary], by a pass without a cache."""
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def assert_padding_changes_no_logit(model: PreTrainedModel, rows: list[list[int]], side: str) -> None:
    """Each of the rows, padded on that side to the longest, is read as it is alone."""
    ids, mask = padded(rows, side, filler=40)
    found = logits(model, ids, mask)
    for row, plain in enumerate(rows):
        alone = logits(model, torch.tensor([plain]))[0]
        torch.testing.assert_close(found[row][mask[row].bool()], alone, atol=1e-4, rtol=1e-4)
