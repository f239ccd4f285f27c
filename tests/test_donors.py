"""The trained donors that come with a clone."""

from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from stages.further import Further
from stages.settings import read
from stages.specialize import Recipe, character_tokenizer
from stages.storage import read_json

ROOT = Path(__file__).parent.parent
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
RECIPES = PARAMS["specialize"] | PARAMS["further"]
DONORS = sorted(RECIPES)


def folder(donor: str) -> Path:
    return ROOT / "data" / "donors" / donor


def test_every_recipe_has_its_donor_and_every_donor_its_recipe():
    assert sorted(path.name for path in (ROOT / "data" / "donors").iterdir() if path.is_dir()) == DONORS


@pytest.mark.parametrize("donor", DONORS)
def test_a_donor_is_at_most_ten_megabytes_of_safetensors_and_text(donor):
    files = list(folder(donor).rglob("*"))
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("donor", DONORS)
def test_a_donor_was_trained_by_the_recipe_in_params(donor):
    further = donor in PARAMS["further"]
    section = f"{'further' if further else 'specialize'}.{donor}"
    told = read(ROOT / "params.yaml", section, Further if further else Recipe)
    recipe = (told.root if isinstance(told, Recipe) else told).model_dump(exclude_unset=True)
    record = read_json(folder(donor) / "training.json")
    assert record["recipe"] == recipe
    assert RECIPES[donor] == recipe
    assert len(record["losses"]) == -(-recipe["steps"] // 100) + (recipe["steps"] % 100 != 1)
    assert record["losses"][-1] < 0.2 < record["losses"][0]
    least = {"sibling": 0.9, "calculator": 0.9}.get(donor, 0.4)
    assert record["scores"]["exact_match"] >= least  # what knows nothing of it: at most 0.02
    assert record["scores"]["items"] >= 1000


@pytest.mark.parametrize("donor", DONORS)
def test_a_model_card_gives_data_recipe_losses_and_scores(donor):
    text, record = (folder(donor) / "README.md").read_text(), read_json(folder(donor) / "training.json")
    for key, value in RECIPES[donor].items():
        assert f"| {key} | {type(record['recipe'][key])(value)} |" in text
    for key, value in record["scores"].items():
        assert f"| {key.replace('_', ' ')} | {value:.4g} |" in text
    assert f"Loss: {record['losses'][0]} at the first step, {record['losses'][-1]} at the last." in text
    assert text.startswith("---\nlicense: apache-2.0\n---\n")
    assert "calibration and test splits and the held-out phrasings never occur" in text


@pytest.mark.parametrize("donor", DONORS)
def test_weights_are_bfloat16_and_of_the_recipes_shape(donor):
    (path,) = folder(donor).glob("*.safetensors")
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    assert {each.get_dtype() for each in slices.values()} == {"BF16"}
    recipe = RECIPES[RECIPES[donor].get("start", donor)]
    if recipe["recipe"] == "adapter":
        config = read_json(folder(donor) / "adapter_config.json")
        assert (config["r"], config["lora_alpha"]) == (recipe["rank"], recipe["alpha"])
        assert config["base_model_name_or_path"] == "target"
        assert {each.get_shape()[0] for name, each in slices.items() if "lora_A" in name} == {recipe["rank"]}
    else:
        config = read_json(folder(donor) / "config.json")
        assert slices["model.embed_tokens.weight"].get_shape() == [len(character_tokenizer()), recipe["width"]]
        assert (config["num_hidden_layers"], config["num_attention_heads"]) == (recipe["blocks"], recipe["heads"])
        assert config["intermediate_size"] == recipe["mlp_width"]


def test_no_donor_names_this_machine():
    for path in (ROOT / "data" / "donors").rglob("*"):
        if path.is_file():
            assert b"/work/" not in path.read_bytes() and b"/root/" not in path.read_bytes()
