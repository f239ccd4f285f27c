"""A bridge's start in closed form: the maps that bring a donor's states closest to the target's, judged on others."""

from collections.abc import Sequence

import torch
from torch.nn.functional import layer_norm

from stages.errors import BadInput
from stages.graft.bridge import Bridge
from stages.maths.affine import Affine
from stages.maths.agreement import agreement
from stages.maths.mixture import Mixture, mixture
from stages.maths.moments import moments
from stages.maths.regression import ridge

_STRENGTH = 0.05
_HELD_OUT = 4
Pair = tuple[torch.Tensor, torch.Tensor]
"""A text's states: the donor's [tokens, donor width] and the target's [tokens, width]."""


def start(bridge: Bridge, texts: Sequence[Pair], seed: int = 0) -> dict[str, float | None]:
    """Fits the linear bridge or the mixture to the texts, puts the fit in it, and gives how well it meets others.

    A linear bridge becomes the ridge map of the layer-normed states, a mixture what stages.maths.mixture finds. Every
    fourth text is held out: R² there of what was fitted, and of the one ridge map beside a mixture. Attention sinks
    should be left out of the states. Raises BadInput for too few texts to hold one out.
    """
    if len(texts) < 2:
        raise BadInput(f"Expected two texts or more to fit a bridge to, got {len(texts)}; name more prompts.")
    rows = [(layer_norm(d.float(), d.shape[-1:]).cpu(), h.float().cpu()) for d, h in texts]
    fit = [row for number, row in enumerate(rows) if number % _HELD_OUT]
    whole = [(torch.cat([x for x, _ in fit]), torch.cat([y for _, y in fit]))]
    known, count = moments(whole), bridge.bridges
    single = ridge(known, _STRENGTH)
    maps: dict[str, Affine | Mixture] = {"linear": single.to(torch.float32)}
    if count > 1:
        maps["mixture"] = mixture(whole, known, count, _STRENGTH, seed=seed).to(torch.float32)
    judged = agreement(maps, rows[::_HELD_OUT])
    _put(bridge, maps["mixture" if count > 1 else "linear"])
    return {
        "Rows fitted": len(whole[0][0]),
        "Rows held out": sum(len(x) for x, _ in rows[::_HELD_OUT]),
        **{f"R² of the {name} start on held-out rows": judged[name].r2 for name in maps},
    }


@torch.no_grad()
def _put(bridge: Bridge, fitted: Affine | Mixture) -> None:
    """The bridge's maps and shares, behind a norm that is left as it starts, become the fitted ones."""
    if isinstance(fitted, Mixture):
        bridge.share.weight.copy_(fitted.gate_weight.T)
        bridge.share.bias.copy_(fitted.gate_bias)
        weight, bias = fitted.weight.mT.flatten(0, 1), fitted.bias.flatten()
    else:
        weight, bias = fitted.weight.T, fitted.bias
    bridge.map.weight.copy_(weight)
    bridge.map.bias.copy_(bias)
