"""What is left above the planner: what it would gain by knowing prices and durations, and the watts that no job is charged for.

python -m benchmarks.headroom [--populations 40] [--windows 2] [--seed 8] [--traces DIR] [--out outputs/headroom.json]

Populations: ``benchmarks/populations.py``, half with less energy (light), half with more (heavy). Each row plays the planner again with
something known that nobody can know, and gives the ratio of its objective to the plain planner's, with a 95 % bootstrap interval over
populations: prices, carbon and temperature to come (``planner_perfect``), run times (requests that are ``TELLING`` times the run time,
and a planner that knows it), or both. The second table splits the energy: what jobs are charged, and what awake, waking and sleeping
nodes draw that no job is charged for; better packing can save at most what awake nodes draw so.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.agent_data import CLUSTER
from benchmarks.forecast_data import traces_root
from benchmarks.populations import populations
from benchmarks.tune_planner import Played, Yardstick, played
from envs.cluster import ClusterSpec
from envs.cluster_io import load_cluster
from envs.heuristics import FORESIGHTED, JUDGES, Judge
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.state import IDLE_STATES
from envs.world import World
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import plain
from pipelines.workspace import write_json

TELLING = 2.5
MARGIN = 1.1  # of the run time by which a knowing planner still judges what is late


def telling(jobs: pd.DataFrame) -> pd.DataFrame:
    """Jobs whose requested times tell their run times."""
    return jobs.assign(requested_duration_s=TELLING * jobs["duration_s"])


def knowing(judge: Judge) -> Judge:
    """The judge for jobs of :func:`telling`."""
    return replace(judge, settings=replace(judge.settings, expected_share=1 / TELLING, padded_share=MARGIN / TELLING))


def rows(root: Path, cluster: ClusterSpec, options: argparse.Namespace) -> Iterator[tuple[str, World, Judge]]:
    """Name, world and judge of every row, the plain planner first."""
    numbers = options.populations, options.windows, options.seed
    world = populations(root, cluster, *numbers)
    plain_judge, seeing = JUDGES["planner"], FORESIGHTED["planner_perfect"]
    yield "planner", world, plain_judge
    yield "prices known", world, seeing
    told = populations(root, cluster, *numbers, requests=telling)
    yield "run times known", told, knowing(plain_judge)
    yield "both known", told, knowing(seeing)


def energy_kwh(world: World, judge: Judge, windows: int) -> dict[str, np.ndarray]:
    """Energy of each population, ``[P]``, by what it is charged to."""
    totals = run_policy(world, judge, RewardSpec())
    idle = totals.idle_energy_kwh.sum(axis=1)
    parts = {"jobs": totals.job_energy_kwh.sum(axis=1)} | {f"{name}, no job": idle[:, k] for k, name in enumerate(IDLE_STATES)}
    return {name: value.reshape(-1, windows).sum(axis=1) for name, value in parts.items()}


def main(arguments: list[str] | None = None) -> int:
    """Print both tables and write them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.headroom", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in (("populations", 40), ("windows", 2), ("seed", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--traces", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/headroom.json"))
    options = parser.parse_args(arguments)
    root, cluster = options.traces or traces_root(), load_cluster(CLUSTER, CONF_DIR)
    found: dict[str, Any] = {"about": {name: getattr(options, name) for name in ("populations", "windows", "seed")}, "known": {}}
    yardstick: Yardstick | None = None
    print(f"{'known':<18} {'light, ratio to the planner':<30} heavy", flush=True)
    for name, world, judge in rows(root, cluster, options):
        result: Played = played(world, judge, options.windows)
        if yardstick is None:
            yardstick, parts = Yardstick(result), energy_kwh(world, judge, options.windows)
        halves = {"light": yardstick.light, "heavy": yardstick.heavy}
        found["known"][name] = {half: yardstick.interval(result, which) for half, which in halves.items()}
        light, heavy = ("{:.3f} [{:.3f}, {:.3f}]".format(*found["known"][name][half]) for half in halves)
        print(f"{name:<18} {light:<30} {heavy}", flush=True)
    found["energy_share"] = {half: {k: float(v[which].sum()) for k, v in parts.items()} for half, which in halves.items()}
    print(f"\n{'energy of':<18} " + " ".join(f"{name:>18}" for name in parts))
    for half, values in found["energy_share"].items():
        values.update({name: value / sum(parts[k][halves[half]].sum() for k in parts) for name, value in values.items()})
        print(f"{half:<18} " + " ".join(f"{100 * value:>16.1f} %" for value in values.values()))
    write_json(options.out, plain(found))
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
