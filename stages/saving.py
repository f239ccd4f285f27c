"""A model in memory as a directory that anyone can load."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Writes bfloat16 safetensors, configuration and tokenizer; the model itself is turned to bfloat16."""
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
