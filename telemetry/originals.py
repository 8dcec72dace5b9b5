"""Public traces from their original files to the tables that the readers of ``public_traces`` and ``public_jobs`` take.

Original column names, units, missing values and errors stay: a conversion only joins files, names what has no header, and lays JSON out as
rows. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from telemetry.errors import InputError

GAVEL_COLUMNS = ("job_type", "command", "num_steps_arg", "needs_data_dir", "total_steps", "arrival_time", "scale_factor")
GAVEL_JOB = re.compile(r"\('(.*)', (\d+)\)")
SERVEGEN_COLUMNS = ("timestamp", "rate", "cv", "pat_name", "pat_arg1", "pat_arg2")
WEATHER_PLACE = ("latitude", "longitude", "timezone", "utc_offset_seconds")
POINTER = b"version https://git-lfs"

Original = tuple[str, Path]


def csv(originals: Sequence[Original], label: str = "") -> pd.DataFrame:
    """Files with one header laid end to end; with ``label``, a first column of that name says which file a row is from."""
    return _joined([(name, _read_csv(path)) for name, path in originals], label)


def gavel_traces(originals: Sequence[Original], label: str = "vc") -> pd.DataFrame:
    """Gavel's tab-separated job traces, without a header and without the column ``command``, which follows from the job type."""
    frames = [(name, _read_csv(path, sep="\t", header=None, names=list(GAVEL_COLUMNS), quoting=3)) for name, path in originals]
    return _joined([(name, frame.drop(columns="command")) for name, frame in frames], label)


def gavel_throughputs(originals: Sequence[Original], label: str = "") -> pd.DataFrame:
    """Steps a second of jobs alone on a GPU type: the entries ``null`` of Gavel's JSON (the others are of pairs that share a GPU)."""
    rows = []
    for worker, jobs in _read_json(originals[0][1]).items():
        for key, rates in jobs.items():
            found = GAVEL_JOB.fullmatch(key)
            if found is None:
                raise InputError(f"job '{key}'", where=str(originals[0][1]), allowed="('name', GPUs)")
            if "null" in rates:
                rows.append((worker, found[1], int(found[2]), float(rates["null"])))
    return pd.DataFrame(rows, columns=["worker_type", "job_type", "scale_factor", "throughput"])


def json_lines(originals: Sequence[Original], label: str = "") -> pd.DataFrame:
    """One JSON object a line; lists stay lists."""
    frames = [(name, pd.DataFrame([json.loads(line) for line in _text(path).splitlines() if line.strip()])) for name, path in originals]
    return _joined(frames, label)


def servegen_rates(originals: Sequence[Original], label: str = "chunk") -> pd.DataFrame:
    """ServeGen's windows of request rates, one file without a header per client; ``chunk`` is the client's number."""
    kinds = {"pat_name": str, "rate": float, "cv": float, "pat_arg1": float, "pat_arg2": float}
    frames = [(int(name), _read_csv(path, header=None, names=list(SERVEGEN_COLUMNS), dtype=kinds)) for name, path in originals]
    return _joined(frames, label)


def servegen_histograms(originals: Sequence[Original], label: str = "chunk") -> pd.DataFrame:
    """ServeGen's histograms of token counts, one JSON object per client: a row for each window and field, the texts unchanged."""
    rows = [
        (int(name), int(window), field, histogram)
        for name, path in originals
        for window, fields in _read_json(path).items()
        for field, histogram in fields.items()
    ]
    return pd.DataFrame(rows, columns=[label, "timestamp", "field", "histogram"])


def open_meteo(originals: Sequence[Original], label: str = "zone") -> pd.DataFrame:
    """Open-Meteo's answers, hourly arrays as rows, with the place and the offset of its local times."""
    frames = []
    for name, path in originals:
        answer = _read_json(path)
        frame = pd.DataFrame(answer["hourly"])
        frames.append((name, frame.assign(**{key: answer[key] for key in WEATHER_PLACE})))
    return _joined(frames, label)


CONVERSIONS: dict[str, Callable[[Sequence[Original], str], pd.DataFrame]] = {
    "csv": csv,
    "gavel_traces": gavel_traces,
    "gavel_throughputs": gavel_throughputs,
    "json_lines": json_lines,
    "servegen_rates": servegen_rates,
    "servegen_histograms": servegen_histograms,
    "open_meteo": open_meteo,
}


def convert(conversion: str, originals: Sequence[Original], label: str = "") -> pd.DataFrame:
    """The table of some original files.

    Args:
        conversion: a name of ``CONVERSIONS``.
        originals: label and path of each file, in order.
        label: column that the labels go to; empty = none (or the conversion's own).

    Raises:
        InputError: an original that is not what the conversion takes.
    """
    if conversion not in CONVERSIONS:
        raise InputError(f"conversion '{conversion}'", allowed=", ".join(CONVERSIONS))
    for _, path in originals:
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise InputError("a pointer to a large file, not the file", where=path.name, remedy="give an address that serves the file")
    try:
        return CONVERSIONS[conversion](originals, *([label] if label else []))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        names = ", ".join(path.name for _, path in originals[:3])
        raise InputError(f"cannot be converted ({type(error).__name__}: {str(error).splitlines()[0][:200]})", where=names) from error


def table_digest(table: pd.DataFrame) -> str:
    """SHA-256 of what a table says: column names, kinds and values in order, whatever file format and version holds it."""
    digest = hashlib.sha256()
    for name in table.columns:
        kind, payload = _payload(table[name])
        digest.update(f"{len(str(name))}:{name}:{kind}:{len(table)}:".encode())
        digest.update(payload)
    return digest.hexdigest()


def _payload(values: pd.Series) -> tuple[str, bytes]:
    if pd.api.types.is_bool_dtype(values):
        return "bool", values.to_numpy(dtype=np.uint8).tobytes()
    if pd.api.types.is_integer_dtype(values):
        return "int", values.to_numpy(dtype="<i8").tobytes()
    if pd.api.types.is_float_dtype(values):
        numbers = values.to_numpy(dtype="<f8").copy()
        numbers[np.isnan(numbers)] = np.nan
        return "float", numbers.tobytes()
    return "text", "\n".join(map(_as_text, values.tolist())).encode()


def _as_text(value: Any) -> str:
    if isinstance(value, list | tuple | np.ndarray):
        return json.dumps(np.asarray(value).tolist())
    return "null" if value is None or value is pd.NA or value != value else json.dumps(str(value), ensure_ascii=False)


def _read_csv(path: Path, **options: Any) -> pd.DataFrame:
    # round_trip: the nearest double of a text, as every other tool reads it; the parser's default may miss it by one unit.
    return pd.read_csv(path, float_precision="round_trip", encoding="utf-8-sig", **options)


def _read_json(path: Path) -> Any:
    value = json.loads(_text(path))
    if not isinstance(value, dict):
        raise InputError(f"a JSON {type(value).__name__}", where=path.name, allowed="a JSON object")
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _joined(frames: list[tuple[Any, pd.DataFrame]], label: str) -> pd.DataFrame:
    columns = list(frames[0][1].columns)
    for name, frame in frames:
        if list(frame.columns) != columns:
            raise InputError(
                f"columns {', '.join(map(str, frame.columns))}", where=f"original '{name}'", allowed=", ".join(map(str, columns))
            )
        # Missing texts are None in every file, whether or not the file has any text in that column.
        for column in frame.select_dtypes(object).columns:
            frame[column] = frame[column].astype(object).where(frame[column].notna(), None)
    if label:
        for name, frame in frames:
            frame.insert(0, label, name)
    tables = [frame for _, frame in frames]
    return tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
