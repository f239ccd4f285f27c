"""A condition fitted on kept early states, so that a donor runs only where its gate will open."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import layer_norm, softplus

from stages.graft.condition import Condition
from stages.openings import openings
from stages.recipes.blade import Parts
from stages.training import Kept

STEPS, RATE, DECAY = 400, 0.02, 1e-4


@dataclass(frozen=True)
class Evidence:
    """What a condition has to tell apart."""

    opened: list[torch.Tensor]
    """[tokens, width], early states of each text in which the gate opens, up to where it first does."""
    closed: list[torch.Tensor]
    """[tokens, width], of each text in which it never does."""


def evidence(parts: Parts, kept: Sequence[Kept], opens: float) -> Evidence:
    """Early states by whether a gate lets `opens` or more through, after the layer norm."""
    opened, closed = [], []
    for k, amounts in zip(kept, openings(parts, kept), strict=True):
        assert k.early is not None
        states = layer_norm(k.early.clone(), k.early.shape[-1:])
        wide = (amounts >= opens).any(dim=1).nonzero()[:, 0].tolist()
        (opened if wide else closed).append(states[: wide[0] + 1] if wide else states)
    return Evidence(opened, closed)


def fit(condition: Condition, seen: Evidence, calibration: Evidence, recall: float) -> dict[str, float | None]:
    """Fits w and b in place, in the precision of exports; gives how it does on either.

    w: logistic regression where a text counts by its greatest evidence, as the condition decides, and where each token
    of a text that stays closed counts too, since there are few such texts. b: the greatest threshold that lets the
    asked share of the calibration's opened texts through before the gate opens. A gate that opens in every text leaves
    the donor running always, and one that opens in none never. It fails, by letting much through, where the layer is
    so early, or the amount that counts as open so low, that nothing yet tells the two kinds of text apart.
    """
    weight, bias = condition.read.weight, condition.read.bias
    with torch.no_grad():
        weight.zero_()
        bias.fill_(1.0 if seen.opened else -1.0)
    if seen.opened and seen.closed:
        _learn(weight, bias, seen)
        with torch.no_grad():
            weight.copy_(weight.to(torch.bfloat16))
            wanted = _greatest(calibration.opened or seen.opened, weight, bias).sort().values
            threshold = wanted[int((1 - recall) * len(wanted) + 1e-9)]
            bias.copy_(_rounded_up(bias - threshold))
    with torch.no_grad():
        return {
            "recall": _share(calibration.opened, weight, bias),
            "calibration_opened": len(calibration.opened),
            "opened": len(seen.opened),
            "closed": len(seen.closed),
            "closed_let_through": _share(seen.closed, weight, bias),
        }


def _learn(weight: torch.nn.Parameter, bias: torch.nn.Parameter, seen: Evidence) -> None:
    optimizer = torch.optim.Adam([weight, bias], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        shut = torch.cat(seen.closed) @ weight[0] + bias
        loss = softplus(-_greatest(seen.opened, weight, bias)).mean() + softplus(shut).mean()
        loss = loss + softplus(_greatest(seen.closed, weight, bias)).mean() + DECAY * weight.square().sum()
        loss.backward()
        optimizer.step()


def _greatest(texts: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[texts], the greatest evidence in each."""
    every = torch.cat(list(texts)) @ weight[0] + bias
    return torch.stack([each.amax() for each in every.split([len(text) for text in texts])])


def _share(texts: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor) -> float | None:
    """Of the texts, how many are let through; None without texts."""
    return int((_greatest(texts, weight, bias) > 0).sum()) / len(texts) if texts else None


def _rounded_up(value: torch.Tensor) -> torch.Tensor:
    """The next number of bfloat16 above `value`, so that what lies at the threshold gets through."""
    return torch.nextafter(value.to(torch.bfloat16), torch.full_like(value, torch.inf, dtype=torch.bfloat16))
