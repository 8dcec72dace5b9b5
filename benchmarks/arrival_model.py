"""The arrival model on public job traces: fitted on the first part, its samples compared with that part and with the held-out rest.

python -m benchmarks.arrival_model [--traces DIR] [--names openb gaia philly] [--share 0.6] [--seeds 5] [--out FILE.json]

``first`` and ``rest`` are the trace's two parts, ``model`` the mean over samples as long as the first part, ``poisson`` the same for a
homogeneous Poisson process with jobs drawn one by one. Distances (0 = alike) are to ``first`` and to ``rest``; that of ``first`` to
``rest`` says how far the trace itself moves.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from envs.worlds.arrivals import MONTH_DAYS, ArrivalModel
from envs.worlds.compare import arrival_figures, distances
from pipelines.cli import CONF_DIR
from pipelines.stages.real_traces import load_trace
from pipelines.workspace import write_json

# What comes nearest to a user in each trace: a virtual cluster, a quality of service, nothing.
USERS: dict[str, tuple[str, ...]] = {"openb": ("project",), "gaia": ("project",), "philly": ("team",)}


def poisson_jobs(jobs: pd.DataFrame, start: pd.Timestamp, length_s: float, seed: int) -> pd.DataFrame:
    """Jobs drawn one by one, at times without rhythm or sessions."""
    rng = np.random.default_rng(seed)
    span_s = (jobs["submit_time"].max() - jobs["submit_time"].min()).total_seconds()
    count = rng.poisson(len(jobs) * length_s / span_s)
    table = jobs.iloc[rng.integers(0, len(jobs), count)].reset_index(drop=True)
    table["submit_time"] = start + pd.to_timedelta(np.sort(rng.uniform(0, length_s, count)).astype(np.int64), unit="s")
    return table


def figures(jobs: pd.DataFrame) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(arrival_figures(jobs)).items() if name not in ("hour_share", "weekday_share")}


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def compare(jobs: pd.DataFrame, users: tuple[str, ...], share: float, seeds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of the parts, the model and the Poisson process, and their distances to both parts."""
    begin, end = jobs["submit_time"].min(), jobs["submit_time"].max()
    cut = begin + share * (end - begin)
    first, rest = jobs[jobs["submit_time"] < cut], jobs[jobs["submit_time"] >= cut]
    model = ArrivalModel.fit(first, users=users)
    length_s = (cut - begin).total_seconds()
    drawn = [model.sample(length_s / 86_400 / MONTH_DAYS, seed, start=begin) for seed in range(seeds)]
    poisson = [poisson_jobs(first, begin, length_s, seed) for seed in range(seeds)]
    return {
        "figures": {
            "first": figures(first),
            "rest": figures(rest),
            "model": mean([figures(one) for one in drawn]),
            "poisson": mean([figures(one) for one in poisson]),
        },
        "distances": {
            "first to rest": distances(first, rest),
            "model to first": mean([distances(one, first) for one in drawn]),
            "model to rest": mean([distances(one, rest) for one in drawn]),
            "poisson to first": mean([distances(one, first) for one in poisson]),
            "poisson to rest": mean([distances(one, rest) for one in poisson]),
        },
    }


def main() -> None:
    """Print the comparison and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")))
    parser.add_argument("--names", nargs="+", choices=sorted(USERS), default=list(USERS))
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/arrivals.json"))
    args = parser.parse_args()
    results = {}
    for name in args.names:
        options = yaml.safe_load((CONF_DIR / "trace" / f"{name}.yaml").read_text()).get("options")
        jobs, _ = load_trace(name, args.traces, options)
        results[name] = compare(jobs, USERS[name], args.share, args.seeds)
        for part, rows in results[name].items():
            print(f"\n{name}: {part}\n{pd.DataFrame(rows).T.round(3).to_string()}")
    write_json(args.out, results)
    print(f"\nwritten: {args.out}")


if __name__ == "__main__":
    main()
