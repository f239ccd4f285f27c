"""A few prompts and texts as target, donor and graft take them: their answers, and the graft's gates token by token."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.amounts import amounts, spelled
from stages.anatomy.loading import load, load_tokenizer
from stages.answers import answers, begins, mentions
from stages.command import run
from stages.items import PROMPT, TEXT, read_items
from stages.settings import Settings, read
from stages.storage import write_json


class Showcase(Settings):
    """How much is shown, and how long it may be."""

    prompts: int = pydantic.Field(default=2, gt=0)
    """Items of the capability in phrasings that training shows, as many in others, and as many retention questions."""
    texts: int = pydantic.Field(default=1, gt=0)
    """Texts with digits, and as many without."""
    answer_tokens: int = pydantic.Field(default=12, gt=0)
    text_tokens: int = pydantic.Field(default=48, gt=0)
    """A text is shown up to here, by the graft's tokenizer."""


Shown = dict[str, Any]
"""`{kind, prompt, expected}`: what is put to the models, and what is expected, or None for a text."""


def chosen(settings: Showcase, prompts: Path) -> list[Shown]:
    """Items to show, at even distances among those of their kind in the test, so that nobody picks them."""
    asked = read_items(prompts / "capability" / "test.jsonl", PROMPT)
    shown: list[Shown] = []
    for seen in (True, False):
        items = spaced([row for row in asked if bool(row.get("seen", True)) == seen], settings.prompts)
        shown += [{"kind": "capability", "prompt": row["prompt"], "expected": row["answer"].strip()} for row in items]
    for row in spaced(read_items(prompts / "retention" / "questions.jsonl", ("question",)), settings.prompts):
        question, choices, right = row["question"], row["choices"], row["answer"]
        shown.append(
            {"kind": "retention", "prompt": f"Question: {question}\nAnswer:", "expected": choices[right].strip()}
        )
    texts = [row["text"] for row in read_items(prompts / "retention" / "text.jsonl", TEXT)]
    for numbers in (True, False):
        some = [text for text in texts if any(sign.isdigit() for sign in text) == numbers]
        shown += [{"kind": "text", "prompt": text, "expected": None} for text in spaced(some, settings.texts)]
    return shown


def spaced(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` rows at even distances, or all where there are no more."""
    count = min(count, len(rows))
    return [rows[(2 * k + 1) * len(rows) // (2 * count)] for k in range(count)]


def showcase(settings: Showcase, shown: Sequence[Shown], models: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """`{"parts": [names], "texts": [{kind, prompt, expected, tokens, answers, right}]}`.

    `models` gives (model, tokenizer) of target, donor and graft; each is held only while it answers. `tokens` are
    `{text, gates, answer}`, of the prompt and of the graft's own answer to it, where `answer` is true; `gates` has an
    amount for each of the parts. An answer to an item of the capability is right where it begins as expected, to a
    question where it mentions the right choice; texts have neither answers nor right ones. A question's answer is
    free here, so it may be wrong where the evaluation, which compares the choices, finds it right.
    """
    asked = [each["prompt"] for each in shown if each["kind"] != "text"]
    told: dict[str, list[str]] = {}
    read: list[dict[str, Any]] = []
    parts: tuple[str, ...] = ()
    for name in ("target", "donor", "graft"):
        model, tokenizer = models[name]()
        told[name] = answers(model, tokenizer, asked, settings.answer_tokens)
        if name == "graft":
            parts, read = _gates(settings, shown, told[name], model, tokenizer)
        del model
    replies = iter(zip(*(told[name] for name in told), strict=True))
    texts = []
    for each, seen in zip(shown, read, strict=True):
        said = dict.fromkeys(told, None) if each["kind"] == "text" else dict(zip(told, next(replies), strict=True))
        right = {name: None if reply is None else _right(each, reply) for name, reply in said.items()}
        plain = {name: None if reply is None else reply.strip() for name, reply in said.items()}
        texts.append({**each, **seen, "answers": plain, "right": right})
    return {"parts": list(parts), "texts": texts}


def _right(each: Shown, answer: str) -> bool:
    return (begins if each["kind"] == "capability" else mentions)(answer, each["expected"])


def _gates(
    settings: Showcase, shown: Sequence[Shown], told: Sequence[str], model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:  # fmt: skip
    """The names of what has a gate; for each of `shown` its prompt, cut where it is a long text, and its tokens."""
    parts: tuple[str, ...] = ()
    found, replies = [], iter(told)
    for each in shown:
        prompt = each["prompt"]
        if each["kind"] == "text":
            ends = spelled(tokenizer, prompt)[2]
            prompt = prompt[: ends[settings.text_tokens - 1]] if len(ends) > settings.text_tokens else prompt
        seen = amounts(model, tokenizer, prompt + ("" if each["kind"] == "text" else next(replies)))
        parts = seen.parts
        tokens = [
            {"text": text, "gates": [_rounded(amount) for amount in row], "answer": end > len(prompt)}
            for text, end, row in zip(seen.tokens, seen.ends, seen.open.tolist(), strict=True)
        ]
        found.append({"prompt": prompt, "tokens": tokens})
    return parts, found


def _rounded(amount: float) -> float | None:
    """To four decimals, None for what is no number."""
    return round(amount, 4) + 0.0 if math.isfinite(amount) else None


def main(graft: Path, target: Path, donor: Path, prompts: Path, out: Path, params: Path = Path("params.yaml")) -> None:
    """Show a graft beside its target and its donor, as params.yaml says under `showcase`."""
    settings = read(params, "showcase", Showcase)
    places = {"target": target, "donor": donor, "graft": graft}
    models = {name: lambda path=path: (load(path), load_tokenizer(path)) for name, path in places.items()}
    found = showcase(settings, chosen(settings, prompts), models)
    write_json(out, found)
    right = sum(bool(each["right"]["graft"]) for each in found["texts"])
    print(f"{right} of {sum(e['kind'] != 'text' for e in found['texts'])} prompts answered right by the graft")


if __name__ == "__main__":
    run(main)
