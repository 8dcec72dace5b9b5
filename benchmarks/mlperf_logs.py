"""Reads the node power logs of MLPerf Training v4.0, Sustainable Metal Cloud, ``smc-ac-power`` (Apache-2.0).

``c_power/mlperf_train40_smc_1_8node_{watts,nodefiles,phases}.parquet`` of the trace folder: readings about every 2 s, which node file is a
byte-identical copy of which, and the start and stop events of the training logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from envs.power.runs import NodeLog, RunLog, clean_log
from telemetry.errors import InputError

PREFIX = "mlperf_train40_smc_1_8node_"
KEYS = ["system", "benchmark", "run"]


@dataclass(frozen=True)
class LogSet:
    """Runs in order of system, benchmark and name.

    Attributes:
        repeated_runs: runs whose logs repeat another run's byte for byte; left out.
    """

    runs: tuple[RunLog, ...]
    repeated_runs: tuple[str, ...]


def read_runs(folder: Path) -> LogSet:
    """All distinct training runs under ``folder`` (the ``c_power`` folder).

    Raises:
        InputError: a file is not there, or a run has no start or stop event.
    """
    tables = {}
    for name in ("watts", "nodefiles", "phases"):
        file = folder / f"{PREFIX}{name}.parquet"
        if not file.is_file():
            raise InputError("no such file", where=str(file), remedy="give --traces DIR, or set JOULEWISE_TRACES")
        tables[name] = pd.read_parquet(file)
    watts = tables["watts"][tables["watts"]["key"] == "power_reading"]
    readings = dict(iter(watts.groupby([*KEYS, "node"])))
    phases = dict(iter(tables["phases"].groupby(KEYS)))
    runs, repeated, seen = [], [], set()
    for key, files in tables["nodefiles"].groupby(KEYS):
        files = files[files["node"].str.startswith("node_")].sort_values("node")  # sw_*: an estimate of the switches, not a reading
        prints = tuple(files["git_blob_sha"])
        if prints in seen:
            repeated.append("/".join(key))
            continue
        seen.add(prints)
        runs.append(_run(key, files, readings, phases[key]))
    return LogSet(tuple(runs), tuple(repeated))


def _run(key: tuple[str, str, str], files: pd.DataFrame, readings: dict, phases: pd.DataFrame) -> RunLog:
    where = "/".join(key)
    logs: dict[str, NodeLog] = {}
    for row in files.itertuples():
        source = row.same_bytes_as or row.node
        rows = readings[(*key, source)]
        log = clean_log(row.node, rows["time_ms"] / 1000.0, rows["value"], copy_of=row.same_bytes_as, where=where)
        logs[row.node] = log

    def at(event: str) -> float:
        times = phases.loc[phases["key"] == event, "time_ms"]
        if times.empty:
            raise InputError(f"no {event} event", where=where)
        return float(times.iloc[0]) / 1000.0

    starts = phases.loc[phases["key"] == "eval_start", "time_ms"].sort_values() / 1000.0
    stops = phases.loc[phases["key"] == "eval_stop", "time_ms"].sort_values() / 1000.0
    system, benchmark, run = key
    allocation = run.removeprefix("result_").split("-")[0]
    evals = tuple(zip(starts, stops, strict=True))
    return RunLog(system, benchmark, run, allocation, tuple(logs.values()), at("init_start"), at("run_start"), at("run_stop"), evals)
