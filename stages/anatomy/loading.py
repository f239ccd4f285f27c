"""A model directory as a causal language model and its tokenizer, from safetensors and nothing else."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from stages.errors import BadInput

transformers_logging.disable_progress_bar()


def check(directory: Path) -> None:
    """Raises BadInput, in one sentence, unless `directory` is a model directory with safetensors weights."""
    if not (directory / "config.json").is_file():
        raise BadInput(
            f"Expected a model directory with config.json at {directory}, got "
            f"{'a directory without one' if directory.is_dir() else 'nothing'}; name one or run `dvc repro` to make it."
        )
    if not list(directory.glob("*.safetensors")):
        raise BadInput(
            f"{directory} has no *.safetensors file; convert its weights (pickled weights are not read), then retry."
        )


def load(directory: Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> PreTrainedModel:
    """The model in evaluation mode on `device` (a GPU when there is one), with frozen weights.

    A graft's own code is run only when the directory holds one that Graftline wrote.
    Raises BadInput when the directory is not a readable model.
    """
    check(directory)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, trust_remote_code=_is_graft(directory)
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(
            f"{directory} does not load as a causal language model: {' '.join(str(error).split())}"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.requires_grad_(False).eval().to(device)


def load_config(directory: Path):
    """The configuration of a model directory, without its weights."""
    check(directory)
    return AutoConfig.from_pretrained(directory, trust_remote_code=_is_graft(directory))


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; must be a fast one, since character offsets are needed."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=_is_graft(directory))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{directory} has no tokenizer that loads: {' '.join(str(error).split())}") from error
    if not tokenizer.is_fast:
        raise BadInput(f"The tokenizer of {directory} gives no character offsets; save its fast version there.")
    return tokenizer


def _is_graft(directory: Path) -> bool:
    """Whether Graftline wrote this directory's code, judged by the code itself and not by what config.json says."""
    shipped = sorted(Path(__file__).parent.parent.glob("graft/*.py"))
    written = {path.name for path in directory.glob("*.py")}
    return (
        bool(written)
        and all((directory / path.name).read_bytes() == path.read_bytes() for path in shipped if path.name in written)
        and written <= {path.name for path in shipped}
    )
