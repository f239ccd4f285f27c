"""A model under lm-eval, in batches by length; it also keeps what lm-eval has no place for."""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.anatomy.decoding import Said, answer, generate
from stages.anatomy.encoding import Encoded
from stages.anatomy.likelihood import Read, Reference, read, score
from stages.errors import BadInput

Key = tuple[str, int, int]
"""A request: its task, the number of its item there, and its number among the item's."""
_DAY = datetime.datetime(2024, 7, 26)  # what templates that tell the day tell, so that a prompt is the same tomorrow


@dataclass(frozen=True)
class Scored:
    """What came of a request beside what lm-eval is told."""

    tokens: int | None = None
    """Scored, of a continuation or text"""
    said: Said | None = None
    """The model's own answer, where it is free to give any"""
    text: str | None = None
    """That answer in words"""
    read: Read | None = None
    """Of one of our texts"""


def key(request: Instance) -> Key:
    return str(request.task_name), int(request.doc_id or 0), request.idx


class Judged(LM):
    """A model under lm-eval; `scored` holds what more is known of each request.

    The tasks named in `ours` are read as everything else here reads them, without the special tokens that a tokenizer
    would add; any other as lm-eval's own model class does. Of the tasks in `free` the model's own answers are told.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reference: Reference | None,
        budget: int,
        ours: Collection[str],
        free: Collection[str],
    ):
        super().__init__()
        self.model, self.reference, self.budget = model, reference, budget
        self.tokenizer: Any = tokenizer
        self.ours, self.free = ours, free
        self.states: list[torch.Tensor] = []
        self.scored: dict[Key, Scored] = {}

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt, strftime_now=_DAY.strftime,
            )
        )  # fmt: skip

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        encoded = [self._encoded(r) for r in requests]
        told: dict[int, tuple[float, bool]] = {}
        plain = [n for n, r in enumerate(requests) if r.task_name not in self.free]
        scores = score(self.model, [encoded[n] for n in plain], self.budget)
        told |= dict(zip(plain, zip(scores.loglikelihood.tolist(), scores.greedy.tolist(), strict=True), strict=True))
        for n in plain:
            self.scored[key(requests[n])] = Scored(len(encoded[n].ids) - encoded[n].start)
        for mark, some in self._by_mark(requests).items():
            longest: dict[str, int] = {}
            for n in some:
                task = str(requests[n].task_name)
                longest[task] = max(longest.get(task, 0), len(encoded[n].ids) - encoded[n].start)
            most = [
                longest[str(requests[n].task_name)] if mark else len(encoded[n].ids) - encoded[n].start for n in some
            ]
            scores, said = answer(
                self.model, [encoded[n] for n in some], most, _Ends(self.tokenizer, mark), self.budget
            )
            pairs = zip(scores.loglikelihood.tolist(), scores.greedy.tolist(), strict=True)
            told |= dict(zip(some, pairs, strict=True))
            for n, each in zip(some, said, strict=True):
                self.scored[key(requests[n])] = Scored(len(each.tokens), each, self._text(each.tokens))
        return [told[n] for n in range(len(requests))]

    def _by_mark(self, requests: Sequence[Instance]) -> dict[str, list[int]]:
        """The free requests by the mark that ends their tasks' right answers; an empty one where there is none."""
        tasks: dict[str, list[int]] = {}
        for n, request in enumerate(requests):
            if request.task_name in self.free:
                tasks.setdefault(str(request.task_name), []).append(n)
        marks: dict[str, list[int]] = {}
        for some in tasks.values():
            marks.setdefault(_mark([requests[n].args[1] for n in some]), []).extend(some)
        return marks

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        if all(r.task_name in self.ours for r in requests):
            return self._texts(requests)
        windows, owners = [], []
        for n, request in enumerate(requests):
            ids = self._ids(request.args[0], True)
            for window in get_rolling_token_windows(ids, self._first(), self._longest(), 1):
                context, continuation = make_disjoint_window(window)
                windows.append(Encoded((*context, *continuation), len(context)))
                owners.append(n)
            self.scored[key(request)] = Scored(len(ids))
        sums = [0.0] * len(requests)
        for n, value in zip(owners, score(self.model, windows, self.budget).loglikelihood.tolist(), strict=True):
            sums[n] += value
        return sums

    def _texts(self, requests: Sequence[Instance]) -> list[float]:
        """Ours, beside the target's states where there are some; their own are kept."""
        texts = [[self._first(), *self._ids(r.args[0], False)] for r in requests]
        if self.reference is not None and [len(s) + 1 for s in self.reference.states] != [len(ids) for ids in texts]:
            raise BadInput("Expected the target's states on these texts, got others; run `dvc repro` to judge it anew.")
        told = read(self.model, texts, self.reference, self.budget)
        self.states = [each.states for each in told]
        for request, each in zip(requests, told, strict=True):
            self.scored[key(request)] = Scored(each.tokens, read=each)
        return [each.loglikelihood for each in told]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        wanted: list[dict[str, Any]] = [dict(normalize_gen_kwargs(r.args[1])) for r in requests]
        prompts, eos = [], self._eos()
        for request, given in zip(requests, wanted, strict=True):
            if not 0 < given["max_gen_toks"] < self._longest():
                raise BadInput(
                    f"Expected {request.task_name} to generate fewer tokens than the model's {self._longest()} "
                    f"positions, got {given['max_gen_toks']}; lower max_gen_toks in its generation_kwargs."
                )
            prompts.append(self._ids(request.args[0], True)[-(self._longest() - given["max_gen_toks"]) :])

        def finished(n: int, tokens: Sequence[int]) -> bool:
            stops = [stop for stop in wanted[n]["until"] if stop]
            tail = tokens[-4 * max(map(len, stops), default=1) :]  # a character may take four tokens
            spoken = self.tokenizer.decode(tail) if stops else ""
            return (
                tokens[-1] in eos or len(tokens) >= wanted[n]["max_gen_toks"] or any(stop in spoken for stop in stops)
            )

        texts = []
        for request, given, each in zip(
            requests, wanted, generate(self.model, prompts, finished, self.budget), strict=True
        ):
            text = self._text(each.tokens)
            for stop in [*given["until"], *(self.tokenizer.decode([token]) for token in eos)]:
                text = text.split(stop)[0] if stop else text
            self.scored[key(request)] = Scored(len(each.tokens), each, text)
            texts.append(text)
        return texts

    def _encoded(self, request: Instance) -> Encoded:
        """A context and its continuation, with the blanks between them; too long ones without their beginning."""
        context, continuation = (str(part) for part in request.args)
        special = request.task_name not in self.ours
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, continuation = context[:-blanks], context[-blanks:] + continuation
        before, whole = self._ids(context, special), self._ids(context + continuation, special)
        if not context and special:
            before, whole = [self._first()], [self._first(), *self._ids(continuation, False)]
        if not 0 < len(before) < len(whole):
            raise BadInput(
                f"Expected a context and a continuation of at least one token each, got {context!r}, {continuation!r}."
            )
        lost = max(0, len(whole) - self._longest() - 1)
        if lost >= len(before):
            raise BadInput(f"Expected answers of {request.task_name} that fit the model's {self._longest()} positions, "
                           f"got one of {len(whole) - len(before)} tokens; leave it out.")  # fmt: skip
        return Encoded(tuple(whole[lost:]), len(before) - lost)

    def _ids(self, text: str, special: bool) -> list[int]:
        special = special and not has_bos_prefix(text, self.tokenizer.decode([self._first()]))
        return self.tokenizer(text, add_special_tokens=special).input_ids

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _first(self) -> int:
        """The token before a text."""
        first = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if first is None else first

    def _eos(self) -> set[int]:
        """Tokens that end what the model says."""
        named: Any = getattr(self.model.generation_config, "eos_token_id", None)
        return {
            token for token in (self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named]))
            if token is not None
        }  # fmt: skip

    def _longest(self) -> int:
        """Tokens that the model reads at once."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2048


class _Ends:
    """Whether a token ends an answer: it spells the mark, or a new line, or nothing after it belongs to the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mark: str):
        self.mark = mark
        self.tokenizer: Any = tokenizer
        self.known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        if token not in self.known:
            spelled = str(self.tokenizer.decode([token]))
            last = token == self.tokenizer.eos_token_id or self.mark in spelled or "\n" in spelled
            self.known[token] = bool(self.mark) and last
        return self.known[token]


def _mark(answers: Sequence[str]) -> str:
    """The sign that all right answers end with and none has before; empty where there is none."""
    last = {each[-1:] for each in answers}
    mark = last.pop() if len(last) == 1 else ""
    usable = (
        mark and not mark.isalnum() and not mark.isspace() and not any(mark in a[:-1] or "\n" in a for a in answers)
    )
    return mark if usable else ""
