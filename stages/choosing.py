"""Sets of choices with a stated rate of holding the right one, over many random halves of the questions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from stages.maths import conformal
from stages.maths.statistics import Bootstrap, Undefined, draw, mean
from stages.reasons import told


def sets(
    items: pd.DataFrame, options: tuple[np.ndarray, np.ndarray] | None, alpha: float, splits: int, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Coverage and size of the sets of each score (`lac`, `aps`) at 1 − α, in all and by the items' group.

    Questions have no calibration items of their own, so each of `splits` times a random half of the clusters gives the
    threshold and the other half is judged: an item's figures are means over the halves that judged it, and the
    intervals are over clusters of items. Coverage on all items together is what is promised; by group it is what it is.
    """
    labels, member = np.unique(items.cluster.to_numpy(), return_inverse=True)
    if options is None or len(labels) < 2:
        reason = Undefined(
            "the items have no choices" if options is None else "one cluster has no second half to judge"
        )
        none = {"alpha": alpha, "by": []} | told({"coverage": reason, "size": reason})
        return dict.fromkeys(conformal.SCORES, none)
    logits, gold = options
    shares = np.where(np.isfinite(logits), softmax(logits, axis=1), np.nan)
    rng = np.random.default_rng(bootstrap.seed)
    halves = [rng.permutation(len(labels))[member] < len(labels) // 2 for _ in range(splits)]
    drawn, groups = rng.random(len(gold)), items.group.to_numpy(dtype=str)
    return {
        name: {"alpha": alpha, "splits": splits}
        | _judged(score(shares, drawn), gold, halves, alpha, items, groups, bootstrap)
        for name, score in conformal.SCORES.items()
    }


def _judged(
    scores: np.ndarray, gold: np.ndarray, halves: Sequence[np.ndarray], alpha: float, items: pd.DataFrame,
    groups: np.ndarray, bootstrap: Bootstrap,
) -> dict[str, Any]:  # fmt: skip
    own = scores[np.arange(len(gold)), gold]
    covered, size, judged = (np.zeros(len(gold)) for _ in range(3))
    for half in halves:
        held = conformal.sets(scores[~half], conformal.threshold(own[half], alpha))
        covered[~half] += held[np.arange(len(held)), gold[~half]]
        size[~half] += held.sum(1)
        judged[~half] += 1
    seen = judged > 0
    rates, sizes, most = covered[seen] / judged[seen], size[seen] / judged[seen], float(scores.shape[1])
    clusters, groups = items.cluster.to_numpy()[seen], groups[seen]

    def figures(among: np.ndarray) -> dict[str, Any]:
        draws = draw(clusters[among], bootstrap)
        return told({"coverage": mean(draws, rates[among], (0.0, 1.0)), "size": mean(draws, sizes[among], (0.0, most))})

    every = np.ones(len(rates), dtype=bool)
    by = [{"group": g, "n": int((groups == g).sum())} | figures(groups == g) for g in np.unique(groups).tolist()]
    return figures(every) | {"by": by}
