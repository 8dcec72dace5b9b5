"""``python -m benchmarks.backtest_scale``: the whole backtest on many series, one forecaster at a time.

Makes N series (seeded, a mixture of shapes, scales and flaws), four weeks at ten minutes by default, as one Parquet file with a row group
per thousand of them; then runs ``python -m pipelines.backtest`` on it with each forecaster in a process of its own. Prints and writes as
JSON: seconds, rows per second, CPU seconds of fit, update and predict, and the most memory that the process and its workers held together
(proportional set size, sampled twice a second, so that pages they share count once).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.workspace import write_json

GROUP_SERIES = 1_000
START = pd.Timestamp("2025-03-03")
STEP = pd.Timedelta("10min")
DAY_STEPS = 144
SHAPES = ("daily", "walk", "jumps", "bursts", "zero", "constant", "negative", "office")


def shaped(shape: str, rows: int, rng: np.random.Generator) -> np.ndarray:
    """One series ``[rows]`` of a shape, before its scale."""
    steps = np.arange(rows)
    noise = rng.normal(size=rows)
    day = np.sin(2 * np.pi * (steps / DAY_STEPS + rng.random()))
    if shape == "daily":
        return np.maximum(10 + 4 * day + 0.5 * noise + 0.05 * np.cumsum(rng.normal(size=rows)), 0)
    if shape == "walk":
        return np.maximum(50 + np.cumsum(0.3 * noise), 0)
    if shape == "jumps":
        return 20 + np.abs(np.cumsum(np.where(rng.random(rows) < 0.02, 5 * noise, 0.0)))
    if shape == "bursts":
        return np.where(rng.random(rows) < 0.05, np.exp(noise), 0.0)
    if shape == "negative":
        return 3 * day + noise
    if shape == "office":
        return np.round(8 * np.maximum(day, 0) * ((steps // DAY_STEPS) % 7 < 5) + np.maximum(noise, 0))
    return np.zeros(rows) if shape == "zero" else np.full(rows, 7.0)


def write_fleet(file: Path, series: int, rows: int, seed: int = 0) -> int:
    """Write the series; returns the number of rows. One in eight begins late, one in eight ends early, one in eight has gaps."""
    written = 0
    schema = pa.schema([("unique_id", pa.string()), ("ds", pa.timestamp("ns", "UTC")), ("y", pa.float64())])
    with pq.ParquetWriter(file, schema) as writer:
        for first in range(0, series, GROUP_SERIES):
            parts = [_one(k, rows, seed) for k in range(first, min(first + GROUP_SERIES, series))]
            table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), schema=schema, preserve_index=False)
            writer.write_table(table, row_group_size=len(table))
            written += len(table)
    return written


def _one(number: int, rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng([seed, number])
    y = shaped(SHAPES[number % len(SHAPES)], rows, rng) * 10 ** rng.uniform(-2, 4)
    ds = pd.date_range(START, periods=rows, freq=STEP, tz="UTC")
    flaw = rng.integers(8)
    kept = np.ones(rows, dtype=bool)
    if flaw == 0:
        kept[: rng.integers(rows // 2)] = False
    elif flaw == 1:
        kept[rows - rng.integers(1, rows // 8) :] = False
    elif flaw == 2:
        kept[rng.random(rows) < 0.1] = False
    return pd.DataFrame({"unique_id": f"series-{number:06d}", "ds": ds[kept], "y": y[kept]})


def measured(command: list[str], folder: Path, log: Path) -> dict[str, float]:
    """Run a command: its exit code, seconds, and the most memory that it and its children held, in MB; ``log`` gets what it says."""
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    peak, over = [0.0], threading.Event()
    with log.open("w") as stream:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=stream, stderr=stream)
        watcher = threading.Thread(target=_watch, args=(process, peak, over), daemon=True)
        watcher.start()
        code = process.wait()
        over.set()
        watcher.join()
    return {"exit_code": code, "elapsed_s": time.perf_counter() - begun, "peak_memory_mb": peak[0] / 1e6}


def _watch(process: psutil.Process, peak: list[float], over: threading.Event) -> None:
    while not over.wait(0.5):
        held = 0
        try:
            tree = [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
        for member in tree:
            try:
                held += member.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], held)


def run_member(name: str, file: Path, rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Backtest one forecaster beside the two naives that every backtest scores, and what it took."""
    out = file.with_name(f"{name}.json")
    command = [sys.executable, "-m", "pipelines.backtest", f"series={file}", "freq=10min", f"forecasters=[{name}]", f"out={out}"]
    command += [
        f"engine={arguments.engine}",
        f"engine.workers={arguments.workers}",
        f"work_dir={file.parent / 'work'}",
        *arguments.overrides,
    ]
    taken = measured(command, Path.cwd(), file.with_name(f"{name}.log"))
    document = json.loads(out.read_text()) if out.exists() else {}
    entry = document.get("forecasters", {}).get(name, {"status": "failed", "error": f"exit code {taken['exit_code']}"})
    told = {key: entry.get(key) for key in ("status", "error", "wql", "coverage80", "crossings", "cpu_s", "skill")}
    return {
        "forecaster": name,
        **told,
        **taken,
        "rows_per_s": rows / taken["elapsed_s"],
        "n_origins": document.get("n_origins"),
        "fallbacks": len(entry.get("fallbacks", {})),
    }


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    cpu = row["cpu_s"] or {}
    numbers = " ".join(f"{cpu.get(kind, float('nan')):>9.1f}" for kind in ("fit", "update", "predict"))
    ratio = (row["skill"] or {}).get("wql_ratio")
    share = "" if ratio is None else f"{ratio:.3f}"
    told = f"{row['forecaster']:<22}{row['elapsed_s']:>9.1f}{row['rows_per_s']:>12.0f} {numbers}{row['peak_memory_mb']:>10.0f}{share:>10}"
    return told + (f"  {row['error']}" if row["error"] else "")


def main() -> None:
    """Make, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=28 * DAY_STEPS, help="of a whole series; four weeks by default")
    parser.add_argument("--members", default="persistence,seasonal_naive,empirical_persistence,lightgbm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="local", choices=("local", "ray"))
    parser.add_argument("--folder", type=Path, default=Path("outputs/backtest_scale"))
    parser.add_argument("--out", type=Path, default=Path("outputs/backtest_scale/result.json"))
    parser.add_argument("overrides", nargs="*", help="further key=value for pipelines.backtest")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = (arguments.folder / f"fleet_{arguments.series}x{arguments.rows}.parquet").absolute()
    rows = pq.ParquetFile(file).metadata.num_rows if file.exists() else write_fleet(file, arguments.series, arguments.rows)
    print(f"{arguments.series} series, {rows} rows, {arguments.workers} {arguments.engine} workers")
    print(f"{'forecaster':<22}{'seconds':>9}{'rows/s':>12} {'fit CPU':>9} {'upd CPU':>9} {'pred CPU':>9}{'peak MB':>10}{'WQL/naive':>10}")
    results = []
    for name in arguments.members.split(","):
        results.append(run_member(name, file, rows, arguments))
        print(line(results[-1]), flush=True)
        write_json(arguments.out, {"series": arguments.series, "rows": rows, "workers": arguments.workers, "forecasters": results})


if __name__ == "__main__":
    main()
