"""A graft as anyone loads and runs it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.inject import inject
from stages.recipes.blade import parts
from stages.storage import read_json
from stages.transplant import main as transplant_main
from tests import grafts
from tests.families import FAMILIES

PROMPTS = ("What is 12 + 30? Answer:", "The sum of 1", "Question: What is 99 minus 1?\nAnswer:")
ROWS = [grafts.bpe()(text).input_ids for text in PROMPTS]
GREEDY = {"do_sample": False, "max_new_tokens": 7, "pad_token_id": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("grafts")


@pytest.fixture(scope="module")
def family_graft(root):
    """For a family: a graft whose donor is of that family too, made once."""
    made: dict[str, tuple] = {}

    def make(family: str):
        if family not in made:
            giving = grafts.target(root, family, seed=1)
            _, path = grafts.built(root / f"graft_{family}", grafts.target(root, family), giving)
            made[family] = (grafts.loaded(path), path)
        return made[family]

    return make


@pytest.fixture(scope="module")
def spelt(root):
    """A graft whose donor reads characters."""
    given = {"bridge": "linear", "mix": "add"}
    return grafts.loaded(grafts.built(root / "spelt", grafts.target(root), grafts.characters(root), **given)[1])


@torch.no_grad()
def logits(model, ids, mask=None, **kwargs) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False, **kwargs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_gate_gives_the_targets_logits_bit_for_bit(tmp_path, family):
    receiving = grafts.target(tmp_path, family)
    _, path = grafts.built(tmp_path / "x", receiving, grafts.target(tmp_path, family, seed=1), gate="closed")
    ids, mask = grafts.padded(ROWS)
    graft, plain = grafts.loaded(path), load(receiving)
    assert torch.equal(logits(graft, torch.tensor(ROWS[:1])), logits(plain, torch.tensor(ROWS[:1])))
    generated = [model.generate(input_ids=ids, attention_mask=mask, **GREEDY) for model in (graft, plain)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_identical_donor_under_an_open_gate_changes_no_logit(tmp_path, family):
    receiving = grafts.target(tmp_path, family)
    _, path = grafts.built(tmp_path / "x", receiving, receiving, gate="identity", layer=2, donor_layer=2)
    ids = torch.tensor(ROWS[:1])
    assert torch.allclose(logits(grafts.loaded(path), ids), logits(load(receiving), ids), atol=1e-5, rtol=1e-5)


SEVERAL = {"layer": [3, 0, 2], "donor_layer": [3, 0, 2], "alpha": "learned"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_blade_of_the_target_itself_at_several_layers_changes_no_logit(tmp_path, family):
    receiving = grafts.target(tmp_path, family)
    _, path = grafts.built(tmp_path / "x", receiving, receiving, **SEVERAL, stirred=False)
    ids, graft = torch.tensor(ROWS[:1]), grafts.loaded(path)
    with torch.no_grad():
        for part in graft.parts:
            part.gate.read.bias += (
                40  # wide open, so that each state is the donor's, which the next layer's starts from
            )
    assert torch.allclose(logits(graft, ids), logits(load(receiving), ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_blade_at_several_layers_generates_with_a_cache_as_without(tmp_path, family):
    giving = grafts.target(tmp_path, family, seed=1)
    graft = grafts.loaded(grafts.built(tmp_path / "x", grafts.target(tmp_path, family), giving, **SEVERAL)[1])
    ids, mask = grafts.padded(ROWS)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **GREEDY)
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY))
    assert len(graft.donors) == 1
    told = logits(graft, torch.tensor(ROWS[:1]))
    for part in graft.parts:  # each has a say
        before = part.alpha.data.clone()
        part.alpha.data.fill_(-1e6)
        assert not torch.allclose(logits(graft, torch.tensor(ROWS[:1])), told, atol=1e-3)
        part.alpha.data.copy_(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_gives_the_tokens_that_it_gives_without(family_graft, family):
    graft, _ = family_graft(family)
    ids, mask = grafts.padded(ROWS)
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **GREEDY)
    assert cached.shape[1] > ids.shape[1]
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY))
    for row, plain in enumerate(ROWS):
        alone = graft.generate(input_ids=torch.tensor([plain]), **GREEDY)[0, len(plain) :].tolist()
        batched = cached[row, ids.shape[1] :].tolist()
        width = min(len(alone), len(batched))
        assert batched[:width] == alone[:width]
        assert not any(batched[width:] + alone[width:])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_the_blade_is_heard_at_every_step_of_a_generation(family_graft, family):
    graft, _ = family_graft(family)
    ids = torch.tensor(ROWS[:1])
    whole = logits(graft, ids)[0]
    cache, steps = None, []
    for column in range(ids.shape[1]):
        with torch.no_grad():
            step = graft(input_ids=ids[:, column : column + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        steps.append(step.logits[0, -1])
    assert torch.allclose(torch.stack(steps), whole, atol=1e-4)
    assert not torch.allclose(whole, logits(graft.target, ids)[0], atol=1e-2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "spelt"])
def test_beam_search_gives_the_beams_that_it_gives_without_a_cache(family_graft, spelt, name):
    graft = spelt if name == "spelt" else family_graft(name)[0]
    ids, mask = grafts.padded(ROWS)
    given = {"input_ids": ids, "attention_mask": mask, "num_beams": 3, "num_return_sequences": 2, **GREEDY}
    told = graft.generate(**given, use_cache=True)
    assert len(told) == 6
    assert torch.equal(told, graft.generate(**given, use_cache=False))


def test_a_donor_with_another_tokenizer_generates_with_a_cache_as_without(spelt):
    rows = [*ROWS, [1, 2], [2, *ROWS[1][:3], 2, *ROWS[1][3:], 2]]
    ids, mask = grafts.padded(rows)
    cached = spelt.generate(input_ids=ids, attention_mask=mask, use_cache=True, min_new_tokens=7, **GREEDY)
    plain = spelt.generate(input_ids=ids, attention_mask=mask, use_cache=False, min_new_tokens=7, **GREEDY)
    assert torch.equal(cached, plain)
    for row, alone in enumerate(rows):
        told = spelt.generate(input_ids=torch.tensor([alone]), min_new_tokens=7, **GREEDY)[0, len(alone) :]
        assert torch.equal(cached[row, ids.shape[1] :], told)


def test_a_donor_with_another_tokenizer_is_heard(spelt):
    ids = torch.tensor(ROWS[:1])
    assert not torch.allclose(logits(spelt, ids), logits(spelt.target, ids), atol=1e-2)


def test_special_tokens_before_any_text_leave_the_targets_logits(spelt):
    ids = torch.tensor([[1, 2, 0, 2]])
    assert torch.equal(logits(spelt, ids), logits(spelt.target, ids))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "mistral", "spelt"])
def test_padding_changes_no_logit(family_graft, spelt, name, side):
    graft = spelt if name == "spelt" else family_graft(name)[0]
    ids, mask = grafts.padded(ROWS, side, filler=40)
    told = logits(graft, ids, mask)
    for row, plain in enumerate(ROWS):
        assert torch.allclose(told[row][mask[row].bool()], logits(graft, torch.tensor([plain]))[0], atol=1e-4)


def test_logits_to_keep_gives_the_last_ones(spelt):
    ids = torch.tensor(ROWS[:1])
    assert torch.allclose(logits(spelt, ids, logits_to_keep=3), logits(spelt, ids)[:, -3:], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_donor_ends_with_the_block_that_is_used(family_graft, family):
    graft, path = family_graft(family)
    blocks = graft.config.donors[0]["blocks"]
    inner = graft.donors[0].donor.get_submodule(blocks)
    assert len(inner) == 2
    with safe_open(path / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(f"donors.0.donor.{blocks}.")]  # noqa: SIM118
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys() if "spelling" not in name}  # noqa: SIM118
    prefix = f"donors.0.donor.{blocks}."
    assert {int(name.removeprefix(prefix).split(".")[0]) for name in names} == {0, 1}
    assert dtypes == {"BF16"}


def test_hooks_are_gone_after_every_pass_and_after_a_failing_one(spelt):
    logits(spelt, torch.tensor(ROWS[:1]))
    with pytest.raises(IndexError):
        logits(spelt, torch.tensor([[10**6]]))
    assert not any(module._forward_hooks for module in spelt.modules())


def test_what_a_graft_cannot_read_is_refused_in_one_sentence(spelt, family_graft):
    ids = torch.tensor(ROWS[:1])
    with pytest.raises(ValueError, match="pass input_ids, not inputs_embeds"):
        spelt(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(ValueError, match=r"\[batch, tokens\], got 4 dimensions"):
        spelt(input_ids=ids, attention_mask=torch.ones(1, 1, 2, 2))
    with torch.no_grad():
        foreign = spelt.target(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="Expected the cache that this graft returned"):
        spelt(input_ids=ids, past_key_values=foreign, use_cache=True)


def test_a_target_whose_block_never_runs_is_an_error(spelt):
    broken = copy.deepcopy(spelt)
    broken.target.model.config.num_hidden_layers = 1
    with pytest.raises(RuntimeError, match="model.layers.2 of the target ran 0 times"):
        logits(broken, torch.tensor(ROWS[:1]))


def test_a_gate_of_another_recipe_is_refused(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.target(tmp_path, seed=1)
    grafts.built(tmp_path / "x", receiving, giving, gate="channel")
    recipe = grafts.recipe(gate="token")
    with pytest.raises(BadInput, match="does not hold this recipe's gate and bridge"):
        inject(parts(recipe, receiving, giving), tmp_path / "x" / "gate.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_parts_give_the_same_bytes(tmp_path):
    receiving, giving = grafts.target(tmp_path), grafts.characters(tmp_path)
    given = {"bridge": "linear", "mix": "add", "stirred": False}
    one, other = (grafts.built(tmp_path / name, receiving, giving, **given)[1] for name in ("one", "other"))
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    assert all(p.read_bytes() == (other / p.name).read_bytes() for p in one.iterdir())
    assert str(tmp_path) not in (one / "config.json").read_text()


def test_the_code_in_a_graft_is_the_code_of_the_repository(family_graft):
    _, path = family_graft("llama")
    shipped = {p.name for p in path.glob("*.py")}
    source = Path(__file__).parents[2] / "stages" / "graft"
    assert {"blade.py", "bridge.py", "call.py", "donor.py", "gate.py", "heard.py", "modeling.py"} <= shipped
    assert all((path / name).read_bytes() == (source / name).read_bytes() for name in shipped)
    assert read_json(path / "config.json")["auto_map"]["AutoModelForCausalLM"] == "modeling.GraftForCausalLM"


ELSEWHERE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
told = {}
for path, own in json.load(open("paths.json")):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=own).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = torch.tensor([tokenizer("What is 12 + 30? Answer:").input_ids])
    told[path] = model(input_ids=ids).logits.detach()
    told[path + " generated"] = model.generate(input_ids=ids, do_sample=False, max_new_tokens=5)
assert not any(name == "stages" or name.startswith("stages.") for name in sys.modules)
torch.save(told, "told.pt")
"""


def test_grafts_load_where_there_is_no_repository(tmp_path, root, family_graft, spelt):
    families = ["llama", "gpt2", "gpt_neox", "phi3", "opt"]
    own = {family_graft(family)[1]: family_graft(family)[0] for family in families} | {root / "spelt" / "graft": spelt}
    section = "transplant: {w: {donor: d, select: modules, modules: [layers.0, layers.1], strength: 0.5}}"
    (tmp_path / "params.yaml").write_text(section)
    weights = tmp_path / "weights"
    receiving, giving = grafts.target(root), grafts.target(root, seed=1)
    none = tmp_path / "none"
    transplant_main("w", receiving, giving, none, weights, tmp_path / "w.json", none, none, tmp_path / "params.yaml")
    assert not list(weights.glob("*.py"))
    away = tmp_path / "away"
    away.mkdir()
    paths = [[str(path), True] for path in own] + [[str(weights), False]]
    (away / "paths.json").write_text(json.dumps(paths))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(away / "hf"), "HF_MODULES_CACHE": str(away / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = torch.load(away / "told.pt")
    ids = torch.tensor(ROWS[:1])
    for path, graft in [*own.items(), (weights, load(weights))]:
        assert torch.equal(told[str(path)], graft(input_ids=ids).logits)
        expected = graft.generate(input_ids=ids, do_sample=False, max_new_tokens=5)
        assert torch.equal(told[f"{path} generated"], expected)
