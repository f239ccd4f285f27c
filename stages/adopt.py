"""A donor trained here as a model directory like any fetched one: merged, copied, or with its weights drawn anew."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM

from stages.anatomy.loading import check, load, load_tokenizer
from stages.command import run
from stages.errors import BadInput
from stages.saving import save
from stages.settings import Settings, read
from stages.storage import new_directory, write_json


class Adoption(Settings):
    """How a trained donor becomes a model directory."""

    trained: str
    """The donor's name under data/donors."""
    null_seed: int | None = None
    """Draw all weights that were trained anew with this seed: a null donor of the same shape, which has learned
    nothing. Of an adapter these are its factors; each product of theirs stays as long as it was."""


def adopt(adoption: Adoption, trained: Path, target: Path, out: Path) -> None:
    """Writes the donor's model directory `out` in bfloat16.

    An adapter (arXiv 2106.09685) is merged into the target's weights in float32 and rounded once.
    Raises BadInput when `trained` is neither an adapter nor a model directory.
    """
    with new_directory(out) as directory:
        if (trained / "adapter_config.json").is_file():
            if not (trained / "adapter_model.safetensors").is_file():  # PEFT would go on to a pickle
                raise BadInput(f"{trained} has no adapter_model.safetensors; save the adapter as safetensors.")
            adapted = PeftModel.from_pretrained(load(target, device="cpu"), trained)
            if adoption.null_seed is not None:
                _draw(adapted, adoption.null_seed)
            save(adapted.merge_and_unload(), load_tokenizer(target), directory)
        else:
            check(trained)
            for path in sorted(trained.iterdir()):
                if path.suffix in (".json", ".jinja", ".safetensors") and path.name != "training.json":
                    shutil.copyfile(path, directory / path.name)
            if adoption.null_seed is not None:
                torch.manual_seed(adoption.null_seed)
                config = AutoConfig.from_pretrained(trained)
                AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
        write_json(
            directory / "source.json", {"source": f"trained:{adoption.trained}", "null_seed": adoption.null_seed}
        )


def _draw(adapted: torch.nn.Module, seed: int) -> None:
    """Draws the factors of every low-rank change in place."""
    generator = torch.Generator().manual_seed(seed)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            with torch.no_grad():
                for name in module.lora_A:
                    down, up = module.lora_A[name].weight, module.lora_B[name].weight
                    length = (up @ down).norm()
                    for factor in (down, up):
                        factor.copy_(torch.randn(factor.shape, generator=generator))
                    up *= length / (up @ down).norm()


def main(donor: str, trained: Path, target: Path, out: Path, params: Path = Path("params.yaml"),
         section: str = "adopt") -> None:  # fmt: skip
    """Make the donor that params.yaml describes under `adopt`, or in another section of the same form."""
    adopt(read(params, f"{section}.{donor}", Adoption), trained, target, out)


if __name__ == "__main__":
    run(main)
