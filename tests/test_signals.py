"""Signals of tiny grafts, against what their parts say by themselves."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from stages import signals as stage
from stages.anatomy.gating import gated, opening
from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.maths.disagreement import jensen_shannon
from stages.meaning import agreement, normalised
from stages.signals import Places, Signals, signals
from tests.grafts import built, characters, loaded, logits, padded, target

ROWS = [[5, 9, 40, 41], [7, 8, 9, 10, 11, 12]]
SETTINGS = Signals(items=3, calibration=1, questions=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    receiving, giving = target(root), target(root, seed=5)
    grafts = {
        name: built(root / name, receiving, giving, **given)
        for name, given in {
            "token": {"gate": "token"},
            "channel": {"gate": "channel"},
            "closed": {"gate": "closed"},
            "identity": {"gate": "identity"},
        }.items()
    }
    grafts["characters"] = built(root / "characters_graft", receiving, characters(root), bridge="linear", mix="add")
    return {"target": receiving, "donor": giving, "characters": root / "characters"} | {
        f"{name}_graft": path for name, (_, path) in grafts.items()
    }


def prompts(root):
    capability = [{"prompt": f"What is {i} + 30? Answer:", "answer": f" {30 + i}."} for i in range(6)]
    for split in ("test", "calibration"):
        rows = [{"id": f"{split}-{i}"} | row for i, row in enumerate(capability)]
        path = root / "capability" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "retention").mkdir()
    rows = [{"id": f"q{i}", "question": f"Which is {i}?", "choices": ["a", "b"], "answer": 0} for i in range(4)]
    (root / "retention" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def evaluated(answered: str | None = " 12.") -> pd.DataFrame:
    rows = [
        {
            "task": "capability",
            "id": f"{split}-{i}",
            "group": "addition",
            "digits": 1,
            "split": split,
            "answered": answered,
        }
        for split in ("test", "calibration")
        for i in range(6)
    ]
    rows += [
        {
            "task": "retention",
            "id": f"q{i}",
            "group": "x",
            "digits": None,
            "split": "test",
            "answered": answered and "tea",
        }
        for i in range(4)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def made(models, asked):
    places = Places(models["token_graft"], models["target"], models["donor"])
    return signals(places, evaluated(), asked, SETTINGS)


def test_a_row_an_item_of_each_kind(made):
    assert made.groupby(["task", "split"]).size().to_dict() == {
        ("capability", "calibration"): 1, ("capability", "test"): 3, ("retention", "test"): 2,
    }  # fmt: skip
    assert made[["gate", "divergence", "shift"]].gt(0).all().all()
    assert made.gate.lt(1).all()
    assert made.agreement_of_samples.isna().all()


def test_figures_are_the_means_over_the_places_that_decide_the_answer(made, models, asked):
    """By hand, item by item, without batches."""
    graft, own, donor = loaded(models["token_graft"]), load(models["target"]), load(models["donor"])
    from tests.grafts import bpe

    row = made[(made.task == "capability") & (made.split == "test")].iloc[0]
    number = row.id.split("-")[1]
    prompt = f"What is {number} + 30? Answer:"
    ids = torch.tensor([bpe()(prompt + " 12.").input_ids[:-1]])
    first = len(bpe()(prompt).input_ids) - 1
    assert ids.shape[1] > first + 1
    with opening(graft) as last:
        ours = logits(graft, ids)[0, first:]
        amount = last()[0, first:, 0]
    theirs, others = (logits(model, ids)[0, first:] for model in (own, donor))
    expected = [amount.mean(), jensen_shannon(others, theirs).mean(), jensen_shannon(ours, theirs).mean()]
    np.testing.assert_allclose(row[["gate", "divergence", "shift"]].astype(float), expected, atol=2e-5)


def test_without_an_answer_the_prompts_end_is_read(models, asked):
    places = Places(models["token_graft"], models["target"], models["donor"])
    found = signals(places, evaluated(None), asked, SETTINGS)
    assert found.gate.notna().all()
    assert found.equals(signals(places, evaluated().drop(columns="answered"), asked, SETTINGS))


def test_the_budget_changes_no_figure(made, models, asked):
    places = Places(models["token_graft"], models["target"], models["donor"])
    found = signals(places, evaluated(), asked, SETTINGS.model_copy(update={"budget": 4096}))
    np.testing.assert_allclose(made[["gate", "shift"]], found[["gate", "shift"]], atol=2e-5)


def test_another_tokenizer_leaves_the_divergence_out(models, asked):
    places = Places(models["characters_graft"], models["target"], models["characters"])
    found = signals(places, evaluated(), asked, SETTINGS)
    assert found.divergence.isna().all()
    assert found.gate.notna().all()


def test_a_closed_gate_is_zero_and_moves_nothing(models, asked):
    found = signals(Places(models["closed_graft"], models["target"], models["donor"]), evaluated(), asked, SETTINGS)
    assert (found[["gate", "shift"]] == 0).all().all()
    assert (found.divergence > 0).all()


def test_a_model_without_parts_has_no_gate(models, asked):
    found = signals(Places(models["donor"], models["target"], models["donor"]), evaluated(), asked, SETTINGS)
    assert found.gate.isna().all()
    np.testing.assert_array_equal(found["shift"], found.divergence)


@pytest.mark.parametrize(("kind", "amount"), [("token", None), ("channel", None), ("identity", 1.0), ("closed", 0.0)])
def test_a_gate_tells_its_mean_over_channels_and_the_model_is_as_before(models, kind, amount):
    graft = loaded(models[f"{kind}_graft"])
    ids, _ = padded(ROWS, side="right")
    before, (part,) = logits(graft, ids), gated(graft).values()
    kept = []
    handle = part.gate.register_forward_hook(lambda m, given, out: kept.append(out))
    with opening(graft) as last:
        logits(graft, ids)
        found = last()
    handle.remove()
    if amount is None:
        torch.testing.assert_close(found[..., 0], kept[0].mean(-1))
    else:
        assert found.unique().tolist() == [amount]
    assert not part._forward_hooks
    assert not part.gate._forward_hooks
    assert torch.equal(logits(graft, ids), before)


def test_samples_are_drawn_alike_each_time_and_only_for_free_answers(models, asked):
    places = Places(models["token_graft"], models["target"], models["donor"])
    few = Signals(items=2, questions=1, samples=3, tokens=2)
    state = torch.random.get_rng_state()
    one, two = (signals(places, evaluated(), asked, few) for _ in range(2))
    pd.testing.assert_frame_equal(one, two)
    assert one.agreement_of_samples.notna().tolist() == (one.task == "capability").tolist()
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (" 12.", "12\nQuestion: more", True),
        ("The  Nile", "nile!", True),
        ("1,200 m", "1200 m", True),
        ("-3", "3", False),
        ("0.5", "05", False),
        ("", "12", False),
    ],
)
def test_answers_that_say_the_same_are_one(one, other, same):
    assert (normalised(one) == normalised(other)) is same


def test_agreement_is_the_share_that_says_the_same():
    assert agreement(" 12.", ["12", "12.\n", "13", "one"]) == 0.5


def test_divergence_is_symmetric_and_bounded():
    one, other = torch.randn(5, 9), torch.randn(5, 9)
    torch.testing.assert_close(jensen_shannon(one, other), jensen_shannon(other, one))
    assert not jensen_shannon(one, one).abs().max() > 1e-12
    apart = jensen_shannon(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    assert apart.item() == pytest.approx(np.log(2))


def test_an_item_without_its_prompt_is_said_in_a_sentence(models, asked):
    rows = evaluated().assign(id=lambda d: "x" + d.id)
    with pytest.raises(BadInput, match="Expected the item 'xtest-"):
        signals(Places(models["token_graft"], models["target"], models["donor"]), rows, asked, SETTINGS)


def test_the_command_writes_the_same_bytes_each_time(models, asked, tmp_path):
    (tmp_path / "params.yaml").write_text("signals: {items: 2, questions: 1}")
    evaluated().to_parquet(tmp_path / "items.parquet")
    for out in ("a", "b"):
        stage.main(models["token_graft"], models["target"], models["donor"], tmp_path / "items.parquet", asked,
                   tmp_path / out, tmp_path / "params.yaml")  # fmt: skip
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
