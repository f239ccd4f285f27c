"""A sparse dictionary of directions: each row as a sum of few of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stages.errors import BadInput

_BATCH = 512


@dataclass(frozen=True)
class Autoencoder:
    """x ≈ f(x) D + c with f = p where p > θ and else 0, p = (x − c) Eᵀ + b; θ = 0 is a ReLU, θ > 0 a JumpReLU.

    JumpReLU: arXiv 2407.14435.
    """

    encoder: Float[Tensor, "features width"]
    encoder_bias: Float[Tensor, "features"]
    threshold: Float[Tensor, "features"]
    decoder: Float[Tensor, "features width"]
    centre: Float[Tensor, "width"]

    def features(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows features"]:
        pre = (x - self.centre) @ self.encoder.T + self.encoder_bias
        return pre * (pre > self.threshold)

    def __call__(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        return self.features(x) @ self.decoder + self.centre

    def explained(self, x: Float[Tensor, "rows width"]) -> float:
        """1 − squared error / squared distance from the rows' mean."""
        return 1 - ((x - self(x)).square().sum() / (x - x.mean(0)).square().sum()).item()


def autoencoder(
    x: Float[Tensor, "rows width"], features: int, active: int, steps: int, learning_rate: float = 3e-3, seed: int = 0
) -> Autoencoder:
    """A dictionary of so many `features`, on average `active` of them at work in a row of `x`.

    BatchTopK (arXiv 2412.06410): of a batch's p the largest active · rows count; the threshold, one for all features,
    leaves as many at work over all of `x`. Adam on the squared error from directions that are rows of `x`; directions
    have one length throughout. Features that no row needs stay dead: ask for fewer, or give more rows. The same seed
    gives the same dictionary. Raises BadInput for more active features than there are, or fewer rows than features.
    """
    if not 0 < active <= features <= len(x):
        raise BadInput(
            f"Expected 1 ≤ active ≤ features ≤ rows, got {active} active of {features} features and {len(x)} rows; "
            "lower the number of features or give more rows."
        )
    generator = torch.Generator().manual_seed(seed)
    mean = x.mean(0)
    scale = (x - mean).square().sum(1).mean().sqrt()
    rows = (x - mean) / scale
    drawn = rows[torch.randperm(len(rows), generator=generator)[:features].to(x.device)]
    decoder = torch.nn.functional.normalize(drawn, dim=1)
    learned = [each.requires_grad_() for each in (decoder.clone(), decoder.new_zeros(features), decoder, mean * 0)]
    encoder, bias, decoder, centre = learned
    optimizer = torch.optim.Adam(learned, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (_BATCH,), generator=generator).to(x.device)]
        pre = ((batch - centre) @ encoder.T + bias).relu()
        kept = pre * (pre >= pre.flatten().topk(active * len(batch)).values[-1])
        error = (kept @ decoder + centre - batch).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
    encoder, bias, decoder, centre = (each.detach() for each in learned)
    return Autoencoder(
        encoder / scale,
        bias,
        _threshold((rows - centre) @ encoder.T + bias, active).expand(features).clone(),
        decoder * scale,
        centre * scale + mean,
    )


def thresholded(found: Autoencoder, x: Float[Tensor, "rows width"], active: int) -> Autoencoder:
    """`found` with one threshold for all features, above which on average `active` of them are at work in a row."""
    pre = (x - found.centre) @ found.encoder.T + found.encoder_bias
    return Autoencoder(
        found.encoder, found.encoder_bias, _threshold(pre, active).expand(len(found.encoder)).clone(), found.decoder,
        found.centre,
    )  # fmt: skip


def _threshold(pre: Float[Tensor, "rows features"], active: int) -> Float[Tensor, ""]:
    """What active · rows of the positive values lie above."""
    most = pre.relu().flatten().topk(min(active * len(pre) + 1, pre.numel()))
    return most.values[-1]
