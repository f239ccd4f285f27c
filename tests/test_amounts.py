"""Gates read token by token: they are the amounts that the parts use, on every family and kind of part."""

from pathlib import Path

import pytest
import torch

from stages.amounts import amounts, spelled
from stages.anatomy.loading import load, load_tokenizer
from stages.assembly import write_graft
from stages.errors import BadInput
from stages.graft.blade import Injection
from stages.graft.condition import Condition
from stages.graft.fusion import Fusion
from stages.graft.gate import KINDS
from stages.graft.shared import Shared
from stages.graft.stored import Stored
from stages.reading import reading
from tests import families, grafts

TEXT = "What is 12 + 30? Answer: 42."


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return grafts.target(root), grafts.target(root, seed=1)


def parts(tmp_path: Path, pair, *made: tuple[torch.nn.Module, dict]) -> tuple:
    """A graft with these parts, and a donor; its tokenizer."""
    receiving, giving = map(load, pair)
    donor = reading(giving, grafts.bpe(), receiving, grafts.bpe(), [1])
    generator = torch.Generator().manual_seed(5)
    for part, _ in made:
        with torch.no_grad():
            for each in part.parameters():
                each.copy_((torch.randn(each.shape, generator=generator) * 0.5).to(torch.bfloat16))
    write_graft(receiving, grafts.bpe(), [donor], made, tmp_path / "graft")
    return load(tmp_path / "graft"), load_tokenizer(tmp_path / "graft")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_token_gates_amount_is_what_it_gives_at_each_token(tmp_path, family):
    receiving, giving = grafts.target(tmp_path, family), grafts.target(tmp_path, family, seed=1)
    _, path = grafts.built(tmp_path, receiving, giving)
    graft, tokenizer = load(path), load_tokenizer(path)
    seen = []
    handle = graft.get_submodule("parts.0.gate").register_forward_hook(lambda _, args, out: seen.append(out[0, :, 0]))
    found = amounts(graft, tokenizer, TEXT)
    handle.remove()
    assert found.parts == ("layers.2 injection",)
    assert torch.equal(found.open[:, 0], seen[0])
    assert 0 < found.open.min() < found.open.max() < 1
    again = grafts.logits(graft, torch.tensor([tokenizer(TEXT).input_ids]))
    assert torch.equal(again, grafts.logits(load(path), torch.tensor([tokenizer(TEXT).input_ids])))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gate_has_an_amount(tmp_path, pair, kind):
    _, path = grafts.built(tmp_path, *pair, gate=kind)
    graft, tokenizer = load(path), load_tokenizer(path)
    found = amounts(graft, tokenizer, TEXT)
    assert found.open.shape == (len(tokenizer(TEXT).input_ids), 1)
    if kind in ("identity", "closed"):
        assert (found.open == float(kind == "identity")).all()
    elif kind not in ("token", "channel"):
        expected = graft.get_submodule("parts.0.gate")(torch.zeros(1, 1, 32), torch.zeros(1, 1, 32)).mean()
        assert torch.allclose(found.open, expected.expand_as(found.open))


def test_a_donor_that_has_not_read_lets_nothing_through(tmp_path, pair):
    _, path = grafts.built(tmp_path, pair[0], grafts.characters(tmp_path), bridge="linear", mix="add", gate="identity")
    graft, tokenizer = load(path), load_tokenizer(path)
    ids = torch.tensor([tokenizer("<s>1 + 2").input_ids])
    part = graft.get_submodule("parts.0")
    known = []
    handle = part.register_forward_hook(lambda _, args, out: known.append(args[2]))
    grafts.logits(graft, ids)
    handle.remove()
    assert known[0] is not None and not known[0].all()
    assert torch.equal(amounts(graft, tokenizer, "<s>1 + 2").open[:, 0], known[0][0].float())


def test_a_condition_that_never_opens_lets_nothing_through(tmp_path, pair):

    shut = Condition(0, 0, 32)
    blade = Injection("token", "identity", "delta", 1.0, 32, 32, 2)
    graft, tokenizer = parts(
        tmp_path, pair, (shut, {"kind": "condition", "donor": 0, "layer": 0, "width": 32}),
        (blade, {"kind": "injection", "gate": "token", "bridge": "identity", "mix": "delta", "alpha": 1.0,
                 "donor_width": 32, "target_width": 32, "layer": 2}),
    )  # fmt: skip
    read = graft.get_submodule("parts.0.read")
    with torch.no_grad():
        read.weight.zero_(), read.bias.fill_(-1.0)
    assert amounts(graft, tokenizer, TEXT).parts == ("layers.2 injection",)  # a condition has no gate of its own
    assert not amounts(graft, tokenizer, TEXT).open.any()
    with torch.no_grad():
        read.bias.fill_(1.0)
    assert (amounts(graft, tokenizer, TEXT).open > 0).all()


def test_blades_under_one_gate_and_members_of_a_fusion_count_one_each(tmp_path, pair):
    source = {"donor": 0, "taken": 0, "bridge": "identity", "donor_width": 32}
    member = {"bridge": "identity", "mix": "delta", "donor_width": 32, "donor": 0, "taken": 0}
    stored = {"source": "vector", "gate": "token", "alpha": 1.0, "width": 32, "layer": 2}
    shared = {"mix": "delta", "alpha": 1.0, "target_width": 32, "layer": 1, "sources": [source, source]}
    fusion = {"layer": 2, "combiner": "softmax", "members": [member, member], "target_width": 32}
    graft, tokenizer = parts(
        tmp_path, pair, (Shared(**shared), {"kind": "shared", **shared}),
        (Fusion(**fusion), {"kind": "fusion", **fusion}), (Stored(**stored), {"kind": "stored", **stored}),
        (Stored(**stored), {"kind": "stored", **stored}),
    )  # fmt: skip
    found = amounts(graft, tokenizer, TEXT)
    assert found.parts == (
        "layers.1 shared 1", "layers.1 shared 2", "layers.2 fusion 1", "layers.2 fusion 2", "layers.2 stored",
        "layers.2 stored (2)",
    )  # fmt: skip
    assert found.open.shape == (len(found.tokens), 6)
    assert (found.open[:, :2].sum(1) < 1).all() and (found.open[:, 2:4].sum(1) < 1).all()
    assert (found.open > 0).all()
    assert "shares" not in vars(graft.get_submodule("parts.1"))


def test_a_graft_of_weights_alone_has_no_gate(pair):
    found = amounts(load(pair[0]), load_tokenizer(pair[0]), TEXT)
    assert found.parts == () and found.open.shape == (len(found.tokens), 0)


@pytest.mark.parametrize("text", ["What is 12 + 30?", "a☃é\u202e 🧮🧮 end ", " \n\tx", "日本語 + 1"])
def test_tokens_make_up_the_text(text):
    for tokenizer in (grafts.bpe(), families.tokenizer()):
        ids, tokens, ends = spelled(tokenizer, text)
        assert "".join(tokens) == text and len(ids) == len(tokens)
        assert ends == [sum(map(len, tokens[: i + 1])) for i in range(len(tokens))]


@pytest.mark.parametrize("text", ["", "12 " * 300])
def test_a_text_that_cannot_be_read_is_refused(pair, text):
    with pytest.raises(BadInput, match="Expected a text of 1 to 256 tokens, got"):
        amounts(load(pair[0]), load_tokenizer(pair[0]), text)
