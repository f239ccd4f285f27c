"""What a model says of itself, the likeliest token at a time, and how sure it is of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import Cache, PreTrainedModel

from stages.anatomy.encoding import Encoded, batches
from stages.anatomy.head import logits_and_cache_at, rewound
from stages.anatomy.likelihood import Pass, Scores, parts, passes

_TOGETHER = 4096  # prompt tokens of rows that decode together: a step reads all weights, however few its rows


class Step(NamedTuple):
    """A token that a model says, and the distribution that it is the likeliest of."""

    token: int
    loglikelihood: float
    """Nats"""
    margin: float
    """Its probability less that of the second"""
    entropy: float
    """Nats"""


@dataclass(frozen=True)
class Said:
    """What a model says after a context, decoding greedily."""

    tokens: tuple[int, ...]
    loglikelihood: float
    """Nats, summed over the tokens"""
    margin: float
    """The least of the tokens'"""
    entropy: float
    """Nats, the mean over the tokens"""


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    most: Sequence[int],
    ends: Callable[[int], bool],
    budget: int = 2048,
) -> tuple[Scores, list[Said]]:
    """How likely each continuation is, as `score` has it, and what the model says in its place.

    Its own answer goes on to a token that `ends` it, and no further than `most` tokens. Where it is the continuation
    itself it costs nothing more; elsewhere it goes on from the cache at the first token that differs.
    """
    scores = Scores(torch.zeros(len(encoded), dtype=torch.float64), torch.zeros(len(encoded), dtype=torch.bool))
    said: dict[int, list[Step]] = {}
    for each in passes(model, encoded, budget, keep=True):
        told, likeliest = [], []
        for logits, following in parts(each.logits, each.batch.following):
            logprobs = logits.log_softmax(-1)
            told += logprobs.gather(-1, following[:, None])[:, 0].double().tolist()
            likeliest += _steps(logprobs)
        going, rows = {}, {}
        for index, places in _places(each):
            wanted = encoded[index].ids[encoded[index].start :]
            steps = [likeliest[i] for i in places]
            same = next((n for n, step in enumerate(steps) if step.token != wanted[n]), len(steps))
            scores.loglikelihood[index] = sum(told[i] for i in places)
            scores.greedy[index] = same == len(steps)
            said[index] = steps[: same + 1]
            if same < len(steps) and not ends(steps[same].token) and same + 1 < most[index]:
                going[index] = [*encoded[index].ids[: encoded[index].start], *(s.token for s in said[index])]
                rows[index] = int(each.batch.row[places[0]])
        if going:
            items, known = list(going), min(map(len, going.values())) - 1
            past = rewound(each.cache, torch.tensor([rows[i] for i in items]), known)
            more = follow(
                model,
                list(going.values()),
                lambda n, new, items=items: ends(new[-1].token) or len(said[items[n]]) + len(new) >= most[items[n]],
                past,
            )
            for index, new in zip(items, more, strict=True):
                said[index] += new
    return scores, [_said(said[i]) for i in range(len(encoded))]


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    finished: Callable[[int, Sequence[int]], bool],
    budget: int = 2048,
) -> list[Said]:
    """What the model says after each prompt [token ids], until `finished` holds for its number and the new tokens.

    Prompts of like length go on together, without padding: the longer ones wait for the others to catch up.
    """
    said: dict[int, list[Step]] = {}
    for group in batches([len(ids) for ids in prompts], max(budget, _TOGETHER)):
        done = follow(
            model,
            [prompts[i] for i in group],
            lambda n, new, group=group: finished(group[n], [step.token for step in new]),
        )
        said |= dict(zip(group, done, strict=True))
    return [_said(said[i]) for i in range(len(prompts))]


def follow(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    finished: Callable[[int, list[Step]], bool],
    past: Cache | None = None,
) -> list[list[Step]]:
    """What the model says after each sequence of token ids; `past` is the cache of what they have in common in length.

    All rows stand at the same column at any time, so no mask is needed and none can be wrong. A model whose cache is
    not one of plain rows reads everything anew for each token.
    """
    whole, said = [list(ids) for ids in sequences], [[] for _ in sequences]
    active, begun = list(range(len(whole))), 0 if past is None else past.get_seq_length()
    while active:
        upto = min(len(whole[i]) for i in active)
        ids = torch.tensor([whole[i][begun:upto] for i in active])
        free = [row for row, i in enumerate(active) if len(whole[i]) == upto]
        column = torch.full((len(free),), upto - begun - 1)
        logits, past = logits_and_cache_at(model, ids, torch.tensor(free), column, past)
        begun = 0 if past is None else upto
        new = [step for some, _ in parts(logits, column) for step in _steps(some.log_softmax(-1))]
        for row, step in zip(free, new, strict=True):
            whole[active[row]].append(step.token)
            said[active[row]].append(step)
        over = {active[row] for row in free if finished(active[row], said[active[row]])}
        if over and past is not None and len(over) < len(active):
            past.batch_select_indices(torch.tensor([row for row, i in enumerate(active) if i not in over]))  # type: ignore
        active = [i for i in active if i not in over]
    return said


def _places(read: Pass) -> list[tuple[int, list[int]]]:
    """The items of a pass and where in it their positions stand."""
    items, counts = (each.tolist() for each in read.batch.item.unique_consecutive(return_counts=True))
    starts = [sum(counts[:n]) for n in range(len(counts))]
    return [(i, list(range(start, start + n))) for i, start, n in zip(items, starts, counts, strict=True)]


def _steps(logprobs: torch.Tensor) -> list[Step]:
    """The likeliest token of each distribution [positions, vocabulary], whose values are used up."""
    top = logprobs.max(-1)
    probabilities = logprobs.exp()
    entropy = -probabilities.mul(logprobs.clamp_(min=-1e4)).sum(-1)  # 0 · −∞ is 0 here
    second = probabilities.scatter_(-1, top.indices[:, None], -1.0).amax(-1)
    columns = (top.indices, top.values, top.values.exp() - second, entropy.clamp(min=0))
    return [Step(*row) for row in zip(*(each.tolist() for each in columns), strict=True)]


def _said(steps: Sequence[Step]) -> Said:
    return Said(
        tuple(step.token for step in steps),
        sum(step.loglikelihood for step in steps),
        min(step.margin for step in steps),
        sum(step.entropy for step in steps) / len(steps),
    )
