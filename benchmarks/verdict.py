"""The time to judge many variants on many items: every figure with its interval, and the verdicts.

    python -m benchmarks.verdict                                # 50 variants, 100,000 items, 2,000 resamples

Items are made up: nine tenths are of the capability, in pairs of operands, the rest questions and texts. Making them is
not timed. `one at a time` is what the intervals of as many gains would take from every item's weight in every resample,
as figures that are no sums do: measured on one gain, times the number of variants. `resident` is the process's peak.
"""

import argparse
import resource
import time

import numpy as np
import pandas as pd

from stages.maths.statistics import Bootstrap, draw, estimate
from stages.pages.roles import Role, Roles
from stages.pages.summary import summarize
from stages.pages.verdict import Rules


def items(count: int, seed: int, skill: float) -> pd.DataFrame:
    """One model's rows; the same luck for all, so that models are paired."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    sizes = {"capability": count - count // 10, "retention": count // 10 - count // 50, "text": count // 50}
    parts = []
    for task, size in sizes.items():
        number, text = np.arange(size), task == "text"
        right = (shared.random(size) < skill) ^ (own.random(size) < 0.02)
        told = {"task": task, "id": [f"{task}-{i:06d}" for i in number], "group": np.where(number % 2, "a", "b")}
        told |= {"digits": 1 + number % 3 if task == "capability" else None, "seen": number % 10 > 2}
        told |= {"cluster": [f"{task} {i // 2}" for i in number], "right": None if text else right}
        nats = -3.0 * 100 - own.normal(0, 1, size)
        parts.append(pd.DataFrame(told | {"loglikelihood": nats, "tokens": 100, "kl": 0.01, "agreement": 0.99}))
    types = {"digits": "Int8", "seen": "boolean", "right": "boolean"}
    return pd.concat([part.astype(types) for part in parts], ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("variants", 50), ("items", 100_000), ("resamples", 2000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    how = parser.parse_args()
    roles = {f"v{i}": Role(donor="donor", control_for=("v0",) if i == 1 else ()) for i in range(how.variants)}
    rows = {name: items(how.items, i, 0.3 + 0.01 * i) for i, name in enumerate(("target", "donor", *roles))}
    bootstrap = Bootstrap(how.resamples)
    begun, worked = time.perf_counter(), time.process_time()
    summary = summarize(rows, Roles({"donor": {}}, roles), bootstrap, Rules(), {"v0": ["v1", "v2"]})
    whole, worked = time.perf_counter() - begun, time.process_time() - worked
    asked = rows["target"].loc[rows["target"].task == "capability"]
    gap = rows["v0"].right[asked.index].to_numpy(dtype=float) - asked.right.to_numpy(dtype=float)
    begun = time.process_time()
    draws = draw(asked.cluster.to_numpy(), bootstrap)
    found = estimate(draws, lambda w: (w @ gap) / w.sum(-1), (-1.0, 1.0))
    single = time.process_time() - begun
    figures = sum(isinstance(v, dict) for entry in summary["variants"].values() for v in entry.values())
    print(f"{how.variants} variants, {how.items:,} items, {how.resamples:,} resamples: {figures} figures")
    print(f"summarize {whole:.1f} s, {worked:.1f} s of processors; the first gain {found}")
    print(f"gains one at a time {single * how.variants:.0f} s of processors, {single:.1f} s each")
    print(f"resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
