"""Any task of lm-eval's: every kind of request, with examples, chat templates and limits, from data of our own."""

import json
import socket
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lm_eval.evaluator import evaluate as lm_evaluate
from lm_eval.tasks import TaskManager

from stages.anatomy.loading import load
from stages.errors import BadInput
from stages.evaluate import OURS, Evaluate, evaluate, main
from stages.tasks import Benchmark, benchmarks
from tests import families, grafts

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}> {% endif %}"
)
TOWNS = ["tea", "bread", "the old town", "12 and 30"]
DOCS = [
    {"ask": f"What is {n} in the town?", "choices": [TOWNS[n % 4], TOWNS[(n + 1) % 4]], "gold": n % 2,
     "answer": f"{n}", "text": f"The garden of {n} is in the old town. " * (1 + n % 3)}
    for n in range(9)
]  # fmt: skip
ACC = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
EXACT = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
ASKED = {"doc_to_text": "Question: {{ask}}\nAnswer:", "fewshot_split": "train"}
TASKS = {
    "towns": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold",
              "metric_list": [*ACC, {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}], **ASKED},
    "words": {"output_type": "loglikelihood", "doc_to_target": "answer", "metric_list": ACC, **ASKED},
    "pages": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
              "metric_list": [{"metric": "word_perplexity"}]},
    "spoken": {"output_type": "generate_until", "doc_to_target": "answer", "metric_list": EXACT, **ASKED,
               "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 12, "do_sample": False}},
}  # fmt: skip
ROLES = {"towns": "retention", "words": "capability", "pages": "text", "spoken": "capability"}
WAYS = {
    "plain": {},
    "shots": {"few_shot": 2},
    "chat": {"chat_template": True},
    "turns": {"chat_template": True, "turns": True, "few_shot": 2},
    "limited": {"limit": 4},
}
CASES = [(task, way) for task in TASKS for way in WAYS if task != "pages" or way in ("plain", "limited")]


@pytest.fixture(scope="module", autouse=True)
def offline():
    """No test here asks a host."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", lambda *a: (_ for _ in ()).throw(OSError("no network in tests")))
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write(made / "yours", TASKS)
    model = families.tiny("llama", vocab_size=grafts.VOCABULARY, initializer_range=0.5, max_position_embeddings=96)
    grafts.directory(model, grafts.bpe(), made / "model")
    for name, template in (("chat", CHAT), ("bare", None)):
        (made / name).mkdir()
        for path in (made / "model").iterdir():
            (made / name / path.name).write_bytes(path.read_bytes())
        if template:
            (made / name / "chat_template.jinja").write_text(template)
    return made


def write(directory: Path, tasks: dict[str, dict]) -> None:
    """Task YAML files beside their data."""
    directory.mkdir(parents=True)
    files = {}
    for split, docs in (("test", DOCS), ("train", [{**d, "ask": "Which one?", "answer": "this"} for d in DOCS[:4]])):
        files[split] = str(directory / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, given in tasks.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(directory / "cache")}}
        told = {"task": name, "test_split": "test", **data, **given, "metadata": {"version": 1}}
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(told))


def judged(root: Path, wanted: dict[str, dict], model: str = "chat", **given) -> pd.DataFrame:
    """The rows of tasks of one's own beside none of ours but the texts."""
    (root / "retention").mkdir(exist_ok=True)
    (root / "retention" / "text.jsonl").write_text('{"id": "t", "topic": "town", "text": "A café in the old town."}\n')
    settings = {"budget": 64, "tasks": ["text"], "directories": [root / "yours"], "further": wanted} | given
    made, _ = evaluate(root / model, root, Path("data/tasks"), Evaluate.model_validate(settings))
    return made[made.task != "text"]


def peer(root: Path, task: str, way: dict) -> list[dict]:
    """The same through lm-eval's own model class."""
    loaded = TaskManager(include_path=str(root / "yours"), include_defaults=False).load([task])["tasks"]
    loaded[task].set_config(key="num_fewshot", value=way.get("few_shot", 0))
    loaded[task].set_fewshot_seed(1234)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        tokenizer = grafts.bpe().__class__.from_pretrained(root / "chat")
        own = HFLM(pretrained=load(root / "chat"), tokenizer=tokenizer, batch_size=1)
        done = lm_evaluate(own, {"tasks": loaded}, limit=way.get("limit"), bootstrap_iters=0,
                           apply_chat_template=way.get("chat_template", False),
                           fewshot_as_multiturn=way.get("turns", False))  # fmt: skip
    assert done is not None
    return done["samples"][task]


@pytest.mark.parametrize(("task", "way"), CASES)
def test_every_kind_of_request_scores_as_under_lm_evals_own_model(root, task, way):
    how = WAYS[way]
    rows = judged(root, {"mine": {"task": task, "role": ROLES[task], **how}})
    samples = peer(root, task, how)
    assert rows["task"].unique().tolist() == ["mine"] and rows["role"].unique().tolist() == [ROLES[task]]
    assert rows["id"].tolist() == [f"{s['doc_id']:06d}" for s in samples] and len(rows) == how.get("limit", len(DOCS))
    for row, sample in zip(rows.itertuples(), samples, strict=True):
        answers = sample["filtered_resps"]
        if task == "towns":
            assert list(row.choices) == pytest.approx([a[0] for a in answers], abs=1e-4)
            assert row.loglikelihood == pytest.approx(answers[sample["doc"]["gold"]][0], abs=1e-4)
            share = np.exp([a[0] for a in answers]) / sum(np.exp([a[0] for a in answers]))
            assert (row.confidence, row.margin) == pytest.approx((share.max(), share.max() - share.min()), abs=1e-4)
            assert row.entropy == pytest.approx(-(share * np.log(share)).sum(), abs=1e-4)
            assert row.answered == sample["doc"]["choices"][share.argmax()] and row.score == sample["acc"]
        elif task == "words":
            assert row.loglikelihood == pytest.approx(answers[0][0], abs=1e-4)
            assert row.right == bool(answers[0][1]) == bool(row.score)
        elif task == "pages":
            assert row.loglikelihood == pytest.approx(answers[0], abs=1e-3)
            assert row.tokens == len(grafts.bpe()(sample["doc"]["text"]).input_ids) and pd.isna(row.right)
        else:
            assert row.answered == answers[0] and row.score == sample["exact_match"] == float(row.right)
            assert pd.isna(row.loglikelihood)
            assert row.mean_loglikelihood == pytest.approx(plainly(root, sample), abs=1e-4)


def plainly(root: Path, sample: dict) -> float:
    """Nats a token of what the model says, up to the token that completes a stop, by passes of its own."""
    tokenizer, model = grafts.bpe(), load(root / "chat")
    ids, total, count = tokenizer(sample["arguments"][0][0]).input_ids[-(96 - 12) :], 0.0, 0  # what leaves room for 12
    spoken: list[int] = []
    while len(spoken) < 12 and 2 not in spoken and not any(s in tokenizer.decode(spoken) for s in ("e", "\n\n")):
        logprobs = model(input_ids=torch.tensor([ids + spoken])).logits[0, -1].log_softmax(-1)
        spoken.append(int(logprobs.argmax()))
        total, count = total + logprobs.max().item(), count + 1
    return total / count


def test_answers_are_not_all_alike(root):
    """So that the comparisons above compare something."""
    rows = judged(root, {task: {"role": ROLES[task]} for task in TASKS})
    assert rows[rows.task == "towns"]["right"].nunique() == 2
    assert rows[rows.task == "spoken"]["answered"].nunique() > 2
    assert rows["task"].value_counts().to_dict() == dict.fromkeys(TASKS, len(DOCS))


@pytest.mark.parametrize("budget", [1, 4096])
def test_the_budget_changes_no_answer(root, budget):
    wanted = {task: {"role": ROLES[task]} for task in TASKS}
    some, other = (judged(root, wanted, budget=given) for given in (64, budget))
    floats = ["loglikelihood", "confidence", "entropy", "margin", "mean_loglikelihood", "kl", "agreement"]
    exact = [name for name in some if name not in (*floats, "choices")]
    pd.testing.assert_frame_equal(some[exact], other[exact])
    pd.testing.assert_frame_equal(some[floats], other[floats], atol=1e-4, rtol=1e-4)


def test_one_task_is_asked_in_several_ways_under_several_names(root):
    rows = judged(root, {"cold": {"task": "towns"}, "warm": {"task": "towns", "few_shot": 2, "metric": "acc_norm"}})
    cold, warm = (rows[rows.task == name] for name in ("cold", "warm"))
    assert cold["id"].tolist() == warm["id"].tolist()
    assert not np.allclose(cold["loglikelihood"], warm["loglikelihood"])


def test_a_group_is_one_task_whose_parts_are_its_kinds(root, tmp_path):
    both = {name: TASKS["towns"] for name in ("east", "west")}
    write(tmp_path / "yours", both)
    (tmp_path / "yours" / "group.yaml").write_text(yaml.safe_dump({"group": "county", "task": ["east", "west"]}))
    rows = judged(root, {"county": {"limit": 3}}, directories=[tmp_path / "yours"])
    assert rows["group"].value_counts().to_dict() == {"east": 3, "west": 3} and rows["id"].is_unique
    assert rows["task"].unique().tolist() == ["county"]


def test_the_stage_writes_the_same_bytes_twice(root, tmp_path):
    further = {task: {"role": ROLES[task]} for task in TASKS}
    judged(root, {})
    told = {"budget": 64, "tasks": ["text"], "directories": [str(root / "yours")], "further": further}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"evaluate": told}))
    for name in ("one", "two"):
        main(root / "chat", root, Path("data/tasks"), tmp_path / name, params=tmp_path / "params.yaml")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["items.parquet", "metrics.json", "text.safetensors"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert len(pd.read_parquet(tmp_path / "one" / "items.parquet")) == 4 * len(DOCS) + 1


def remade(root: Path, name: str, **changes) -> list[Path]:
    """A directory with a task that differs from ours in what is named."""
    if not (root / name).is_dir():
        write(root / name, {"odd": {**TASKS["spoken"], **changes}})
    return [root / name]


@pytest.mark.parametrize(
    ("wanted", "changes", "message"),
    [
        ({"capability": {}}, {}, "by a name of its own, got 'capability', which is one of ours"),
        ({"x": {"task": "text"}}, {}, "by a name of its own, got 'x'"),
        ({"odd": {"role": "text"}}, {}, "got text for 'odd' \\(generate_until\\); change evaluate.further.odd.role"),
        ({"odd": {"metric": "exact_mach"}}, {}, "did you mean 'exact_match'"),
        ({"odd": {"filter": "loose"}}, {}, "Expected a filter of task 'odd', got 'loose'; "),
        ({"odd": {}}, {"generation_kwargs": {"do_sample": True, "temperature": 0.7}}, "got 'odd', which samples"),
        ({"odd": {}}, {"generation_kwargs": {"num_beams": 4}}, "got 'odd', which sets num_beams"),
        ({"odd": {}}, {"dataset_kwargs": {"data_files": "/nowhere/at.jsonl"}}, "Expected the data of task 'odd' from"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_a_model_loads(tmp_path, wanted, changes, message):
    with pytest.raises(BadInput, match=message):
        benchmarks({name: Benchmark(**each) for name, each in wanted.items()}, remade(tmp_path, "odd", **changes), OURS)


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="Expected a directory of task YAML files at .*/none, but there is none"):
        benchmarks({"a": Benchmark()}, [tmp_path / "none"], OURS)


def test_a_model_without_a_chat_template_is_refused(root):
    with pytest.raises(BadInput, match="Expected a tokenizer with a chat template for 'towns', got one without"):
        judged(root, {"towns": {"chat_template": True}}, model="bare")


def test_a_task_of_the_hub_without_a_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for half a minute
    remade(tmp_path, "hub", dataset_path="graftline/none-such", dataset_kwargs={})
    with pytest.raises(BadInput, match="Expected the data of task 'odd' from its host or the local cache, got") as told:
        benchmarks({"odd": Benchmark(role="capability")}, [tmp_path / "hub"], OURS)
    assert "run once with a network" in str(told.value) and "\n" not in str(told.value)
