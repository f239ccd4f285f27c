"""Captured states of tiny models on the same few prompts and texts."""

import json
from pathlib import Path

from stages.activations import Activations
from stages.anatomy.names import matching
from stages.anatomy.sites import sites_of
from stages.capture import Capture, capture, texts_of
from tests.families import tiny, tokenizer

SETTINGS = Capture(prompts=20, texts=4)


NARROW = {"hidden_size": 48, "num_hidden_layers": 3}
MODELS = {
    "target": tiny("llama"),
    "twin": tiny("llama"),
    "other": tiny("llama", seed=1),
    "taught": tiny("llama"),
    "wide": tiny("qwen2", **NARROW),
    "coarse": tiny("llama"),
    "less": tiny("llama"),
}
MODELS["taught"].get_submodule("model.layers.1.mlp.up_proj").weight.mul_(1.5)
ANSWERS = {f"c{i}": len(f"{i * 37} + {i} =") for i in range(20)}


def captures(root: Path) -> dict[str, Activations]:
    """Captures by name: the target, its twin, another model, one of which one matrix was changed, a wider one, one with
    another tokenizer, one of fewer prompts."""
    prompts = [{"id": f"c{i}", "prompt": f"{i * 37} + {i} =", "answer": f" {i * 38}"} for i in range(20)]
    texts = [{"id": f"t{i}", "text": f"Text number {i * i} is here to be read and kept."} for i in range(4)]
    for name, rows in (("train", prompts), ("text", texts), ("less", prompts[:9])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, model in MODELS.items():
        pattern = r"\d|[^\d]{1,3}" if name == "coarse" else r"[\s\S]"
        told = root / ("less.jsonl" if name == "less" else "train.jsonl")
        read = texts_of(tokenizer(pattern), SETTINGS, told, root / "text.jsonl")
        capture(model, read, matching(SETTINGS.sites, sites_of(model)), root / f"{name}.h5")
    return {name: Activations(root / f"{name}.h5") for name in MODELS}
