"""A debate of equal views is the model; of others it is its formula, with a cache as without, in any batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.anatomy.encoding import encode
from stages.anatomy.head import logits_at
from stages.anatomy.hooks import replacing
from stages.anatomy.likelihood import score
from stages.anatomy.loading import load
from stages.debate import debating
from stages.graft.debate import Reconcile
from stages.recipes.debate import DebateRecipe
from tests import grafts
from tests.families import FAMILIES, MIXTURES, loglikelihoods, tiny, token_ids
from tests.grafts import logits

ROWS = [grafts.bpe()(text).input_ids for text in grafts.SENTENCES[:3]]
VIEWS = ({}, {"noise": 0.3, "layer": 1, "seed": 3}, {"skip": [2], "temperature": 1.4}, {"noise": 0.2, "layer": 2})
LESSONS = {"steps": 1, "batch": 1, "learning_rate": 0.1, "divergence": 1.0}


def recipe(views=VIEWS, reconcile: str = "entropy") -> DebateRecipe:
    given = {"views": list(views), "reconcile": reconcile} | ({"training": LESSONS} if reconcile == "gate" else {})
    return DebateRecipe.model_validate(given)


def debate(family: str = "llama", views=VIEWS, reconcile: str = "entropy") -> Any:
    """A debate of a tiny model; its gate is drawn."""
    made = debating(recipe(views, reconcile), tiny(family, vocab_size=grafts.VOCABULARY))
    with torch.no_grad():
        for number, parameter in enumerate(made.reconcile.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return made


@pytest.mark.parametrize("reconcile", ["average", "entropy", "maximum", "gate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_views_are_the_model_itself(family, reconcile):
    model, ids = debate(family, [{}] * 3, reconcile), torch.tensor(ROWS[:1])
    same = model.target(input_ids=ids.repeat(3, 1), use_cache=False).logits[:1]
    if family not in MIXTURES:  # whose experts multiply the tokens of all rows at once, each rounded by its place
        assert torch.equal(logits(model, ids), same)
    torch.testing.assert_close(logits(model, ids), logits(model.target, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_cache_and_in_any_batch_it_says_the_same(family):
    model = debate(family)
    ids, mask = grafts.padded(ROWS)
    greedy = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
    cached = model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **greedy)
    assert torch.equal(cached, model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **greedy))
    for side in ("left", "right"):
        grafts.assert_padding_changes_no_logit(model, ROWS, side)
    ids = torch.tensor(ROWS[:1])
    assert not torch.allclose(logits(model, ids), logits(model.target, ids), atol=1e-2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_views_are_what_plain_passes_with_hooks_say():
    model, ids = debate(reconcile="average"), torch.tensor(ROWS[:1])
    target = model.target
    entered = {}

    def disturbed(number: int, state: torch.Tensor) -> torch.Tensor:
        view = model.config.views[number]
        return model.noises[number].disturb(state, view["noise"], torch.arange(state.shape[1])[None])

    changes = [
        {"layers.0": lambda s: s},
        {"layers.1": lambda s: disturbed(1, s)},
        {"layers.1": lambda s: entered.setdefault("state", s), "layers.2": lambda s: entered["state"]},
        {"layers.2": lambda s: disturbed(3, s)},
    ]
    logprobs = []
    for view, change in zip(model.config.views, changes, strict=True):
        with replacing(target, change):
            logprobs.append((logits(target, ids) / view["temperature"]).log_softmax(-1))
    expected = torch.stack(logprobs).mean(0).log_softmax(-1)
    torch.testing.assert_close(logits(model, ids).log_softmax(-1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reconcile", ["average", "maximum", "entropy", "gate"])
def test_the_reconciled_prediction_is_its_formula(reconcile):
    made = debate(reconcile=reconcile).reconcile
    given = torch.randn(2, 4, 5, 30, generator=torch.Generator().manual_seed(1))
    p = (given / torch.tensor([1.0, 1.0, 1.4, 1.0])[:, None, None]).softmax(-1)
    entropy, surest = -(p * p.log()).sum(-1), p.max(-1).values
    weights = {
        "average": torch.ones(2, 4, 5),
        "maximum": surest,
        "entropy": (-entropy).exp(),
    }.get(reconcile)
    if weights is None:
        read = torch.cat([entropy / torch.tensor(30.0).log(), surest], dim=1)
        assert made.gate is not None
        scores = torch.einsum("wr,brt->bwt", made.gate.weight, read) + made.gate.bias[:, None]
        weights = scores.exp()
    weights = weights / weights.sum(1, keepdim=True)
    expected = (weights[..., None] * p.log()).sum(1).softmax(-1)
    torch.testing.assert_close(made(given).softmax(-1), expected, atol=1e-5, rtol=1e-4)


def test_views_of_temperature_alone_never_change_the_likeliest_token():
    model, ids = debate(views=[{"temperature": t} for t in (0.5, 1.0, 2.0)]), torch.tensor(ROWS[:1])
    told, plain = logits(model, ids), logits(model.target, ids)
    assert torch.equal(told.argmax(-1), plain.argmax(-1))
    assert not torch.allclose(told.softmax(-1), plain.softmax(-1), atol=1e-2)


def test_beams_and_samples_of_several_texts_keep_their_views_together():
    model = debate()
    ids, mask = grafts.padded(ROWS)
    beams = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    given = {"input_ids": ids, "attention_mask": mask, **beams}
    assert torch.equal(model.generate(**given), model.generate(**given, use_cache=False))
    cache = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3, 5]))
    step, longer = torch.full((3, 1), 9), torch.cat([mask, mask[:, :1] | 1], dim=1)
    on = model(input_ids=step, attention_mask=longer, past_key_values=cache, use_cache=True).logits
    whole = logits(model, torch.cat([ids, step], dim=1), longer)
    torch.testing.assert_close(on[:, -1], whole[[0, 1, 2], -1], atol=1e-4, rtol=1e-4)


def test_judges_that_pick_positions_at_the_head_find_its_own_predictions():
    model, ids = debate(), token_ids(2, 9)
    row, column = torch.tensor([0, 1, 1]), torch.tensor([3, 2, 8])
    torch.testing.assert_close(
        logits_at(model, ids, row, column), logits(model, ids)[row, column], atol=1e-4, rtol=1e-4
    )
    pairs = [(f"What is {a} + 30? Answer:", f" {a + 30}.") for a in (1, 12, 99)]
    encoded = encode(grafts.bpe(), pairs)
    told = score(model, encoded, 64).loglikelihood
    torch.testing.assert_close(told.float(), loglikelihoods(model, encoded), atol=1e-4, rtol=1e-4)


def test_labels_give_the_loss_of_the_reconciled_prediction():
    model, ids = debate(), torch.tensor(ROWS[:1])
    told = model(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(told.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(told.loss, expected)


def test_what_it_cannot_do_is_refused():
    model, ids = debate(), torch.tensor(ROWS[:1])
    with pytest.raises(ValueError, match="average, entropy, maximum, gate, got 'vote'"):
        Reconcile("vote", [1.0])
    with pytest.raises(ValueError, match="a cache|the cache that this model returned"):
        model(input_ids=ids, past_key_values=model.target(input_ids=ids, use_cache=True).past_key_values)
    with pytest.raises(ValueError, match="Expected input_ids or inputs_embeds"):
        model(attention_mask=torch.ones(1, 2))
    with pytest.raises(IndexError):
        logits(model, torch.tensor([[10**6]]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


ELSEWHERE = """
import json, sys, torch
from transformers import AutoModelForCausalLM
told = {}
for path in json.load(open("paths.json")):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=True).eval()
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    told[path] = model(input_ids=ids).logits.detach(), model.generate(input_ids=ids, do_sample=False, max_new_tokens=5)
assert not any(name == "stages" or name.startswith("stages.") for name in sys.modules)
torch.save(told, "told.pt")
"""


def test_debates_load_where_there_is_no_repository(tmp_path):
    made: dict[str, Any] = {}
    for family, reconcile in (("llama", "gate"), ("gemma2", "entropy")):
        path = tmp_path / family
        debate(family, reconcile=reconcile).to(torch.bfloat16).save_pretrained(path)
        made[str(path)] = load(path)
    (tmp_path / "paths.json").write_text(json.dumps(list(made)))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "m"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    for path, (told, said) in torch.load(tmp_path / "told.pt").items():
        torch.testing.assert_close(told, logits(made[path], ids), atol=1e-5, rtol=1e-5)
        assert torch.equal(said, made[path].generate(input_ids=ids, do_sample=False, max_new_tokens=5))
    assert Path(next(iter(made)), "debate.py").is_file()
