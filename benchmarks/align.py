"""The best rotation between two sets of rows: streamed moments against scipy.linalg.orthogonal_procrustes.

    python -m benchmarks.align                                  # a million rows of 576 columns on the CPU
    python -m benchmarks.align --device cuda --width 4096       # ours on the GPU, scipy on that machine's CPU

Both are given the same float32 rows Y = X R, in chunks that a seed makes: making them is not timed. Ours takes each
chunk once, from the host's memory, and forgets it; scipy needs them all. `--float64` runs scipy a second time, on
the rows as float64, the precision in which ours sums. Each runs in a process of its own with as many threads.
`seconds` are those of the fit, `resident` is the process's peak, `for the fit` that peak less what was resident before
the first row, `error` the greatest difference from R in any entry.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.linalg
import torch

from stages.maths.moments import Moments
from stages.maths.procrustes import orthogonal

MIB = 2**20


def rotation(width: int, seed: int, device: str) -> torch.Tensor:
    """A random rotation, exact to float64."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64, device=device))[0]


def chunks(how: argparse.Namespace, turn: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of rows in the host's memory, in float32."""
    turn = turn.float()
    for start in range(0, how.rows, how.chunk):
        generator = torch.Generator(how.device).manual_seed(how.seed + 1 + start)
        x = torch.randn(min(how.chunk, how.rows - start), how.width, generator=generator, device=how.device)
        y = x @ turn
        yield (x.cpu().pin_memory(), y.cpu().pin_memory()) if how.device == "cuda" else (x, y)


def ours(how: argparse.Namespace, turn: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of the fit, and the rotation found."""
    gathered, seconds = Moments(getattr(torch, how.products), cross_only=True), 0.0
    for x, y in chunks(how, turn):
        begun = time.perf_counter()
        gathered.add(x.to(how.device, non_blocking=True), y.to(how.device, non_blocking=True))
        if how.device == "cuda":
            torch.cuda.synchronize()
        seconds += time.perf_counter() - begun
    begun = time.perf_counter()
    found = orthogonal(gathered).weight.cpu()
    return seconds + time.perf_counter() - begun, found


def theirs(how: argparse.Namespace, turn: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Likewise."""
    x, y = (np.empty((how.rows, how.width), how.worker) for _ in range(2))
    start = 0
    for some_x, some_y in chunks(how, turn):
        x[start : start + len(some_x)], y[start : start + len(some_x)] = some_x.numpy(), some_y.numpy()
        start += len(some_x)
    begun = time.perf_counter()
    found, _ = scipy.linalg.orthogonal_procrustes(x, y)
    return time.perf_counter() - begun, torch.from_numpy(found)


def work(how: argparse.Namespace) -> dict[str, float]:
    """One fit in this process."""
    turn = rotation(how.width, how.seed, how.device)
    warm = torch.randn(64, 64, device=how.device)
    np.linalg.svd((warm @ warm).cpu().numpy())
    before = resident()
    seconds, found = (ours if how.worker == "ours" else theirs)(how, turn)
    peak = resident()
    held = torch.cuda.max_memory_allocated() if how.device == "cuda" and how.worker == "ours" else 0
    error = (found.double() - turn.cpu()).abs().max().item()
    return {"seconds": seconds, "resident": peak, "fit": peak - before, "cuda": held / MIB, "error": error}


def resident() -> float:
    """The most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(arguments: list[str], worker: str, threads: int) -> dict[str, float]:
    """The figures of a process that does one fit."""
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, "-m", "benchmarks.align", *arguments, "--worker", worker]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, env=os.environ | counts, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Measures both and prints the figures and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--products", choices=["float32", "float64"], help="ours; float32 on the CPU, else float64")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--float64", action="store_true", help="run scipy on float64 rows too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", choices=["ours", "float32", "float64"], help=argparse.SUPPRESS)
    how = parser.parse_args()
    how.products = how.products or ("float32" if how.device == "cpu" else "float64")
    if how.worker:
        print(json.dumps(work(how)))
        return
    size = 4 * how.rows * how.width / MIB
    print(
        f"{how.rows:,} rows of {how.width} columns, {size:,.0f} MiB a matrix; {how.device}, {how.threads} CPU threads"
    )
    print(f"{'':28}{'seconds':>9}{'resident':>12}{'for the fit':>13}{'on the GPU':>12}{'error':>10}")
    found: dict[str, dict[str, float]] = {}
    for worker in ("ours", "float32", *(["float64"] if how.float64 else [])):
        name = f"ours, {how.products} products" if worker == "ours" else f"scipy, {worker} rows"
        f = found[name] = measured(sys.argv[1:], worker, how.threads)
        sizes = f"{f['resident']:>8,.0f} MiB{f['fit']:>9,.0f} MiB{f['cuda']:>8,.0f} MiB"
        print(f"{name:28}{f['seconds']:>9.2f}{sizes}{f['error']:>10.1e}", flush=True)
    mine, *others = found.items()
    for name, other in others:
        ratios = {key: mine[1][key] / other[key] for key in ("seconds", "resident", "fit")}
        met = "met" if ratios["seconds"] <= 0.5 and ratios["fit"] <= 0.1 else "missed"
        print(
            f"ours / {name}: time {ratios['seconds']:.2f}, resident {ratios['resident']:.3f}, for the fit "
            f"{ratios['fit']:.3f}; target 0.5 of the time and 0.1 of the memory: {met}"
        )


if __name__ == "__main__":
    main()
