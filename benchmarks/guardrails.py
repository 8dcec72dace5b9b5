"""Guardrails under continuous looking: false stops of equal arms, and jobs until a worse arm is stopped.

python -m benchmarks.guardrails [--experiments 400] [--jobs 6000] [--seed 1] [--out outputs/guardrails.json]

Jobs come one by one, half to each arm, cost lognormally (mean 1 USD, shape 1) and violate their objectives by chance.
Every rule of ``registry.guardrails`` but the hard limits is looked at after every job.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.evaluation_report import plain
from pipelines.workspace import write_json
from registry.guardrails import GuardConfig, watch

CASES: dict[str, dict[str, float]] = {
    "equal, 2 % violate": {"rate": 0.02, "watched": 0.02, "cost": 1.0},
    "equal, 10 % violate": {"rate": 0.10, "watched": 0.10, "cost": 1.0},
    "2 % to 5 % violate": {"rate": 0.02, "watched": 0.05, "cost": 1.0},
    "2 % to 10 % violate": {"rate": 0.02, "watched": 0.10, "cost": 1.0},
    "10 % to 20 % violate": {"rate": 0.10, "watched": 0.20, "cost": 1.0},
    "20 % dearer": {"rate": 0.02, "watched": 0.02, "cost": 1.2},
    "50 % dearer": {"rate": 0.02, "watched": 0.02, "cost": 1.5},
    "twice as dear": {"rate": 0.02, "watched": 0.02, "cost": 2.0},
}
SPREAD = 1.0


def outcomes(case: dict[str, float], jobs: int, seed: int) -> pd.DataFrame:
    """One experiment."""
    rng = np.random.default_rng(seed)
    watched = rng.random(jobs) < 0.5
    cost = rng.lognormal(-(SPREAD**2) / 2, SPREAD, jobs) * np.where(watched, case["cost"], 1.0)
    late = rng.random(jobs) < np.where(watched, case["watched"], case["rate"])
    moment = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(jobs), unit="min")
    return pd.DataFrame({"time": moment, "watched": watched, "cost_usd": cost, "violated": late})


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each case."""
    config = GuardConfig(hard_violation_rate=1.0)
    rows = []
    for name, case in CASES.items():
        found = [watch(outcomes(case, options.jobs, 10**6 * options.seed + k), config).breach for k in range(options.experiments)]
        at = np.array([np.inf if breach is None else breach.job + 1 for breach in found])
        rows.append(
            {
                "case": name,
                "stopped": int(np.isfinite(at).sum()),
                "of": len(at),
                "jobs_median": float(np.median(at)),
                "jobs_90": float(np.quantile(at, 0.9, method="higher")),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print and write what was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guardrails", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in (("experiments", 400), ("jobs", 6000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("outputs/guardrails.json"))
    options = parser.parse_args(arguments)
    rows = measure(options)
    print(pd.DataFrame(rows).to_string(index=False))
    write_json(options.out, plain(rows))
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
