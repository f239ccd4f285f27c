"""A sweep: every point of a grid, or of a list, becomes a DVC experiment: `python -m flows.sweep --grid KEY=A,B ...`.

Points run side by side on this machine (`--jobs`), or on whatever Prefect workers there are (`--deployment`). One that
anyone in the team has run is taken as it is; one that fails stops no other; run again to go on. What was found becomes
a page, a table and JSON under data/sweep.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from flows import gpus, team
from flows.dag import DagError, repository
from flows.git import GitError
from flows.harvest import figures
from flows.points import Plan, Point, Sweep, factors, plan_sweep, read_plan
from flows.processes import HOURS, environment, supervised
from flows.request import check_remote, limit, positive
from stages.errors import BadInput
from stages.pages.sweep import csv, goals, markdown, render
from stages.storage import write_json

Failures = dict[str, str]
"""Why a point failed, by its experiment's name."""
OUT = Path("data/sweep")
LOGS = Path(".dvc/tmp/sweep")
LONGEST = 300
"""Letters of a reason in a table; the log has all."""


def conduct(sweep: Sweep, address: str, work: Callable[[Sequence[Point]], Failures], shared: bool) -> dict[str, Any]:
    """The sweep's points and what each found, once `work` has run those that nobody has run before.

    `work` gives why points failed. With `shared` an experiment counts as run once the git address has it.
    """
    try:
        known = team.there(sweep.root, address, sweep.commit)
    except GitError as error:
        if shared:
            raise
        print(f"What others have run is unknown: {error}", file=sys.stderr)
        known = set()
    names = [point.name for point in sweep.points]
    own = team.here(sweep.root, sweep.commit)
    team.bring(sweep.root, address, sweep.commit, (known & set(names)) - own)
    known |= set() if shared else own
    missing = [point for point in sweep.points if point.name not in known]
    print(f"{len(names)} points, {len(names) - len(missing)} known, {len(missing)} to run", flush=True)
    failures = work(missing) if missing else {}
    if shared:
        made = {point.name for point in missing} & team.there(sweep.root, address, sweep.commit)
        team.bring(sweep.root, address, sweep.commit, made)
        known |= made
    else:
        known = team.here(sweep.root, sweep.commit)
    lost = {name: "it ended, but its experiment is not to be found" for name in names if name not in known}
    return told(sweep, lost | {name: why for name, why in failures.items() if name not in known})


def told(sweep: Sweep, failures: Mapping[str, str]) -> dict[str, Any]:
    """What the page is made of: factors, goals, and a row a point, failed ones with the reason."""
    found: dict[str, dict[str, float]] = {}
    for targets in dict.fromkeys(point.targets for point in sweep.points):
        done = [each.name for each in sweep.points if each.targets == targets and each.name not in failures]
        found |= figures(sweep.root, sweep.commit, done, targets)
    rows = [
        {
            "name": each.name,
            "values": each.values,
            "figures": found.get(each.name, {}),
            "failure": failures.get(each.name),
        }
        for each in sweep.points
    ]
    return {
        "commit": sweep.commit,
        "targets": list(sweep.points[0].targets),
        "factors": factors([point.values for point in sweep.points]),
        "goals": goals([row["figures"] for row in rows if row["failure"] is None], sweep.goals),
        "points": rows,
    }


def leave(table: Mapping[str, Any], out: Path) -> None:
    """Write the page, the tables and the JSON into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "sweep.json", table)
    (out / "points.csv").write_text(csv(table), encoding="utf-8")
    (out / "points.md").write_text(markdown(table), encoding="utf-8")
    (out / "index.html").write_text(render(table), encoding="utf-8")


@dataclass(frozen=True)
class Hands:
    """How points are run on this machine."""

    jobs: int = 1
    """Points at a time."""
    workers: int = 2
    """Stages at a time, of each point."""
    hours: float = HOURS
    """What one stage may take."""
    pull: bool = False
    """Take what the DVC remote has, first."""
    push: bool = False
    """Give what was made to the DVC remote, and the experiment to the git remote."""

    def command(self, root: Path, point: Point) -> list[str]:
        """What runs a point without Prefect."""
        asked = [
            f"--root={root.resolve()}",
            f"--name={point.name}",
            f"--workers={self.workers}",
            f"--hours={self.hours}",
        ]
        asked += [f"--{name}" for name in ("pull", "push") if getattr(self, name)]
        asked += [f"--set-param={each}" for each in point.overrides]
        return [sys.executable, "-m", "flows.runner", *asked, "--", *point.targets]


def locally(sweep: Sweep, address: str, hands: Hands, points: Sequence[Point]) -> Failures:
    """Run the points here, each in a process and a clone of its own; why some failed.

    Where stages of the commit itself may have yet to run, the first point goes ahead alone, so that the others find
    their outputs. Each of the jobs has a GPU to itself, as far as there are enough.
    """
    logs = sweep.root / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    cards: SimpleQueue[str | None] = SimpleQueue()
    for card in gpus.dealt(hands.jobs):
        cards.put(card)
    live: set[subprocess.Popen[bytes]] = set()

    def run(point: Point) -> str | None:
        card = cards.get()
        try:
            why = alone(hands, sweep.root, point, logs / f"{point.name}.log", card, live)
            if why is None and hands.push:
                team.give(sweep.root, address, sweep.commit, [point.name])
            return why
        except GitError as error:
            return str(error)
        finally:
            cards.put(card)

    failures: Failures = {}
    threads = ThreadPoolExecutor(hands.jobs)
    try:
        ahead = 1 if sweep.behind else 0
        for group in (points[:ahead], points[ahead:]):
            running = {threads.submit(run, point): point for point in group}
            for ended in as_completed(running):
                name, why = running[ended].name, ended.result()
                print(f"{name}: {why or 'done'}", flush=True)
                if why:
                    failures[name] = why
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in tuple(live):
            process.terminate()
        raise
    threads.shutdown()
    return failures


def alone(
    hands: Hands, root: Path, point: Point, log: Path, card: str | None, live: set[subprocess.Popen[bytes]]
) -> str | None:
    """Run one point to its end, its lines in the log; why it failed, if it did."""
    # so many stages share the cores, whatever the point's own process thinks
    own = environment(hands.jobs * hands.workers) | ({"CUDA_VISIBLE_DEVICES": card} if card else {})
    with log.open("wb") as lines:
        process = supervised(hands.command(root, point), lines, Path(__file__).parents[1], own)
        live.add(process)
        try:
            status = process.wait()
        finally:
            live.discard(process)
    if status == 0:
        return None
    return reason(log.read_text(encoding="utf-8", errors="replace")) or f"It ended with exit status {status}."


def reason(text: str) -> str:
    """The last thing that a run said, as one line: its headline, and the last of the indented lines under it."""
    lines = [line for line in text.splitlines() if line.strip()]
    began = max((at for at, line in enumerate(lines) if not line.startswith(" ")), default=0)
    said = [lines[began].removesuffix("; its last lines:"), *lines[began + 1 :][-1:]] if lines else []
    told = ": ".join(" ".join(line.split()) for line in said)
    return told if len(told) <= LONGEST else f"{told[: LONGEST // 2]} … {told[-LONGEST // 2 :]}"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0, 1 with one sentence or where points failed, 128 + N after signal N."""
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description="Run the points of a grid or a list.")
    parser.add_argument("file", nargs="?", type=Path, help="YAML with grid, points, targets, goals")
    parser.add_argument("--grid", nargs="+", default=[], metavar="KEY=A,B", help="every combination is a point")
    parser.add_argument(
        "--point", nargs="+", action="append", default=[], metavar="KEY=A", help="one point; repeatable"
    )
    parser.add_argument("--targets", nargs="+", default=[], help="stages to bring up to date (default: all)")
    parser.add_argument("--goals", nargs="+", default=[], metavar="max:FIGURE", help="what is best, or min:FIGURE")
    parser.add_argument("--jobs", type=positive, default=1, help="points at a time on this machine (default: 1)")
    parser.add_argument("--workers", type=positive, default=2, help="stages at a time, of each point (default: 2)")
    parser.add_argument("--hours", type=limit, default=HOURS, help=f"what one stage may take (default: {HOURS:g})")
    parser.add_argument("--pull", action="store_true", help="first take what the DVC remote has")
    parser.add_argument("--push", action="store_true", help="give the DVC and git remotes what was made")
    parser.add_argument("--deployment", action="store_true", help="let the workers of the Prefect server do it")
    parser.add_argument("--lease", type=limit, default=300.0, help="seconds until a silent worker is given up (300)")
    parser.add_argument("--out", type=Path, help=f"where page and tables go (default: {OUT} in the repository)")
    parser.add_argument("--root", type=Path, default=Path(), help="the DVC repository (default: here)")
    asked = parser.parse_args(argv)
    # SIGTERM must unwind like Ctrl-C, or nothing would be stopped in order
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        root = repository(asked.root)
        plan = read_plan(asked.file) if asked.file else Plan()
        plan = plan.model_copy(update={name: value for name in ("targets", "goals") if (value := getattr(asked, name))})
        sweep = plan_sweep(root, plan, asked.grid, asked.point)
        address = team.meeting_place(root)
        hands = Hands(asked.jobs, asked.workers, asked.hours, asked.pull, asked.push)
        if asked.deployment:
            from flows.fanout import Order, ordered  # importing Prefect takes a second that local sweeps spare

            order = Order(sweep, address, hands.workers, hands.hours, asked.lease)
            table = conduct(sweep, address, partial(ordered, order), shared=True)
        else:
            if hands.pull or hands.push:
                check_remote(root)
            table = conduct(sweep, address, partial(locally, sweep, address, hands), hands.push)
        return finish(table, asked.out or root / OUT)
    except KeyboardInterrupt:
        print("Interrupted; run again to go on from here.", file=sys.stderr)
        return 128 + signal.SIGINT
    except (BadInput, DagError, GitError) as error:
        print(error, file=sys.stderr)
        return 1


def finish(table: Mapping[str, Any], out: Path) -> int:
    """Write and print what was found; the exit status."""
    leave(table, out)
    failed = [row["name"] for row in table["points"] if row["failure"]]
    print(f"\n{markdown(table)}\npage: {out / 'index.html'}; `dvc exp show --only-changed` lists the experiments")
    if failed:
        print(f"{len(failed)} of {len(table['points'])} points failed; mend that and run again.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
