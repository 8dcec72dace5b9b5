"""Public request traces as request rates: ``time`` (begin of a step, UTC), ``service``, ``requests_per_s``.

Known flaws of each source are in ``conf/trace/requests``; none of the data is part of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.readers.public_traces import read_servegen_rates
from telemetry.times import utc_column

SERVEGEN_STEP_S = 600
FUNCTION_STEP_S = 60


def read_servegen(paths: Sequence[Path], start: pd.Timestamp, step_s: int) -> pd.DataFrame:
    """Rates of ServeGen's clients (``client-05``, ...) and their sum (``total``) in the steps of 600 s of the source."""
    _only(step_s, SERVEGEN_STEP_S, "ServeGen")
    series, _ = read_servegen_rates(paths[0], start=start, total=True)
    return pd.DataFrame(
        {
            "time": pd.to_datetime(series["ds"], utc=True) - pd.Timedelta(seconds=SERVEGEN_STEP_S),
            "service": series["unique_id"].str.removeprefix("request_rate/"),
            "requests_per_s": series["y"].astype(float),
        }
    )


def read_llm_events(paths: Sequence[Path], start: pd.Timestamp, step_s: int) -> pd.DataFrame:
    """Requests of Azure's LLM inference, one file a service (``code``, ``conv``); ``start`` stands for the first step of the earliest."""
    times = {path.stem.rpartition("_")[2]: utc_column(_read(path, ("TIMESTAMP",))["TIMESTAMP"], where=str(path)) for path in paths}
    seconds = {name: (column - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1) for name, column in times.items()}
    return counted({name: column.to_numpy() for name, column in seconds.items()}, start, step_s)


def read_mooncake(paths: Sequence[Path], start: pd.Timestamp, step_s: int) -> pd.DataFrame:
    """Requests of Mooncake's trace (``mooncake``), whose times are milliseconds."""
    return counted({"mooncake": _read(paths[0], ("timestamp",))["timestamp"].to_numpy() / 1000.0}, start, step_s)


def read_functions(paths: Sequence[Path], start: pd.Timestamp, step_s: int) -> pd.DataFrame:
    """Invocations of Azure's functions by minute; a service is the first eight characters of the function's hash."""
    _only(step_s, FUNCTION_STEP_S, "Azure Functions")
    raw = pd.read_csv(paths[0])
    minutes = [name for name in raw.columns if str(name).isdigit()]
    long = raw.melt(id_vars="HashFunction", value_vars=minutes, var_name="minute", value_name="count")
    shift = pd.to_timedelta((long["minute"].astype(int) - 1) * FUNCTION_STEP_S, unit="s")
    return pd.DataFrame(
        {"time": start + shift, "service": long["HashFunction"].astype(str).str[:8], "requests_per_s": long["count"] / FUNCTION_STEP_S}
    )


REQUEST_TRACES: dict[str, tuple[Callable[[Sequence[Path], pd.Timestamp, int], pd.DataFrame], int]] = {
    "servegen_m_small": (read_servegen, SERVEGEN_STEP_S),
    "servegen_mm_image": (read_servegen, SERVEGEN_STEP_S),
    "azure_llm_2023": (read_llm_events, 60),
    "mooncake": (read_mooncake, 60),
    "azure_functions_2019_example": (read_functions, FUNCTION_STEP_S),
}


def read_request_rates(name: str, paths: Sequence[Path], start: pd.Timestamp | str, step_s: int | None = None) -> pd.DataFrame:
    """Request rates of a public trace (a name of ``conf/trace/requests``).

    Args:
        paths: its files, in the order of its configuration.
        start: UTC time that stands for the trace's first step.
        step_s: length of a step for traces of single requests (60 by default); the others have their own.

    Raises:
        InputError: unknown name, missing file or column, or a step that the source does not have.
    """
    if name not in REQUEST_TRACES:
        raise InputError(f"no request trace '{name}'", where="rates", allowed=", ".join(REQUEST_TRACES))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError("no such file", where=missing[0], remedy="set JOULEWISE_TRACES to the folder of the public traces")
    begin = pd.Timestamp(start)
    begin = begin.tz_localize("UTC") if begin.tzinfo is None else begin.tz_convert("UTC")
    reader, default_s = REQUEST_TRACES[name]
    table = reader(paths, begin, step_s or default_s)
    return table.sort_values(["service", "time"], kind="stable", ignore_index=True)


def counted(seconds: dict[str, np.ndarray], start: pd.Timestamp, step_s: int) -> pd.DataFrame:
    """Rates of requests that came at ``seconds`` (any zero), in whole steps from the first request of all on; the last part is left out."""
    first = min(float(at.min()) for at in seconds.values())
    steps = int((max(float(at.max()) for at in seconds.values()) - first) // step_s)
    if steps < 2:
        raise InputError(f"steps of {step_s} s", where="rates, step_s", allowed="steps of which the trace holds at least two")
    parts = []
    for name, at in seconds.items():
        place = ((at - first) // step_s).astype(np.int64)
        count = np.bincount(place[place < steps], minlength=steps)
        times = start + pd.to_timedelta(np.arange(steps) * step_s, unit="s")
        parts.append(pd.DataFrame({"time": times, "service": name, "requests_per_s": count / step_s}))
    return pd.concat(parts, ignore_index=True)


def _only(step_s: int, own_s: int, source: str) -> None:
    if step_s != own_s:
        raise InputError(f"steps of {step_s} s", where="rates, step_s", allowed=f"{own_s} ({source} holds rates, no single requests)")


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, columns=list(columns))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be read: {str(error).splitlines()[0]}", where=str(path), allowed=f"columns {', '.join(columns)}"
        ) from error
