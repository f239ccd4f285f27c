"""Seconds that the flow adds to its stages: the toy DAG by hand, by the flow, and by the flow from DVC's cache.

    python -m benchmarks.flow --targets uncertainty_inject@blade

In one run, each from nothing, with the same number of workers: **by hand** every stage's command as a process of its
own, as soon as its upstreams have ended, without DVC or Prefect; **the flow** as `flows.pipeline` runs it, recorded by
a server that is up already, as a team's is. The critical path is the longest chain of stages, by the seconds that they
took by hand. The claims: the flow's wall time is at most 1.10 × the larger of the critical path and by hand's wall time
(with fewer workers than branches no run can keep to the critical path), and a stage whose outputs DVC has costs at most
2 s. Needs nothing but the tests' toy models.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import yaml

from flows import server
from flows.dag import Dag, read_dag
from flows.outcome import StageResult
from flows.pipeline import pipeline
from flows.processes import environment
from flows.runner import walk
from stages.command import run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the toy models are

import toy
from prefect.settings import PREFECT_API_URL, temporary_settings


def prepared(root: Path) -> Path:
    """The toy experiment with its donors, which are in git in earnest, and nothing else made."""
    from stages import specialize  # torch, which the other steps do not need

    toy.experiment(root)
    target = root / "data" / "models" / "target"
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet", "fetch@target"], cwd=root, check=True)
    donors = toy.PARAMS["specialize"]
    for donor in donors:
        specialize.main(donor, target, root / "data" / "donors" / donor, root / "params.yaml")
    toy.commit(root, *(f"specialize@{donor}" for donor in donors))
    shutil.rmtree(target)
    shutil.rmtree(root / ".dvc" / "cache" / "runs")
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"].pop("fetch@target")
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    return root


def commands(root: Path, dag: Dag) -> dict[str, str]:
    """Every stage's command, as DVC resolves it."""
    from dvc.repo import Repo

    with contextlib.chdir(root), Repo(str(root)) as repo:  # DVC gives addresses relative to the working directory
        return {stage.addressing: str(stage.cmd) for stage in repo.index.stages if stage.addressing in dag.upstreams}


def by_hand(root: Path, dag: Dag, workers: int) -> dict[str, float]:
    """Seconds of each stage, run as a shell would."""
    texts, known = commands(root, dag), environment(workers)

    def perform(stage: str) -> StageResult:
        began = time.perf_counter()
        if stage in dag.changed:
            subprocess.run(texts[stage], shell=True, cwd=root, env=known, check=True, stdout=subprocess.DEVNULL)
        return StageResult(stage, "ran", time.perf_counter() - began)

    with ThreadPoolExecutor(workers) as threads:
        ended = walk(dag, workers, lambda stage: threads.submit(perform, stage))
    return {stage: result.seconds for stage, result in ended.items()}


def critical(dag: Dag, seconds: dict[str, float]) -> float:
    """The longest chain's seconds."""
    until: dict[str, float] = {}
    for stage, upstreams in dag.upstreams.items():
        until[stage] = seconds[stage] + max((until[upstream] for upstream in upstreams), default=0.0)
    return max(until.values())


@contextmanager
def timed(told: dict[str, float], name: str) -> Iterator[None]:
    """The body's wall time, kept under a name."""
    began = time.perf_counter()
    yield
    told[name] = time.perf_counter() - began


def main(targets: str = "uncertainty_inject@blade", workers: int = 2) -> None:
    """Print the seconds and the two ratios; `targets` are stages, comma-separated."""
    wanted = targets.split(",")
    told: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as short:
        first = prepared(Path(short) / "flow")
        second = shutil.copytree(first, Path(short) / "hand")
        dag = read_dag(second, wanted)
        with temporary_settings({PREFECT_API_URL: server.start()}):

            def flow() -> dict[str, StageResult]:
                return dict(pipeline(wanted, workers=workers, root=str(first)))  # pyright: ignore[reportArgumentType, reportCallIssue]

            with timed(told, "by hand"):
                seconds = by_hand(second, dag, workers)
            ended = measured(told, "flow", flow)
            made = sum(each.outcome == "ran" for each in ended.values())
            for name in read_dag(first, wanted).upstreams:
                remove_outputs(first, name)
            restored = measured(told, "cached", flow)
            measured(told, "unchanged", flow)
    path = critical(dag, seconds)
    cached = [each.seconds for each in restored.values() if each.outcome == "cached"]
    bound = max(path, told["by hand"])
    print(f"{made} of {len(dag.stages)} stages ran, {workers} workers")
    print(f"critical path {path:.1f} s, by hand {told['by hand']:.1f} s, flow {told['flow']:.1f} s")
    print(f"flow / critical path {told['flow'] / path:.3f}, flow / by hand {told['flow'] / told['by hand']:.3f}")
    print(f"flow / larger of the two {told['flow'] / bound:.3f} (claim: at most 1.10)")
    print(
        f"{len(cached)} stages from DVC's cache: {told['cached'] / max(1, len(cached)):.2f} s each in the flow's wall "
        f"time (claim: at most 2), the slowest {max(cached, default=0):.2f} s by itself; nothing to do "
        f"{told['unchanged']:.1f} s"
    )


def measured(told: dict[str, float], name: str, work: Callable[[], dict[str, StageResult]]) -> dict[str, StageResult]:
    """What the work gives, its wall time kept."""
    with timed(told, name):
        return work()


def remove_outputs(root: Path, stage: str) -> None:
    """Make DVC restore the stage: its outputs and its line in dvc.lock go, the cache stays."""
    if stage.startswith("specialize@"):
        return
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    for out in lock["stages"].pop(stage, {}).get("outs", []):
        path = root / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))


if __name__ == "__main__":
    run(main)
