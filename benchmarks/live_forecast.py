"""One run of ``pipelines.forecast`` with many series, by forecaster; ``python -m benchmarks.live_forecast``.

For each forecaster: a registry with it as champion, trained on all but the last day of generated series; then runs as they would come one
after another, each in a process of its own with one step more. Printed and written as JSON: seconds of wall clock and of CPU of a run after
imports (median over the runs), its phases, seconds of imports, and seconds of the whole process. Other work on the machine is in
the wall clock and not in the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.live_registry import demand_series, promote_forecaster
from models.catalog import FORECASTERS, make_forecaster
from pipelines.workspace import write_json
from registry.tracking import open_tracking

MEMBERS = tuple(
    name for name in ("persistence", "empirical_persistence", "seasonal_naive", "lightgbm", "lstm", "ensemble") if name in FORECASTERS
)
QUICK = {"lightgbm": {"max_train_rows": 20_000}, "lstm": {"epochs": 2, "max_windows": 2_000}}  # the fit is not what is measured
CHILD = """
import json, sys, time
begun, cpu = time.perf_counter(), time.process_time()
from pipelines.cli import compose_config, quiet_libraries
from pipelines.forecast import forecast_config, run_once
config = forecast_config(compose_config("forecast", sys.argv[1:]))
quiet_libraries()
imported, cpu_imported = time.perf_counter(), time.process_time()
report, = run_once(config)
ended = {"run_s": time.perf_counter() - imported, "run_cpu_s": time.process_time() - cpu_imported}
imports = {"import_s": imported - begun, "import_cpu_s": cpu_imported - cpu}
print(json.dumps({**ended, **imports, "status": report.status, "rows": report.rows, "phases": report.seconds, "alerts": report.alerts}))
"""


def measured(name: str, n_series: int, n_rows: int, runs: int, history_steps: int) -> dict[str, Any]:
    """Runs of one forecaster as champion; ``history_steps`` rows are observed between training and the first run."""
    series = demand_series(n_series, n_rows + history_steps + runs)
    times = sorted(series["ds"].unique())
    with TemporaryDirectory(prefix="live-forecast-") as scratch:
        root = Path(scratch)
        series.to_parquet(root / "series.parquet", index=False)
        begun = time.perf_counter()
        forecaster = make_forecaster(name, freq="10min", horizon=18, **QUICK.get(name, {}))
        forecaster.fit(series[series["ds"] < times[n_rows]])
        fit_s = time.perf_counter() - begun
        uri = f"sqlite:///{root}/mlflow.db"
        promote_forecaster(open_tracking(uri), forecaster, "workload-forecaster", root / "package")
        arguments = [
            f"registry.tracking_uri={uri}",
            f"series={root}/series.parquet",
            "targets=workload",
            f"state={root}/state",
            f"out={root}/lake",
        ]
        results = [_child(root, [*arguments, f"now={times[n_rows + history_steps + k - 1].isoformat()}"]) for k in range(runs + 1)]
    first, *rest = results  # the first run makes the state
    keys = ("run_s", "run_cpu_s", "import_s", "import_cpu_s", "process_s")
    phases = {phase: statistics.median(r["phases"][phase] for r in rest) for phase in rest[0]["phases"]}
    return {
        "fit_s": fit_s,
        "first_run_s": first["run_s"],
        "first_run_cpu_s": first["run_cpu_s"],
        **{key: statistics.median(r[key] for r in rest) for key in keys},
        "phases_s": phases,
        "rows": rest[-1]["rows"],
        "alerts": sorted({alert for r in rest for alert in r["alerts"]}),
    }


def _child(root: Path, arguments: list[str]) -> dict[str, Any]:
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result = json.loads(done.stdout.splitlines()[-1])
    if result["status"] != "written":
        raise RuntimeError(f"{result['status']}: {result['alerts']}")
    return {**result, "process_s": time.perf_counter() - begun}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1300, help="rows of each series in training")
    parser.add_argument("--since", type=int, default=144, help="rows of each series observed between training and the first run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=list(FORECASTERS))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/live_forecast.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"series": arguments.series, "cores": os.cpu_count(), "load_before": os.getloadavg()[0], "members": {}}
    print(f"{arguments.series:,} series, 18 steps; load {result['load_before']:.1f} on {result['cores']} cores")
    print(f"{'forecaster':<24}{'run s':>8}{'run CPU s':>11}{'imports CPU s':>15}{'process s':>11}  phases, s")
    for name in arguments.members:
        row = result["members"][name] = measured(name, arguments.series, arguments.rows, arguments.runs, arguments.since)
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["phases_s"].items())
        print(
            f"{name:<24}{row['run_s']:>8.2f}{row['run_cpu_s']:>11.2f}{row['import_cpu_s']:>15.2f}{row['process_s']:>11.2f}  {phases}",
            flush=True,
        )
    result["load_after"] = os.getloadavg()[0]
    write_json(arguments.out, result)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
