"""Canonical tables: columns, units and limits, checked where data enters.

Time is UTC and tz-aware (``datetime64[ns, UTC]``); the unit is part of a column's name. Text columns hold '' (samples) or None (jobs) where
nothing is known. ``samples.service`` and the ``pool`` columns go beyond what an exporter knows of a device: the service that a request
counter belongs to, and the pool of the inventory; ``samples.filled`` says how a value that was not measured came about (``hold``,
``linear``; ``telemetry/policy.py``). ``jobs.workload`` names what a job computes (a network whose speed was measured on
several GPU models), ``checkpoint_s`` is the time between its checkpoints and ``restart_s`` that of loading one, ``data_gib`` what has to be
sent when it runs elsewhere than at ``data_site``, and ``nodes`` the nodes that it ran on, with spaces between them. ``reference`` holds
published numbers that have no time: measurements in a laboratory, coefficients, distributions; ``item`` is ``key=value`` pairs joined by
commas, the unit is that of the source. The table ``forecasts`` is written by commands (``telemetry/forecasts.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.units import SAMPLE_METRICS

SAMPLE_TEXT: tuple[str, ...] = (
    "metric", "unit", "site", "pool", "node", "device", "service", "pod_uid", "namespace", "team", "project", "source", "filled",
)  # fmt: skip
SAMPLE_COLUMNS: tuple[str, ...] = ("time", "metric", "value", *SAMPLE_TEXT[1:])
JOB_REQUIRED: tuple[str, ...] = ("job_id", "submit_time", "duration_s", "gpus", "workers", "workload_class", "team", "project")
JOB_TIMES: tuple[str, ...] = ("submit_time", "start_time", "end_time", "deadline")
JOB_NUMBERS: tuple[str, ...] = (
    "duration_s", "gpus", "workers", "cpus", "memory_gib", "requested_duration_s", "max_watts", "priority", "gpu_utilization",
    "checkpoint_s", "restart_s", "data_gib",
)  # fmt: skip
JOB_TEXT: tuple[str, ...] = (
    "job_id", "workload_class", "team", "project", "gpu_model", "pool", "state", "source", "workload", "data_site", "nodes",
)  # fmt: skip
JOB_STATES: tuple[str, ...] = ("pending", "running", "completed", "failed", "cancelled", "timeout")
JOB_COLUMNS: tuple[str, ...] = (
    *JOB_REQUIRED, "start_time", "end_time", "cpus", "memory_gib", "requested_duration_s", "deadline", "preemptible", "max_watts",
    "gpu_model", "priority", "gpu_utilization", "workload", "checkpoint_s", "restart_s", "data_gib", "data_site", "pool", "state", "source",
    "nodes",
)  # fmt: skip
GRID_NUMBERS: tuple[str, ...] = ("price_usd_per_kwh", "carbon_g_per_kwh", "renewable_fraction", "temperature_c")
GRID_COLUMNS: tuple[str, ...] = ("time", "site", *GRID_NUMBERS, "source")
REFERENCE_COLUMNS: tuple[str, ...] = ("source", "item", "quantity", "value", "unit")
FORECAST_QUANTILES: tuple[str, ...] = ("q10", "q20", "q30", "q40", "q50", "q60", "q70", "q80", "q90")
FORECAST_COLUMNS: tuple[str, ...] = ("unique_id", "issued_at", "ds", *FORECAST_QUANTILES, "model", "version")
# Of the tables that have a time at all.
TIME_COLUMN: dict[str, str] = {"samples": "time", "jobs": "submit_time", "grid": "time", "samples_10min": "time", "samples_1h": "time"}
# Samples made coarser: what the value was in a bin, and how many seconds of it the samples stand for (telemetry/lake/compaction.py).
BIN_NUMBERS: tuple[str, ...] = ("min", "mean", "max", "last", "seconds")
BIN_COLUMNS: tuple[str, ...] = ("time", "metric", *BIN_NUMBERS, "count", *SAMPLE_TEXT[1:-1])  # filled or measured is not kept apart
COMPACTED: dict[str, int] = {"samples_10min": 600, "samples_1h": 3600}  # width of a bin, s
UTC = "datetime64[ns, UTC]"


def _text(name: str, *, nullable: bool = False, allowed: tuple[str, ...] = ()) -> pa.Column:
    checks = [pa.Check(_is_text, name=f"{name} is text", element_wise=False)]
    if allowed:
        checks.append(pa.Check.isin(allowed))
    return pa.Column(None, checks, nullable=nullable)


def _is_text(values: pd.Series) -> bool:
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = pd.Series(values.cat.categories)
    return len(values) == 0 or all(isinstance(v, str) for v in values.dropna().unique())


def _number(*, low: float | None = None, high: float | None = None, nullable: bool = True, inf: bool = False) -> pa.Column:
    checks = [] if inf else [pa.Check(lambda v: ~np.isinf(v), name="finite")]
    if low is not None:
        checks.append(pa.Check.ge(low))
    if high is not None:
        checks.append(pa.Check.le(high))
    return pa.Column(float, checks, nullable=nullable)


def _no_future_end(jobs: pd.DataFrame) -> pd.Series:
    return jobs["end_time"].isna() | jobs["start_time"].isna() | (jobs["end_time"] >= jobs["start_time"])


def _ordered(forecasts: pd.DataFrame) -> pd.Series:
    quantiles = forecasts[list(FORECAST_QUANTILES)].to_numpy()
    return pd.Series((np.diff(quantiles, axis=1) >= 0).all(axis=1), index=forecasts.index)


SAMPLES = pa.DataFrameSchema(
    {
        "time": pa.Column(UTC),
        "value": _number(nullable=False),
        **{name: _text(name, allowed=SAMPLE_METRICS if name == "metric" else ()) for name in SAMPLE_TEXT},
    },
    strict=True,
)
JOBS = pa.DataFrameSchema(
    {
        "job_id": pa.Column(None, [pa.Check(_is_text, name="job_id is text")], unique=True),
        **{name: pa.Column(UTC, nullable=name != "submit_time") for name in JOB_TIMES},
        "duration_s": _number(low=0),
        "gpus": _number(low=0, nullable=False),
        "workers": _number(low=1, nullable=False),
        "cpus": _number(low=0),
        "memory_gib": _number(low=0),
        "requested_duration_s": _number(low=0),
        "max_watts": _number(low=0, inf=True),
        "priority": _number(),
        "gpu_utilization": _number(low=0, high=1),
        **{name: _number(low=0) for name in ("checkpoint_s", "restart_s", "data_gib")},
        "preemptible": pa.Column("boolean", nullable=True),
        "workload_class": _text("workload_class", nullable=True, allowed=WORKLOAD_CLASSES),
        "state": _text("state", nullable=True, allowed=JOB_STATES),
        **{
            name: _text(name, nullable=True)
            for name in ("team", "project", "gpu_model", "pool", "source", "workload", "data_site", "nodes")
        },
    },
    checks=pa.Check(_no_future_end, name="end_time is not before start_time"),
    strict=True,
)
GRID = pa.DataFrameSchema(
    {
        "time": pa.Column(UTC),
        "site": _text("site"),
        "price_usd_per_kwh": _number(nullable=False),
        "carbon_g_per_kwh": _number(low=0, nullable=False),
        "renewable_fraction": _number(low=0, high=1),
        "temperature_c": _number(low=-90, high=70),
        "source": _text("source"),
    },
    strict=True,
    unique=["time", "site"],
)
REFERENCE = pa.DataFrameSchema(
    {name: _number(nullable=False) if name == "value" else _text(name) for name in REFERENCE_COLUMNS},
    strict=True,
    unique=["source", "item", "quantity"],
)
SERIES = pa.DataFrameSchema({"unique_id": _text("unique_id"), "ds": pa.Column("datetime64[ns]"), "y": _number(nullable=False)}, strict=True)
FORECASTS = pa.DataFrameSchema(
    {
        "unique_id": _text("unique_id"),
        "issued_at": pa.Column(UTC),
        "ds": pa.Column(UTC),
        **{name: _number(nullable=False) for name in FORECAST_QUANTILES},
        "model": _text("model"),
        "version": _text("version"),
    },
    checks=[
        pa.Check(lambda table: table["ds"] > table["issued_at"], name="ds is after issued_at"),
        pa.Check(_ordered, name="quantiles do not cross"),
    ],
    strict=True,
    unique=["unique_id", "issued_at", "ds", "version"],
)
SCHEMAS: dict[str, pa.DataFrameSchema] = {"samples": SAMPLES, "jobs": JOBS, "grid": GRID, "reference": REFERENCE}
COLUMNS: dict[str, tuple[str, ...]] = {"samples": SAMPLE_COLUMNS, "jobs": JOB_COLUMNS, "grid": GRID_COLUMNS}
COLUMNS["reference"] = REFERENCE_COLUMNS
OUTPUTS: dict[str, pa.DataFrameSchema] = {"forecasts": FORECASTS}  # tables that are written by commands, not read from exports
COLUMNS["forecasts"] = FORECAST_COLUMNS
COLUMNS.update(dict.fromkeys(COMPACTED, BIN_COLUMNS))


def validate(table: str, frame: pd.DataFrame, *, where: str) -> pd.DataFrame:
    """Check a canonical table and return it with its columns in the canonical order.

    Raises:
        InputError: names the column, the row and the value.
    """
    schema = (SCHEMAS | OUTPUTS)[table]
    try:
        schema.validate(frame)
    except pa.errors.SchemaError as error:
        raise InputError(*_told(error, frame), where=f"{where}, table '{table}'") from error
    return frame[list(COLUMNS[table])]


def _told(error: pa.errors.SchemaError, frame: pd.DataFrame) -> tuple[str]:
    cases = error.failure_cases
    column = getattr(error.schema, "name", None)
    check = error.check if isinstance(error.check, str) else getattr(error.check, "name", None) or getattr(error.check, "error", "")
    if isinstance(cases, pd.DataFrame) and "index" in cases and len(cases) and pd.notna(cases["index"].iloc[0]):
        row, value = cases["index"].iloc[0], cases["failure_case"].iloc[0]
        return (f"column {column!r}, row {row}: {value} fails {check} ({len(cases)} row(s) of {len(frame)})",)
    first = str(error).splitlines()[0]
    return (f"column {column!r}: {first}" if column and column not in first else first,)


def empty(table: str) -> pd.DataFrame:
    """A canonical table without rows, with its dtypes."""
    kinds: dict[str, Callable[[], Any]] = {}
    for name in COLUMNS[table]:
        if name in ("time", "issued_at", "ds", *JOB_TIMES):
            kinds[name] = lambda: pd.Series(dtype=UTC)
        elif name == "count":
            kinds[name] = lambda: pd.Series(dtype="int64")
        elif name == "value" or name in (*JOB_NUMBERS, *GRID_NUMBERS, *FORECAST_QUANTILES, *BIN_NUMBERS):
            kinds[name] = lambda: pd.Series(dtype=float)
        elif name == "preemptible":
            kinds[name] = lambda: pd.Series(dtype="boolean")
        else:
            kinds[name] = lambda: pd.Series(dtype=object)
    return pd.DataFrame({name: make() for name, make in kinds.items()})
