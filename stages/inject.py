"""A blade and its trained gate in one model directory that anyone can load."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.initialization import no_init_weights

from stages.command import run
from stages.errors import BadInput
from stages.graft.modeling import GraftConfig, GraftForCausalLM
from stages.recipes.blade import BladeRecipe, Parts, parts
from stages.settings import read
from stages.storage import new_directory


def inject(recipe: BladeRecipe, made: Parts, gate: Path, out: Path) -> None:
    """Writes the graft `out`: config, code, bfloat16 safetensors, tokenizer.

    Raises BadInput when the gate was trained for another recipe.
    """
    config = GraftConfig(
        target=_plain(made.target.config),
        donor=_plain(made.donor_config),
        target_blocks=made.target_blocks,
        donor_blocks=made.blade.blocks,
        layer=made.layer,
        gate=recipe.gate,
        bridge=recipe.bridge,
        mix=recipe.mix,
        alpha=recipe.alpha,
        spelled=made.spelled,
        dtype="bfloat16",
        **{name: getattr(made.target.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    with no_init_weights():
        graft = GraftForCausalLM(config)
    graft.target.tie_weights()
    graft.target.load_state_dict(made.target.state_dict())
    graft.blade.load_state_dict(made.blade.state_dict())
    try:
        graft.injection.load_state_dict(load_file(gate))
    except RuntimeError as error:
        raise BadInput(f"{gate} does not hold this recipe's gate and bridge; run `dvc repro` to train them.") from error
    graft.generation_config = made.target.generation_config
    with new_directory(out) as directory:
        graft.to(torch.bfloat16).save_pretrained(directory)
        made.tokenizer.save_pretrained(directory)


def _plain(config) -> dict:
    """A configuration as a dict without traces of where it lay."""
    values = config.to_dict()
    return {
        k: v for k, v in values.items() if k not in ("_name_or_path", "transformers_version", "dtype", "architectures")
    }


def main(variant: str, target: Path, donor: Path, gate: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Build the graft of the variant that params.yaml describes under `inject`."""
    recipe = read(params, f"inject.{variant}", BladeRecipe)
    inject(recipe, parts(recipe, target, donor, torch.bfloat16), gate, out)


if __name__ == "__main__":
    run(main)
