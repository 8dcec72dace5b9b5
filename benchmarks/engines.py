"""``python -m benchmarks.engines``: what it costs to run a backtest on each engine.

The same backtest (made series, one forecaster in chunks) in this process, in processes of this machine and on a Ray started on it; scores
have to be equal bit for bit. Prints and writes as JSON: seconds to start the engine, of the first backtest and of the second (workers
warm), and milliseconds a task that does nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from benchmarks.backtest_scale import write_fleet
from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from models.engine import make_engine
from pipelines.workspace import write_json

ENGINES = {"this process": ("local", 1), "local": ("local", None), "ray": ("ray", None)}


@contextmanager
def _timed(row: dict[str, Any], key: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    row[key] = time.perf_counter() - begun


def nothing(task: int, shared: None) -> int:
    """A task without work."""
    return task


def measure(series: pd.DataFrame, name: str, config: BacktestConfig, kind: str, workers: int, tasks: int) -> tuple[dict[str, Any], Any]:
    """Times of an engine, and the scores that it gave."""
    row: dict[str, Any] = {"workers": workers}
    begun = time.perf_counter()
    with make_engine(kind, workers) as engine:
        row["start_s"] = time.perf_counter() - begun
        for key in ("first_s", "second_s"):
            with _timed(row, key):
                result = run_backtest(series, "10min", [name], config, engine=engine, forecasts="none")
        with _timed(row, "empty_tasks_s"):
            assert sorted(k for k, _ in engine.map(nothing, range(tasks))) == list(range(tasks))
    row["ms_per_task"] = 1000 * row["empty_tasks_s"] / tasks
    scored = result.scores[name]
    return row, (scored.overall["wql"], scored.calibration["wql"], scored.error)


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=64)
    parser.add_argument("--rows", type=int, default=2016)
    parser.add_argument("--chunk", type=int, default=8)
    parser.add_argument("--forecaster", default="arima")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("outputs/engines.json"))
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        file = Path(folder) / "fleet.parquet"
        write_fleet(file, arguments.series, arguments.rows)
        series = pd.read_parquet(file)
    config = BacktestConfig(origins=6, calibration_origins=2, chunk_series=arguments.chunk)
    rows, scores = {}, {}
    print(f"{'engine':<14}{'workers':>8}{'start s':>9}{'first s':>9}{'second s':>10}{'ms a task':>11}")
    for title, (kind, fixed) in ENGINES.items():
        workers = fixed or arguments.workers
        rows[title], scores[title] = measure(series, arguments.forecaster, config, kind, workers, arguments.tasks)
        row = rows[title]
        print(
            f"{title:<14}{workers:>8}{row['start_s']:>9.2f}{row['first_s']:>9.2f}{row['second_s']:>10.2f}{row['ms_per_task']:>11.2f}",
            flush=True,
        )
    same = len(set(scores.values())) == 1
    print(f"scores equal bit for bit: {same}")
    write_json(arguments.out, {"settings": vars(arguments) | {"out": str(arguments.out)}, "engines": rows, "same_scores": same})
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
