"""Any table in CSV (plain or gzipped) or Parquet, by a mapping of its columns; see ``csv_mapping`` for what a mapping says.

``{path: meter.csv, reader: csv, options: {mapping: meter.yaml}}``. Columns that the mapping does not name are left out and told. A time or
number that cannot be read is ``unparseable``, a text that means no value ``sentinel``; both are dropped. Rows of one series are judged in
their order in the file.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.jobs import flag, jobs_frame
from telemetry.quality import QualityReport
from telemetry.raw import Labels, RawSamples, require_points
from telemetry.readers.base import ReadContext, ReadResult, check_options, read_text
from telemetry.readers.csv_mapping import LABELS, UNIX, CsvMapping, Measure, TimeRule, checked, load_mapping
from telemetry.readers.grid import grid_table
from telemetry.schema import GRID_NUMBERS, JOB_NUMBERS, JOB_TIMES

NEEDED = {"jobs": ("job_id", "submit_time", "gpus"), "grid": ("time", "price_usd_per_kwh", "carbon_g_per_kwh")}


class CsvReader:
    """See the module."""

    name = "csv"
    tested = "tables made with many mappings; a public CPU metric (NAB)"
    reads = "any CSV or Parquet table by a mapping (.csv, .gz, .parquet)"
    options: ClassVar[Mapping[str, str]] = {
        "mapping": "what the columns are: a YAML or JSON file, or the same written here (docs/exports.md)"
    }
    companions: ClassVar[Sequence[str]] = ("mapping",)

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where = str(path)
        check_options(self, context.options, where)
        mapping = _mapping(context.options.get("mapping"), where)
        frame = _loaded(path, mapping)
        quality = QualityReport()
        self._columns(frame, mapping, where, quality, context)
        if frame.empty:
            raise InputError("empty export: no rows", where=where, remedy="check the query and its time range")
        if mapping.table == "samples":
            table = _samples(frame, mapping, context, quality, where)
        else:
            table = _fields(frame, mapping, context, quality, where)
        return ReadResult({mapping.table: table}, quality)

    def _columns(self, frame: pd.DataFrame, mapping: CsvMapping, where: str, quality: QualityReport, context: ReadContext) -> None:
        have = list(map(str, frame.columns))
        for name in mapping.columns():
            if name not in have:
                near = difflib.get_close_matches(name, have, n=3)
                remedy = f"perhaps {', '.join(near)}" if near else "is the delimiter right?"
                raise InputError(f"no column '{name}'", where=where, allowed=", ".join(have)[:300], remedy=remedy)
        for name in have:
            if name not in mapping.columns():
                quality.note(context.source, f"column '{name}', which the mapping does not name")


def _mapping(given: Any, where: str) -> CsvMapping:
    if isinstance(given, str):
        return checked(load_mapping(Path(given)), given)
    if isinstance(given, Mapping):
        return checked(given, f"{where}, mapping")
    raise InputError(
        "no mapping" if given is None else f"mapping {given!r}",
        where=where,
        remedy="name one: {path: FILE, reader: csv, options: {mapping: FILE.yaml}}; see docs/exports.md",
    )


def _loaded(path: Path, mapping: CsvMapping) -> pd.DataFrame:
    """The table; of CSV, texts."""
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot be read: {str(error).splitlines()[0]}", where=str(path), remedy="is it a whole Parquet file?"
            ) from error
    try:
        frame = pd.read_csv(
            io.StringIO(read_text(path)), sep=mapping.delimiter, dtype=str, keep_default_na=False, index_col=False, skipinitialspace=True
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning, ValueError) as error:
        raise InputError(f"no CSV: {str(error).strip()[:200]}", where=str(path), remedy="check mapping.delimiter") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame


def numbers(column: pd.Series, mapping: CsvMapping) -> list[Any]:
    """Values as a reader of metrics passes them on: numbers, texts that are none, and None where a text means no value."""
    if pd.api.types.is_numeric_dtype(column):
        return column.astype(float).tolist()
    text = column.map(lambda item: "" if item is None or item is pd.NA else str(item)).str.strip()
    found = text.where(~text.str.lower().isin(mapping.missing), "")
    if mapping.thousands:
        found = found.str.replace(mapping.thousands, "", regex=False)
    if mapping.decimal == ",":
        # A point beside a decimal comma is no number that this mapping foresees: 1.234,5 without thousands.
        found = found.where(~found.str.contains(".", regex=False), "no number").str.replace(",", ".", regex=False)
    return found.tolist()


def times_s(column: pd.Series, rule: TimeRule, missing: frozenset[str], *, where: str) -> pd.Series:
    """Seconds since 1970 [N], NaN where there is no time.

    Raises:
        InputError: times without a zone and no zone given, or an hour that a change of the clocks repeats or leaves out.
    """
    if rule.format in UNIX:
        return pd.to_numeric(column, errors="coerce").astype(float) * UNIX[rule.format]
    if pd.api.types.is_datetime64_any_dtype(column):
        moments = column
    else:
        text = column.map(lambda item: "" if item is None else str(item).strip())
        text = text.where(~text.str.lower().isin(missing), "")
        moments = _moments(text, rule, where)
    if moments.dt.tz is None:
        moments = _zoned(moments, column, rule, where)
    utc = moments.dt.tz_convert("UTC").astype("datetime64[ns, UTC]")
    return (utc - pd.Timestamp(0, tz="UTC")) / pd.Timedelta("1s")


def _moments(text: pd.Series, rule: TimeRule, where: str) -> pd.Series:
    """Times with the zone they have; a column must have zones in all rows or in none."""
    told = "ISO8601" if rule.format == "iso" else rule.format
    try:
        if "%z" in rule.format:
            return pd.to_datetime(text, format=told, errors="coerce", utc=True)
        zoned = text.str.contains(r"\d(?:[Zz]|[+-]\d{2}:?\d{2})$") if rule.format == "iso" else pd.Series(False, index=text.index)
        if zoned.any():
            if rule.zone and not zoned[text != ""].all():
                raise InputError(f"some times of column '{text.name}' have a zone and some have none", where=where)
            return pd.to_datetime(text.where(zoned, ""), format=told, errors="coerce", utc=True)
        return pd.to_datetime(text, format=told, errors="coerce")
    except InputError:
        raise
    except (ValueError, OverflowError) as error:
        raise InputError(f"time format {rule.format!r}: {str(error)[:120]}", where=where) from error


def _zoned(moments: pd.Series, column: pd.Series, rule: TimeRule, where: str) -> pd.Series:
    if not rule.zone:
        if moments.notna().any():
            raise InputError(
                f"times of column '{column.name}' have no zone (first {column[moments.first_valid_index()]!r})",
                where=where,
                remedy="name it in the mapping: time: {zone: Europe/Berlin} or UTC",
            )
        return moments.dt.tz_localize("UTC")
    policy: Any = {"refuse": "raise", "order": "infer", "earlier": True, "later": False}[rule.ambiguous]
    policy = np.full(len(moments), policy) if isinstance(policy, bool) else policy
    try:
        return moments.dt.tz_localize(rule.zone, ambiguous=policy, nonexistent="raise")
    except Exception as error:  # pytz's, zoneinfo's or pandas' own, by the version of pandas
        raise InputError(
            f"a time of column '{column.name}' is not one time in {rule.zone}: {str(error)[:160]}",
            where=where,
            remedy="a repeated hour: time.ambiguous: earlier, later or order; an hour that does not exist: another zone",
        ) from error


def _samples(frame: pd.DataFrame, mapping: CsvMapping, context: ReadContext, quality: QualityReport, where: str) -> pd.DataFrame:
    raw = RawSamples(context.source)
    seconds = times_s(frame[mapping.time.column], mapping.time, mapping.missing, where=where)
    texts = pd.DataFrame({name: _label(frame, mapping, name) for name in LABELS}, index=frame.index)
    for rows, measure, values in _measured(frame, mapping, context, quality):
        own = pd.DataFrame({"time": seconds[rows], "value": pd.Series(values, index=frame.index, dtype=object)[rows]})
        for key, part in own.groupby([texts.loc[rows, name] for name in LABELS], sort=False):
            labels = dict(zip(LABELS, key, strict=True))
            labels |= {name: text for name, text in (("device", measure.device), ("service", measure.service)) if text}
            known = Labels(measure.metric, unit=measure.unit, delta=measure.delta, **labels)
            raw.add_block(known, [None if np.isnan(t) else t for t in part["time"]], part["value"].tolist())
    require_points(raw, where, ", ".join(mapping.values or mapping.metrics))
    return context.cleaned(raw, quality, where=where)


def _measured(
    frame: pd.DataFrame, mapping: CsvMapping, context: ReadContext, quality: QualityReport
) -> Iterator[tuple[pd.Series, Measure, list[Any]]]:
    """Rows (mask), what they measure, and the values of all rows."""
    if mapping.values:
        for column, measure in mapping.values.items():
            yield pd.Series(True, index=frame.index), measure, numbers(frame[column], mapping)
        return
    names = frame[mapping.long["metric"]].astype(str).str.strip()
    values = numbers(frame[mapping.long["value"]], mapping)
    units = frame[mapping.long["unit"]].astype(str).str.strip() if "unit" in mapping.long else None
    for name in names.unique():
        if name not in mapping.metrics:
            quality.note(context.source, f"rows of '{name}', which the mapping does not name", int((names == name).sum()))
            continue
        measure = mapping.metrics[name]
        if units is None:
            yield names == name, measure, values
            continue
        for unit in units[names == name].unique():
            own = Measure(measure.metric, unit or measure.unit, measure.device, measure.service, measure.delta)
            yield (names == name) & (units == unit), own, values


def _label(frame: pd.DataFrame, mapping: CsvMapping, name: str) -> pd.Series:
    if name not in mapping.labels:
        return pd.Series(mapping.constants.get(name, ""), index=frame.index, dtype=object)
    text = frame[mapping.labels[name]].map(lambda item: "" if item is None or item is pd.NA else str(item).strip()).astype(object)
    return text.where(text != "", mapping.constants.get(name, ""))


def _fields(frame: pd.DataFrame, mapping: CsvMapping, context: ReadContext, quality: QualityReport, where: str) -> pd.DataFrame:
    """Canonical jobs or grid."""
    missing = [name for name in NEEDED[mapping.table] if name not in mapping.fields and name not in mapping.constants]
    if missing:
        raise InputError(f"no field {', '.join(missing)}", where=mapping.where, allowed="fields: {NAME: COLUMN}")
    times = JOB_TIMES if mapping.table == "jobs" else ("time",)
    plain = set(JOB_NUMBERS if mapping.table == "jobs" else GRID_NUMBERS)
    columns: dict[str, Any] = {name: [text] * len(frame) for name, text in mapping.constants.items()}
    for name, taken in mapping.fields.items():
        column = frame[taken.column]
        if name in times:
            seconds = times_s(column, mapping.time, mapping.missing, where=where)
            columns[name] = [None if np.isnan(s) else pd.Timestamp(s, unit="s", tz="UTC").isoformat() for s in seconds]
        elif name in plain:
            columns[name] = [_scaled(value, taken.factor) for value in numbers(column, mapping)]
        else:
            columns[name] = [None if item is None or str(item).strip().lower() in mapping.missing else str(item).strip() for item in column]
    table = pd.DataFrame(columns, index=frame.index, dtype=object)
    if mapping.table == "grid":
        site = table["site"] if "site" in table else pd.Series("", index=table.index)
        texts = table.assign(site=site).map(lambda value: "" if value is None or value != value else str(value))
        return grid_table(texts, context, quality, where=where)
    return _jobs(table, context, quality, where)


def _jobs(table: pd.DataFrame, context: ReadContext, quality: QualityReport, where: str) -> pd.DataFrame:
    """Jobs whose size can be; a number elsewhere that cannot be read is left blank and counted."""
    for name in JOB_NUMBERS:
        if name not in table:
            continue
        given = table[name].map(lambda value: None if value == "" else value)
        number = pd.to_numeric(given, errors="coerce").astype(float)
        number = number.where(np.isfinite(number) & ((number >= 0) | (name == "priority")))
        number = number.where(~((name == "gpu_utilization") & (number > 1)))
        quality.add(context.source, "unparseable", int((given.notna() & number.isna()).sum()))
        table[name] = number
    keep = (table["gpus"] > 0) & ((table["workers"] >= 1) if "workers" in table else True)
    quality.note(context.source, "jobs without a GPU, left out", int((~keep).sum()))
    table = table[keep]
    if table.empty:
        raise InputError("empty export: no job with GPUs", where=where)
    table = table.assign(workers=table.get("workers", 1))
    if "preemptible" in table:
        table["preemptible"] = table["preemptible"].map(flag)
    return jobs_frame(table.to_dict("records"), context.source, quality, where=where)


def _scaled(value: Any, by: float) -> Any:
    try:
        return float(value) * by
    except (TypeError, ValueError):
        return value
