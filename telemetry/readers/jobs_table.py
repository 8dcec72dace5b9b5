"""A canonical jobs table of one's own, CSV (plain or gzipped) or Parquet: nothing is repaired, everything is checked."""

from __future__ import annotations

import difflib
import io
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.jobs import flag
from telemetry.quality import QualityReport
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text
from telemetry.schema import JOB_COLUMNS, JOB_NUMBERS, JOB_REQUIRED, JOB_STATES, JOB_TEXT, JOB_TIMES, validate
from telemetry.times import utc_column

# Column -> (lowest, whether exactly that is allowed, highest, words for the error).
LIMITS: dict[str, tuple[float, bool, float, str]] = {
    "duration_s": (0, True, np.inf, "0 or more seconds"),
    "gpus": (0, False, np.inf, "above 0: a share of one GPU, or whole GPUs"),
    "workers": (1, True, np.inf, "a whole number from 1"),
    "cpus": (0, True, np.inf, "0 or more"),
    "memory_gib": (0, True, np.inf, "0 or more"),
    "requested_duration_s": (0, True, np.inf, "0 or more seconds"),
    "max_watts": (0, False, np.inf, "above 0 W"),
    "gpu_utilization": (0, True, 1, "a share of 0 to 1"),
    "checkpoint_s": (0, True, np.inf, "0 (none) or more seconds"),
    "restart_s": (0, True, np.inf, "0 or more seconds"),
    "data_gib": (0, True, np.inf, "0 or more GiB"),
}
NEEDED = tuple(name for name in JOB_REQUIRED if name not in ("team", "project", "workload_class"))


class JobsTableReader:
    """See the module."""

    name = "jobs_table"
    reads = "canonical jobs table (.csv, .csv.gz, .parquet)"
    tested = "a table made in its documented form, damaged in many ways"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [Mapped("every column by its name", "jobs", "in the name")]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        frame, unread = read_jobs_table(path, source=context.source)
        quality = QualityReport()
        for name in unread:
            quality.note(context.source, f"column '{name}', which is not read")
        return ReadResult({"jobs": frame}, quality)


def read_jobs_table(path: Path, *, source: str = "") -> tuple[pd.DataFrame, list[str]]:
    """Canonical jobs of a table, and its columns that are not read; optional columns that are absent are blank.

    Raises:
        InputError: unreadable, a missing column, one whose name is almost that of an absent one (a misspelt limit must not be ignored), or
            a value that cannot be; names column, row (from 1) and value.
    """
    where = str(path)
    frame = _load(path)
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=where, allowed=", ".join(JOB_COLUMNS))
    unknown = [str(name) for name in frame if name not in JOB_COLUMNS]
    absent = [name for name in JOB_COLUMNS if name not in frame]
    for name in unknown:
        if meant := difflib.get_close_matches(name.lower(), absent, n=1, cutoff=0.85):
            raise InputError(f"unknown column {name}", where=where, allowed=", ".join(JOB_COLUMNS), remedy=f"rename it to {meant[0]}")
    if frame.empty:
        raise InputError("no rows", where=where, remedy="give at least one job")
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return _checked(frame.reindex(columns=list(JOB_COLUMNS)), where, source or path.name), unknown


def _load(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot be read: {str(error).splitlines()[0]}", where=str(path), remedy="is it a whole Parquet file?"
            ) from error
    try:
        return pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False, na_values=[""])
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"no CSV: {str(error).strip()}", where=str(path)) from error


def _checked(frame: pd.DataFrame, where: str, source: str) -> pd.DataFrame:
    for name in JOB_TIMES:
        frame[name] = utc_column(frame[name], where=where, nullable=name != "submit_time")
    for name in JOB_NUMBERS:
        frame[name] = _numbers(frame, name, where)
    for name in JOB_TEXT:
        text = frame[name].astype(object)
        frame[name] = text.where(text.notna(), None).map(lambda v: None if v is None or v == "" else str(v))
    for name, allowed in (("workload_class", WORKLOAD_CLASSES), ("state", JOB_STATES)):
        _refuse(frame, name, frame[name].notna() & ~frame[name].isin(allowed), where, ", ".join(allowed))
    _refuse(frame, "job_id", frame["job_id"].isna() | frame["job_id"].duplicated(), where, "a text that occurs once")
    _refuse(frame, "workers", frame["workers"] % 1 != 0, where, LIMITS["workers"][3])
    _refuse(frame, "gpus", (frame["gpus"] > 1) & (frame["gpus"] % 1 != 0), where, LIMITS["gpus"][3])
    _refuse(frame, "end_time", frame["end_time"] < frame["start_time"], where, "not before start_time")
    given = frame["preemptible"]
    frame["preemptible"] = given.map(flag, na_action="ignore").astype("boolean")
    _refuse(frame.assign(preemptible=given), "preemptible", given.notna() & frame["preemptible"].isna(), where, "true or false")
    frame["source"] = source
    frame = frame.sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)
    return validate("jobs", frame, where=where)


def _numbers(frame: pd.DataFrame, name: str, where: str) -> pd.Series:
    values = pd.to_numeric(frame[name], errors="coerce").astype(float)
    _refuse(frame, name, frame[name].notna() & values.isna(), where, "a number")
    if name in NEEDED:
        _refuse(frame, name, values.isna(), where, "a number in every row")
    if name in LIMITS:
        low, at_low, high, words = LIMITS[name]
        wrong = (values < low) | (values > high) | (np.isinf(values) if name != "max_watts" else False)
        _refuse(frame, name, wrong if at_low else wrong | (values == low), where, words)
    return values


def _refuse(frame: pd.DataFrame, name: str, wrong: pd.Series, where: str, allowed: str) -> None:
    if wrong.any():
        row = wrong.idxmax()
        value = frame.loc[row, name]
        told = repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, (int, float)) else str(value)
        raise InputError(f"column '{name}', row {row}: {told} ({int(wrong.sum())} row(s))", where=where, allowed=allowed)
