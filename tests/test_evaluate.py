"""The rows that every model is judged by."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.tasks import TaskManager

from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.evaluate import TASKS, Evaluate, Target, evaluate, main, spread
from stages.prompts import Counts, Prompts, prompts
from stages.storage import read_json, read_jsonl, write_jsonl
from stages.tables import read_test
from tests import families, grafts

DATA = Path(__file__).parent.parent / "data" / "tasks"
QUESTIONS = [
    {
        "id": f"q{i}",
        "topic": "town",
        "question": f"What is {i}?",
        "choices": ["tea", "12 and 30", "the old town"],
        "answer": i % 3,
    }
    for i in range(12)
]
TEXTS = [{"id": f"t{i}", "topic": "town", "text": f"{text} It is {i}."} for i, text in enumerate(grafts.SENTENCES)]
COLUMNS = {
    "task": None, "id": None, "group": None, "digits": "Int8", "seen": "boolean", "right": "boolean",
    "tokens": "Int32", "cluster": None, "loglikelihood": "float64", "confidence": "float64", "kl": "float64",
    "agreement": "float64", "role": None, "split": None, "answered": "str", "score": "float64", "choices": "object",
    "entropy": "float64", "margin": "float64", "mean_loglikelihood": "float64",
}  # fmt: skip
NUMBERS = [name for name, dtype in COLUMNS.items() if dtype == "float64"]
TEXT_COLUMNS = [name for name, dtype in COLUMNS.items() if dtype is None]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("evaluate")
    write_jsonl(made / "questions.jsonl", QUESTIONS)
    write_jsonl(made / "text.jsonl", TEXTS)
    settings = Prompts(train=5, calibration=5, test=30, unseen=0.3, kept_texts=1, kept_questions=2)
    prompts(settings, made / "questions.jsonl", made / "text.jsonl", made / "prompts")
    grafts.target(made)
    return made


def judged(root: Path, model: Path, budget: int = 256) -> pd.DataFrame:
    beside = Target(root / "llama_0", root / "target" / "text.safetensors")
    return evaluate(model, root / "prompts", DATA, Evaluate(budget=budget), beside)[0]


@pytest.fixture(scope="module")
def frame(root) -> pd.DataFrame:
    (root / "params.yaml").write_text("evaluate: {budget: 256}")
    main(root / "llama_0", root / "prompts", DATA, root / "target", params=root / "params.yaml")
    return pd.read_parquet(root / "target" / "items.parquet")


def test_there_is_a_row_an_item_in_order_with_the_columns_of_the_contract(root, frame):
    assert list(frame.columns) == list(COLUMNS)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items() if name not in TEXT_COLUMNS} == {
        name: dtype for name, dtype in COLUMNS.items() if dtype is not None
    }
    assert all(isinstance(value, str) for name in TEXT_COLUMNS for value in frame[name])
    assert frame[["task", "id"]].apply(tuple, axis=1).is_monotonic_increasing
    assert frame["task"].value_counts().to_dict() == {"capability": 30, "retention": 10, "text": 3}
    assert not frame.duplicated(["task", "id"]).any()
    files = {"capability": "capability/test", "retention": "retention/questions", "text": "retention/text"}
    for task, name in files.items():
        ids = sorted(row["id"] for row in read_jsonl(root / "prompts" / f"{name}.jsonl"))
        assert frame[frame.task == task]["id"].tolist() == ids


def test_a_row_says_what_its_item_says(root, frame):
    rows = frame[frame.task == "capability"].set_index("id")
    for item in read_jsonl(root / "prompts" / "capability" / "test.jsonl"):
        row = rows.loc[item["id"]]
        assert (row["group"], row["digits"], row["seen"], row["cluster"]) == (
            item["operation"], item["digits"], item["seen"], item["pair"],
        )  # fmt: skip
    assert frame[frame.task != "capability"]["seen"].isna().all()
    assert (frame[frame.task == "text"]["tokens"] > 0).all() and frame[frame.task == "text"]["right"].isna().all()
    assert frame[frame.task != "text"]["right"].notna().all()
    assert frame[frame.task != "text"]["confidence"].between(0, 1).all()


@pytest.fixture(scope="module")
def peer(root) -> dict:
    """The same tasks through lm-eval's own model class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        own = HFLM(pretrained=load(root / "llama_0"), tokenizer=grafts.bpe(), batch_size=4)
        manager = TaskManager(
            include_path=str(DATA), include_defaults=False, metadata={"prompts": str(root / "prompts")}
        )
        done = lm_evaluate(own, manager.load(list(TASKS)), bootstrap_iters=0, log_samples=True)
    return {(task, s["doc"]["id"]): s for task, samples in done["samples"].items() for s in samples}


def test_every_item_scores_as_under_lm_evals_own_model(frame, peer):
    assert len(peer) == len(frame)
    for row in frame.itertuples():
        sample = peer[row.task, row.id]
        answers = sample["filtered_resps"]
        if row.task == "capability":
            assert row.loglikelihood == pytest.approx(float(answers[0][0]), abs=1e-4)
            assert row.right == bool(answers[0][1]) == bool(sample["acc"])
        elif row.task == "retention":
            each = [float(a[0]) for a in answers]
            assert row.loglikelihood == pytest.approx(each[sample["doc"]["answer"]], abs=1e-4)
            assert row.right == bool(sample["acc"])
            share = np.exp(each) / np.exp(each).sum()
            assert row.confidence == pytest.approx(share.max(), abs=1e-4)
        else:
            assert row.loglikelihood == pytest.approx(float(answers[0]), abs=1e-3)


def test_a_model_s_own_answer_is_the_right_one_where_it_is_right(root, tmp_path):
    model = families.tiny("llama", seed=5, vocab_size=99)
    families.saved(model.to(torch.bfloat16), tmp_path / "model")
    tokenizer, items = families.tokenizer(), read_jsonl(root / "prompts" / "capability" / "test.jsonl")
    before = evaluate(tmp_path / "model", root / "prompts", DATA, Evaluate(budget=256, tasks=("capability",)))[0]
    longest = max(len(tokenizer(row["answer"]).input_ids) for row in items)
    assert all(len(text) <= longest and "." not in text[:-1] for text in before["answered"])
    assert not before["right"].any() and (before["score"] == 0).all()
    told = before.set_index("id")["answered"]
    kept = [row | {"answer": told[row["id"]] if n % 2 else "~~."} for n, row in enumerate(items)]
    write_jsonl(tmp_path / "p" / "capability" / "test.jsonl", kept)
    after = evaluate(tmp_path / "model", tmp_path / "p", DATA, Evaluate(budget=64, tasks=("capability",)))[0]
    answers = after["id"].map({row["id"]: row["answer"] for row in kept})
    assert (after["right"] == (after["answered"] == answers)).all() and after["right"].nunique() == 2
    assert (after["score"] == after["right"].astype(float)).all()
    right = after[after["right"]]
    assert np.allclose(np.exp(right["loglikelihood"]), right["confidence"], atol=1e-5)
    mean = right["loglikelihood"] / right["answered"].map(lambda text: len(tokenizer(text).input_ids))
    assert np.allclose(mean, right["mean_loglikelihood"], atol=1e-5)


def test_calibration_items_stand_beside_the_test_and_change_none_of_it(root, frame, tmp_path):
    (tmp_path / "params.yaml").write_text("evaluate: {budget: 256, calibration: 3}")
    main(root / "llama_0", root / "prompts", DATA, tmp_path / "out", params=tmp_path / "params.yaml")
    made = pd.read_parquet(tmp_path / "out" / "items.parquet")
    more = made[made.split == "calibration"]
    assert more["task"].tolist() == ["capability"] * 3 and more["role"].tolist() == ["capability"] * 3
    assert more["id"].str.startswith("calibration-").all() and more["answered"].notna().all()
    rest = made[made.split == "test"].reset_index(drop=True)
    floats = [*NUMBERS, "choices"]
    pd.testing.assert_frame_equal(rest.drop(columns=floats), frame.drop(columns=floats))
    pd.testing.assert_frame_equal(rest[NUMBERS], frame[NUMBERS], atol=1e-5, rtol=1e-5)
    assert read_json(tmp_path / "out" / "metrics.json")["items"] == {"capability": 30, "retention": 10, "text": 3}
    pd.testing.assert_frame_equal(read_test(tmp_path / "out" / "items.parquet"), rest)


def test_rows_that_say_no_split_are_refused(frame, tmp_path):
    frame.drop(columns="split").to_parquet(tmp_path / "items.parquet")
    with pytest.raises(BadInput, match="Expected rows with a column split at .*, got none; run `dvc repro`"):
        read_test(tmp_path / "items.parquet")


def test_both_outcomes_of_a_question_occur(frame):
    assert frame[frame.task == "retention"]["right"].nunique() == 2


@pytest.mark.parametrize("budget", [1, 4096])
def test_the_budget_changes_no_score(root, frame, budget):
    other = evaluate(root / "llama_0", root / "prompts", DATA, Evaluate(budget=budget))[0]
    floats = [*NUMBERS, "choices"]
    pd.testing.assert_frame_equal(other.drop(columns=floats), frame.drop(columns=floats))
    pd.testing.assert_frame_equal(other[NUMBERS], frame[NUMBERS], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(other["choices"].dropna(), frame["choices"].dropna(), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_right_is_what_greedy_generation_gives(root, tmp_path):
    model = families.tiny("llama", seed=5, vocab_size=99)
    families.saved(model.to(torch.bfloat16), tmp_path / "model")
    model, tokenizer = load(tmp_path / "model"), families.tokenizer()
    items, wanted = [], {}
    for number, row in enumerate(read_jsonl(root / "prompts" / "capability" / "test.jsonl")):
        ids = torch.tensor([tokenizer(row["prompt"]).input_ids])
        told = model.generate(input_ids=ids, do_sample=False, max_new_tokens=2, min_new_tokens=2, eos_token_id=2)[
            0, -2:
        ]
        text = "".join(tokenizer.convert_ids_to_tokens(told.tolist()))
        usable = tokenizer(text).input_ids == told.tolist() and told.min() > 2
        if usable and number % 3:
            row["answer"] = text if number % 3 == 1 else text[0] + "~"
        encoded = tokenizer(row["answer"]).input_ids
        given = {"do_sample": False, "max_new_tokens": len(encoded), "pad_token_id": 0}
        wanted[row["id"]] = model.generate(input_ids=ids, **given)[0, ids.shape[1] :].tolist() == encoded
        items.append(row)
    assert 3 <= sum(wanted.values()) < len(items)
    for name in ("questions", "text"):
        write_jsonl(
            tmp_path / "p" / "retention" / f"{name}.jsonl", read_jsonl(root / "prompts" / "retention" / f"{name}.jsonl")
        )
    write_jsonl(tmp_path / "p" / "capability" / "test.jsonl", items)
    made, _ = evaluate(tmp_path / "model", tmp_path / "p", DATA, Evaluate(budget=256))
    rows = made[made.task == "capability"].set_index("id")
    assert rows["right"].to_dict() == wanted
    right = rows[rows["right"]]
    assert np.allclose(np.exp(right["loglikelihood"]), right["confidence"], atol=1e-5)


def test_the_target_does_not_diverge_from_itself_and_another_does(root, frame, tmp_path):
    assert frame["kl"].isna().all()
    other = grafts.target(tmp_path, seed=1)
    _, closed = grafts.built(tmp_path / "x", root / "llama_0", other, gate="closed")
    same = judged(root, closed)
    text = same[same.task == "text"]
    assert text["kl"].tolist() == [0, 0, 0]
    assert text["agreement"].tolist() == [1, 1, 1]
    told = ["kl", "agreement"]
    pd.testing.assert_frame_equal(same.drop(columns=told), frame.drop(columns=told))
    moved = judged(root, other)
    assert (moved[moved.task == "text"]["kl"] > 0.01).all()
    assert moved[moved.task != "text"]["kl"].isna().all()


def test_divergence_is_that_of_the_distributions_token_by_token(root, frame, tmp_path):
    other = grafts.target(tmp_path, seed=1)
    told = judged(root, other).query("task == 'text'").set_index("id")
    for row in read_jsonl(root / "prompts" / "retention" / "text.jsonl"):
        ids = torch.tensor([[1, *grafts.bpe()(row["text"]).input_ids]])
        p, q = (load(path)(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for path in (root / "llama_0", other))
        assert told.loc[row["id"], "kl"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), abs=1e-4)
        assert told.loc[row["id"], "agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
        assert told.loc[row["id"], "tokens"] == ids.shape[1] - 1


def test_a_model_with_another_tokenizer_has_no_divergence(root, frame, tmp_path):
    told = judged(root, grafts.characters(tmp_path))
    assert told["kl"].isna().all() and told["loglikelihood"].notna().all()


def test_the_stage_writes_rows_and_means_with_the_same_bytes(root, tmp_path, frame):
    again = tmp_path / "again"
    main(root / "llama_0", root / "prompts", DATA, again, params=root / "params.yaml")
    assert sorted(p.name for p in again.iterdir()) == ["items.parquet", "metrics.json", "text.safetensors"]
    assert all(p.read_bytes() == (root / "target" / p.name).read_bytes() for p in again.iterdir())
    made = read_json(again / "metrics.json")
    assert made["items"] == {"capability": 30, "retention": 10, "text": 3}
    assert made["accuracy"]["retention"] == pytest.approx(frame[frame.task == "retention"]["right"].mean(), abs=1e-6)


@pytest.fixture(scope="module")
def wide(root, tmp_path_factory) -> Path:
    """Prompts of two domains more."""
    counts = Counts(train=5, calibration=5, test=24, unseen=0.25)
    settings = Prompts(train=5, calibration=5, test=30, unseen=0.3, kept_texts=1, kept_questions=2,
                       domains=("units", "letters"), domain_items=counts)  # fmt: skip
    made = tmp_path_factory.mktemp("wide")
    prompts(settings, root / "questions.jsonl", root / "text.jsonl", made)
    return made


def test_a_domain_is_a_task_of_its_own_judged_as_the_capability_is(root, wide):
    settings = Evaluate(budget=256, tasks=("letters", "capability", "units"))
    made, states = evaluate(root / "llama_0", wide, DATA, settings)
    assert states == []
    assert {name: str(dtype) for name, dtype in made.dtypes.items() if name not in TEXT_COLUMNS} == {
        name: dtype for name, dtype in COLUMNS.items() if dtype is not None
    }
    assert made["task"].value_counts().to_dict() == {"capability": 30, "letters": 24, "units": 24}
    model, tokenizer = load(root / "llama_0"), grafts.bpe()
    for name in ("letters", "units"):
        rows = made[made.task == name].set_index("id")
        for item in read_jsonl(wide / "domains" / name / "test.jsonl"):
            row = rows.loc[item["id"]]
            assert (row["group"], row["seen"], row["cluster"]) == (item["operation"], item["seen"], item["pair"])
            assert row["digits"] is pd.NA if item["digits"] is None else row["digits"] == item["digits"]
            prompt, answer = (tokenizer(item[key]).input_ids for key in ("prompt", "answer"))
            told = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = told.gather(-1, torch.tensor(answer)[:, None]).sum().item()
            assert row["loglikelihood"] == pytest.approx(expected, abs=1e-4)


def test_a_part_of_the_items_keeps_the_shares_of_the_whole(root, frame, wide):
    beside = Target(root / "llama_0", root / "target" / "text.safetensors")
    settings = Evaluate(budget=256, tasks=("capability", "retention", "text", "letters"), items=8)
    made, _ = evaluate(root / "llama_0", wide, DATA, settings, beside)
    assert made["task"].value_counts().to_dict() == {"retention": 10, "capability": 8, "letters": 8, "text": 3}
    letters = made[made.task == "letters"]
    assert (~letters["seen"]).sum() == 2 and letters["group"].value_counts().to_dict() == dict.fromkeys(
        ("alphabet", "backwards", "letter", "spell"), 2
    )
    kept = made[made.task != "letters"].drop(columns=["kl", "agreement"]).reset_index(drop=True)
    whole = frame.merge(kept[["task", "id"]]).drop(columns=["kl", "agreement"])
    pd.testing.assert_frame_equal(kept, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 50, 100, 299, 300, 999])
def test_parts_are_spread_evenly_over_kinds(count):
    docs = [{"seen": n >= 90, "operation": "abcd"[n % 4], "digits": n // 4 % 3 or None} for n in range(300)]
    picked = spread(docs, count)
    assert picked == sorted(set(picked)) and len(picked) == min(count, 300)
    for key in ("seen", "operation"):
        for value in {doc[key] for doc in docs}:
            share = sum(doc[key] == value for doc in docs) * len(picked) / 300
            strata = 1 if key == "seen" else 2
            assert abs(sum(docs[i][key] == value for i in picked) - share) <= strata


def test_fewer_texts_diverge_as_they_do_among_all(root, frame, tmp_path):
    other = grafts.target(tmp_path, seed=1)
    settings, beside = (
        Evaluate(budget=256, retention_items=2),
        Target(root / "llama_0", root / "target" / "text.safetensors"),
    )
    made, states = evaluate(other, root / "prompts", DATA, settings, beside)
    assert made["task"].value_counts().to_dict() == {"capability": 30, "retention": 2, "text": 2} and len(states) == 2
    whole = judged(root, other).merge(made[["task", "id"]])
    numbers = ["loglikelihood", "confidence", "kl", "agreement"]
    pd.testing.assert_frame_equal(made[numbers], whole[numbers], atol=1e-5, rtol=1e-5)
    (tmp_path / "params.yaml").write_text("survey: {budget: 256, retention_items: 2, tasks: [text]}")
    main(root / "llama_0", root / "prompts", DATA, tmp_path / "few", params=tmp_path / "params.yaml", section="survey")
    again, _ = evaluate(
        other, root / "prompts", DATA, settings, Target(root / "llama_0", tmp_path / "few" / "text.safetensors")
    )
    pd.testing.assert_frame_equal(again, made, atol=1e-5, rtol=1e-5)


def test_a_domain_without_items_is_refused(root):
    with pytest.raises(BadInput, match=r"Expected items at .*domains/units/test.jsonl, but there are none; name units"):
        evaluate(root / "llama_0", root / "prompts", DATA, Evaluate(budget=256, tasks=("units",)))


def test_states_of_other_texts_are_refused(root, frame, tmp_path):
    write_jsonl(tmp_path / "p" / "retention" / "text.jsonl", [{"id": "t", "topic": "town", "text": "Another text."}])
    for name in ("capability/test", "retention/questions"):
        write_jsonl(tmp_path / "p" / f"{name}.jsonl", read_jsonl(root / "prompts" / f"{name}.jsonl"))
    with pytest.raises(BadInput, match="Expected the target's states on these texts, got others"):
        evaluate(root / "llama_0", tmp_path / "p", DATA, Evaluate(budget=256),
                 Target(root / "llama_0", root / "target" / "text.safetensors"))  # fmt: skip


def test_a_target_comes_with_its_evaluation(root, tmp_path):
    with pytest.raises(BadInput, match="or neither"):
        main(root / "llama_0", root / "prompts", DATA, tmp_path / "out", target=root / "llama_0")
