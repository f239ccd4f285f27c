"""Strengths of a donor's modules that bring the capability for the least harm, at each price of harm."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, kl_div

from stages.anatomy.encoding import Batch, Encoded, answers_of, texts_of
from stages.anatomy.head import logits_of, states_and_logits_at
from stages.anatomy.strengths import Mixture

STEP = 4
"""Forward passes over its batch that a step counts as: the target's own, the mixture's, and two for the backward."""
_WHOLE = 10**9  # a budget of tokens that no batch reaches


@dataclass(frozen=True)
class Found:
    """Where the descent stood after a step."""

    price: float
    """Nats of the answers' cross-entropy that a nat of divergence counts as much as, both a token"""
    strengths: torch.Tensor
    """[modules], 0 to 1"""
    cross_entropy: float
    """Of the step's answers before the step, nats a token"""
    divergence: float
    """KL(target ‖ mixture) on the step's texts before the step, nats a token"""
    gain: torch.Tensor
    """[modules], −∂ cross-entropy / ∂ strength there"""
    harm: torch.Tensor
    """[modules], ∂ divergence / ∂ strength there"""


@dataclass(frozen=True)
class Descent:
    """How strengths are found."""

    steps: int
    prompts: int
    """Answers a step."""
    texts: int
    """Texts a step."""
    start: float
    """The strength of every module at first."""
    prices: tuple[float, float]
    """Of a nat of divergence, first and last; geometric between."""
    rate: float
    """The longest that a strength moves in a step, about."""
    seed: int = 0


def descend(mixture: Mixture, answers: Sequence[Encoded], texts: Sequence[Sequence[int]], how: Descent) -> list[Found]:
    """Every step of one descent in the strengths, all modules at once, along a rising price of harm.

    Minimises cross-entropy + price · KL(target ‖ mixture) over λ in [0, 1]^modules by Adam (arXiv 1412.6980) on λ
    itself, cut off at the ends of the interval, so that modules which do not pay their price come to rest at exactly
    0. Both measures are smooth in λ, and one backward pass gives their slopes for all modules, where backward
    elimination passes once for each. As the price rises slowly the descent follows the frontier from much capability
    to little harm. Fails, as any descent, by staying in the valley where it starts; and what a step of few items does
    not show is not weighed. The mixture must be at strength 0 on entry; it is left where the last step led.
    """
    generator = random.Random(f"descent {how.seed}")
    asked = _drawn(len(answers), how.prompts, generator)
    read = _drawn(len(texts), how.texts, generator)
    plan = [(next(asked), next(read)) for _ in range(how.steps)]
    kept = _states(mixture, texts, sorted({index for _, group in plan for index in group}))
    strengths = torch.full((len(mixture.names),), how.start)
    adam = _Adam(len(strengths))
    found = []
    for step, (some, told) in enumerate(plan):
        price = how.prices[0] * (how.prices[1] / how.prices[0]) ** (step / max(1, how.steps - 1))
        mixture.set(strengths)
        (batch,) = answers_of([answers[i] for i in some], _WHOLE)
        wrong, slopes = mixture.slopes(batch, _entropy(batch))
        (batch,) = texts_of([texts[i] for i in told], _WHOLE)
        moved, harm = mixture.slopes(batch, _divergence(mixture, batch, [kept[i] for i in told]))
        move = adam.direction(slopes + price * harm)
        strengths = (strengths - how.rate * move.to(strengths)).clamp(0, 1)
        found.append(Found(price, strengths, wrong, moved, -slopes, harm))
    return found


class _Adam:
    """Directions from slopes, each coordinate over its own usual size."""

    def __init__(self, count: int, decay: tuple[float, float] = (0.9, 0.97)) -> None:
        self._decay, self._steps = decay, 0
        self._mean, self._square = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)

    def direction(self, slopes: torch.Tensor) -> torch.Tensor:
        first, second = self._decay
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * slopes
        self._square = second * self._square + (1 - second) * slopes.square()
        mean, square = self._mean / (1 - first**self._steps), self._square / (1 - second**self._steps)
        return mean / (square.sqrt() + 1e-12)


def _drawn(count: int, size: int, generator: random.Random) -> Iterator[list[int]]:
    """Groups of `size` of `count` things, or all; everything comes once before anything comes again."""
    queue: list[int] = []
    while True:
        while len(queue) < min(size, count):
            queue += [index for index in generator.sample(range(count), count) if index not in queue]
        yield [queue.pop(0) for _ in range(min(size, count))]


@torch.no_grad()
def _states(mixture: Mixture, texts: Sequence[Sequence[int]], wanted: Sequence[int]) -> dict[int, torch.Tensor]:
    """The target's final states [positions, width] on some texts; its head, which is the mixture's, reads them anew."""
    kept = {}
    for batch in texts_of([texts[i] for i in wanted], 512):
        states = states_and_logits_at(mixture.model, batch.ids, batch.row, batch.column)[0]
        items, counts = batch.item.unique_consecutive(return_counts=True)
        for item, part in zip(items.tolist(), states.split(counts.tolist()), strict=True):
            kept[wanted[item]] = part
    return kept


def _entropy(batch: Batch) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda logits: cross_entropy(logits, batch.following.to(logits.device))


def _divergence(
    mixture: Mixture, batch: Batch, states: Sequence[torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    with torch.no_grad():
        ordered = torch.cat([states[item] for item in batch.item.unique_consecutive().tolist()])
        expected = logits_of(mixture.model, ordered).float().log_softmax(-1)
    return lambda logits: kl_div(logits.log_softmax(-1), expected, log_target=True, reduction="batchmean")
