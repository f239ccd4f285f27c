"""A stored blade is its formula in every family, with a cache as without, in any batch, and loads as any graft."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from stages.anatomy.loading import load, load_tokenizer
from stages.assembly import write_graft
from stages.graft.stored import Features, Stored, Vector
from stages.maths.autoencoder import Autoencoder
from stages.recipes.stored import scaling
from tests import grafts
from tests.families import FAMILIES
from tests.grafts import logits

WIDTH, COUNT = 32, 6
ROWS = [grafts.bpe()(text).input_ids for text in grafts.SENTENCES[:3]]


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dictionary() -> Autoencoder:
    return Autoencoder(drawn(0, 9, WIDTH) / 6, drawn(1, 9), drawn(2, 9).abs() / 4, drawn(3, 9, WIDTH), drawn(4, WIDTH))


def part(source: str, gate: str = "identity", alpha: float = 0.7, layer: int = 2) -> tuple[Stored, dict]:
    spec = {"source": source, "gate": gate, "alpha": alpha, "width": WIDTH, "layer": layer}
    spec["count"] = COUNT if source == "features" else 0
    made = Stored(**spec).requires_grad_(False)
    if isinstance(made.source, Vector):
        made.source.vector.copy_(drawn(5, WIDTH))
    else:
        made.source = scaling(dictionary(), [7, 1, 3, 0, 8, 2], 30.0)
    for number, parameter in enumerate(made.gate.parameters()):
        parameter.copy_(drawn(number, *parameter.shape) / 2)
    return made.bfloat16().float(), {"kind": "stored", **spec}


def written(root: Path, family: str, source: str, **given) -> tuple[PreTrainedModel, Any]:
    receiving = grafts.target(root, family)
    target = load(receiving)
    write_graft(target, load_tokenizer(receiving), [], [part(source, **given)], root / "graft")
    return load(receiving), grafts.loaded(root / "graft")


def test_a_vector_is_added_under_its_gate():
    made, h = part("vector", gate="token")[0], drawn(6, 2, 5, WIDTH)
    x = made.source(h)
    assert torch.equal(x[0, 0], x[1, 3])
    torch.testing.assert_close(made(h), h + 0.7 * made.gate(h, x) * x)


def test_features_are_scaled_and_all_else_of_the_state_stays():
    found, chosen, h = dictionary(), [7, 1, 3], drawn(6, 5, WIDTH)
    made = Stored("features", "identity", 1.5, WIDTH, 3)
    made.source = scaling(found, chosen, torch.inf)
    scaled = found.features(h)
    assert (scaled[:, chosen] > 0).any(0).all()
    scaled[:, chosen] *= 2.5
    torch.testing.assert_close(made(h), h - found(h) + scaled @ found.decoder + found.centre)


def test_a_state_longer_than_any_that_features_were_fitted_to_stays_bit_for_bit():
    made, h = part("features")[0], drawn(6, 2, 5, WIDTH)
    h[0, 0] *= 100
    assert torch.equal(made(h)[0, 0], h[0, 0])
    assert not torch.equal(made(h)[1, 0], h[1, 0])


@pytest.mark.parametrize("source", ["vector", "features"])
def test_a_strength_of_nothing_and_a_closed_gate_leave_every_logit(tmp_path, source):
    for given in ({"alpha": 0.0}, {"gate": "closed"}):
        plain, graft = written(tmp_path, "llama", source, **given)
        assert torch.equal(logits(graft, torch.tensor(ROWS[:1])), logits(plain, torch.tensor(ROWS[:1])))


@pytest.mark.parametrize(("family", "source"), [(f, ("vector", "features")[i % 2]) for i, f in enumerate(FAMILIES)])
def test_a_graft_in_memory_reloaded_cached_and_batched_says_the_same(tmp_path, family, source):
    plain, graft = written(tmp_path, family, source, gate="token")
    made, _ = part(source, gate="token")
    block = plain.get_submodule(graft.config.target_blocks)[2]
    ids = torch.tensor(ROWS[:1])

    def inject(module, args, output):
        return (made(output[0]), *output[1:]) if isinstance(output, tuple) else made(output)

    handle = block.register_forward_hook(inject)
    torch.testing.assert_close(logits(graft, ids), logits(plain, ids), atol=1e-5, rtol=1e-5)
    handle.remove()
    assert not torch.allclose(logits(graft, ids), logits(plain, ids), atol=1e-2)
    ids, mask = grafts.padded(ROWS)
    greedy = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "pad_token_id": 0}
    cached = graft.generate(input_ids=ids, attention_mask=mask, use_cache=True, **greedy)
    assert torch.equal(cached, graft.generate(input_ids=ids, attention_mask=mask, use_cache=False, **greedy))
    for side in ("left", "right"):
        grafts.assert_padding_changes_no_logit(graft, ROWS, side)


def test_an_unknown_source_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match="vector or features, got 'table'"):
        Stored("table", "identity", 1.0, WIDTH)


def test_features_begin_as_nothing():
    assert not Features(WIDTH, COUNT)(drawn(0, 3, WIDTH)).any()
