"""One run of ``pipelines.forecast`` with many series, by forecaster; ``python -m benchmarks.live_forecast``.

For each forecaster: a registry with it as champion, trained on all but the last day of generated series; then runs as they would come one
after another. Every process makes two: as started from cron, and the next of a loop (``every_s=``), which has its libraries loaded. Printed
and written as JSON, medians over the processes: seconds of wall clock and of CPU of both after imports, phases of the second, CPU seconds
of imports, and seconds from the start of the process to the end of its first run. Other work on the machine is in the wall clock only.
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

MEMBERS = ("persistence", "empirical_persistence", "seasonal_naive", "lightgbm", "lstm", "ensemble")
LIGHT, SHORT = {"max_train_rows": 20_000}, {"epochs": 2, "max_windows": 2_000}  # the fit is not what is measured
QUICK: dict[str, dict[str, Any]] = {
    "lightgbm": LIGHT,
    "lstm": SHORT,
    "ensemble": {"member_options": {"lightgbm": LIGHT, "lstm": SHORT}},
}
CHILD = """
import json, sys, time
begun, cpu = time.perf_counter(), time.process_time()
from pipelines.cli import compose_config, quiet_libraries
from pipelines.forecast import forecast_config, run_once
quiet_libraries()
result = {"import_s": time.perf_counter() - begun, "import_cpu_s": time.process_time() - cpu}
started, *arguments, first, second = sys.argv[1:]
for name, now in (("run", first), ("loop", second)):
    config = forecast_config(compose_config("forecast", [*arguments, now]))
    begun, cpu = time.perf_counter(), time.process_time()
    report, = run_once(config)
    result |= {f"{name}_s": time.perf_counter() - begun, f"{name}_cpu_s": time.process_time() - cpu}
    result.setdefault("process_s", time.time() - float(started))
    result |= {"status": report.status, "rows": report.rows, "phases": report.seconds, "alerts": report.alerts}
print(json.dumps(result))
"""


def measured(name: str, n_series: int, n_rows: int, processes: int, history_steps: int) -> dict[str, Any]:
    """Runs of one forecaster as champion; ``history_steps`` rows are observed between training and the first run."""
    series = demand_series(n_series, n_rows + history_steps + 2 * processes + 1)
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
        fixed = [f"registry.tracking_uri={uri}", f"series={root}/series.parquet", "targets=workload", f"state={root}/state"]
        nows = [f"now={time.isoformat()}" for time in times[n_rows + history_steps - 1 :]]
        made = [_child(root, [*fixed, f"out={root}/lake"], nows[2 * k : 2 * k + 2]) for k in range(processes + 1)]
    first, *rest = made  # the very first run makes the state
    keys = ("run_s", "run_cpu_s", "loop_s", "loop_cpu_s", "import_s", "import_cpu_s", "process_s")
    return {
        "fit_s": fit_s,
        "very_first_run_s": first["run_s"],
        "very_first_run_cpu_s": first["run_cpu_s"],
        **{key: statistics.median(r[key] for r in rest) for key in keys},
        "phases_s": {phase: statistics.median(r["phases"][phase] for r in rest) for phase in rest[0]["phases"]},
        "rows": rest[-1]["rows"],
        "alerts": sorted({alert for r in rest for alert in r["alerts"]}),
    }


def _child(root: Path, arguments: list[str], nows: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", CHILD, str(time.time()), *arguments, *nows]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    result = json.loads(done.stdout.splitlines()[-1])
    if result["status"] != "written":
        raise RuntimeError(f"{result['status']}: {result['alerts']}")
    return result


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1300, help="rows of each series in training")
    parser.add_argument("--since", type=int, default=144, help="rows of each series observed between training and the first run")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=list(FORECASTERS))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/live_forecast.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {"series": arguments.series, "cores": os.cpu_count(), "load_before": os.getloadavg()[0], "members": {}}
    print(f"{arguments.series:,} series, 18 steps; load {result['load_before']:.1f} on {result['cores']} cores")
    print(f"{'forecaster':<23}{'run s':>7}{'CPU s':>7}{'loop s':>8}{'CPU s':>7}{'imports CPU s':>15}{'process s':>11}  phases (loop), s")
    for name in arguments.members:
        row = result["members"][name] = measured(name, arguments.series, arguments.rows, arguments.processes, arguments.since)
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["phases_s"].items())
        print(
            f"{name:<23}{row['run_s']:>7.2f}{row['run_cpu_s']:>7.2f}{row['loop_s']:>8.2f}{row['loop_cpu_s']:>7.2f}"
            f"{row['import_cpu_s']:>15.2f}{row['process_s']:>11.2f}  {phases}",
            flush=True,
        )
    result["load_after"] = os.getloadavg()[0]
    write_json(arguments.out, result)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
