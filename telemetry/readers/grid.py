"""Price, carbon intensity, renewable share and temperature per site: CSV with the canonical columns, plain or gzipped.

``time, site, price_usd_per_kwh, carbon_g_per_kwh`` are needed, ``renewable_fraction, temperature_c`` optional. Prices may be negative. A
missing step (``scrape_gap``) or blank value (``sentinel``) of up to ``ReadContext.max_grid_gap_s`` takes the value of the day before at
that hour, else the last value: nothing later than the gap is used. A longer gap, or one at the very start, is refused.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.quality import QualityReport
from telemetry.raw import SENTINEL_TEXT
from telemetry.readers.base import Mapped, ReadContext, ReadResult, read_text
from telemetry.schema import GRID_NUMBERS, validate
from telemetry.times import utc_times

REQUIRED = ("time", "site", "price_usd_per_kwh", "carbon_g_per_kwh")
BLANK = SENTINEL_TEXT - {"-1"}
DAY = pd.Timedelta(days=1)


class GridReader:
    """See the module."""

    name = "grid"
    reads = "grid CSV: time, site, price_usd_per_kwh, carbon_g_per_kwh (.csv, .gz)"
    tested = "an export made in its documented form, damaged in many ways; the embedded sample"

    def mapping(self) -> list[Mapped]:
        """Rows of docs/telemetry.md."""
        return [Mapped(name, f"grid.{name}", unit) for name, unit in zip(GRID_NUMBERS, ("USD/kWh", "g/kWh", "1", "Cel"), strict=True)]

    def read(self, path: Path, context: ReadContext) -> ReadResult:
        where, quality, source = str(path), QualityReport(), context.source
        rows = list(csv.reader(read_text(path).splitlines()))
        head = [name.strip() for name in rows[0]]
        missing = [name for name in REQUIRED if name not in head]
        if missing:
            raise InputError(
                f"missing column {', '.join(missing)}", where=f"{where}, line 1", allowed=", ".join((*REQUIRED, *GRID_NUMBERS[2:]))
            )
        twice = sorted({name for name in (*REQUIRED, *GRID_NUMBERS) if head.count(name) > 1})
        if twice:
            raise InputError(f"column {', '.join(twice)} twice", where=f"{where}, line 1", remedy="keep one of them, or rename the other")
        quality.saw(source, points=sum(1 for row in rows[1:] if row))
        whole = [row for row in rows[1:] if len(row) == len(head)]
        quality.add(source, "unparseable", sum(1 for row in rows[1:] if row and len(row) != len(head)))
        table = grid_table(pd.DataFrame(whole, columns=head, dtype=object), context, quality, where=where)
        return ReadResult({"grid": table}, quality)


def grid_table(frame: pd.DataFrame, context: ReadContext, quality: QualityReport, *, where: str) -> pd.DataFrame:
    """Canonical grid rows from texts [N] per canonical column; gaps are filled, flaws counted.

    Raises:
        InputError: no row with a time, a gap that is too long, or a site off its own step.
    """
    return _Grid(context, quality, where).table(frame)


@dataclass(frozen=True)
class _Grid:
    context: ReadContext
    quality: QualityReport
    where: str

    def table(self, frame: pd.DataFrame) -> pd.DataFrame:
        context, quality, where, source = self.context, self.quality, self.where, self.context.source
        frame["time"], _ = utc_times(frame["time"].tolist())
        quality.add(source, "unparseable", int(frame["time"].isna().sum()))
        frame = frame[frame["time"].notna()].copy()
        if frame.empty:
            raise InputError("empty export: no rows with a time", where=where, remedy="check the query and its time range")
        for name in GRID_NUMBERS:
            frame[name] = self._numbers(frame, name, quality, source)
        frame["site"] = frame["site"].str.strip()
        late = frame.groupby("site", sort=False)["time"].diff() < pd.Timedelta(0)
        quality.add(source, "out_of_order", int(late.sum()))
        again = frame.duplicated(["site", "time"], keep="last")
        quality.add(source, "duplicate", int(again.sum()))
        frame = frame[~again].sort_values(["site", "time"], kind="stable", ignore_index=True)
        step = self._step(frame, where)
        sites = [self._site(str(site), rows, step, context, quality, where) for site, rows in frame.groupby("site", sort=True)]
        table = pd.concat(sites, ignore_index=True).sort_values(["time", "site"], kind="stable", ignore_index=True)
        return validate("grid", table, where=where)

    def _numbers(self, frame: pd.DataFrame, name: str, quality: QualityReport, source: str) -> pd.Series:
        if name not in frame:
            return pd.Series(np.nan, index=frame.index, dtype=float)
        text = frame[name].str.strip()
        blank = text.str.lower().isin(BLANK)
        values = pd.to_numeric(text.where(~blank, None), errors="coerce").astype(float)
        values = values.where(np.isfinite(values))
        if name == "carbon_g_per_kwh":
            values = values.where(~(values < 0))
        quality.add(source, "sentinel", int(blank.sum()))
        quality.add(source, "unparseable", int((values.isna() & ~blank).sum()))
        return values

    def _step(self, frame: pd.DataFrame, where: str) -> pd.Timedelta:
        steps = frame.groupby("site", sort=False)["time"].diff().dropna()
        if steps.empty:
            raise InputError("one row per site has no step", where=where, allowed="at least two rows per site")
        return steps.mode().iloc[0]

    def _site(
        self, site: str, rows: pd.DataFrame, step: pd.Timedelta, context: ReadContext, quality: QualityReport, where: str
    ) -> pd.DataFrame:
        rows = rows.set_index("time")[list(GRID_NUMBERS)]
        place = f"{where}, site '{site}'"
        off = (rows.index - rows.index[0]) % step != pd.Timedelta(0)
        if off.any():
            raise InputError(f"time {rows.index[off][0].isoformat()} is off the grid", where=place, allowed=f"one step of {step}")
        full = pd.date_range(rows.index[0], rows.index[-1], freq=step)
        lost = ~full.isin(rows.index)
        quality.add(context.source, "scrape_gap", int((lost[1:] & ~lost[:-1]).sum()), site)
        quality.add(context.source, "scrape_gap_samples", int(lost.sum()), site)
        table = rows.reindex(full)
        for name in GRID_NUMBERS:
            if table[name].notna().any():
                table[name] = fill_gaps(table[name], step, context.max_grid_gap_s, where=f"{place}, column '{name}'")
            elif name in REQUIRED:
                raise InputError(f"column '{name}' holds no value", where=place, remedy="export it, or use another table")
        return table.rename_axis("time").reset_index().assign(site=site, source=context.source)


def fill_gaps(values: pd.Series, step: pd.Timedelta, max_gap_s: int, *, where: str) -> pd.Series:
    """Fill NaN with the value a day before, else the last value.

    Raises:
        InputError: a gap longer than ``max_gap_s``, or one at the start.
    """
    blank = values.isna()
    if not blank.any():
        return values
    run = blank.groupby((~blank).cumsum()).cumsum()
    longest = run.max() * step.total_seconds()
    if longest > max_gap_s or blank.iloc[0]:
        at = values.index[int(np.argmax(run.to_numpy())) if not blank.iloc[0] else 0]
        raise InputError(
            f"a gap of {longest / 3600:g} h that ends after {at.isoformat()}"
            if not blank.iloc[0]
            else f"no value at the start ({at.isoformat()})",
            where=where,
            allowed=f"gaps of at most {max_gap_s / 3600:g} h, after a first value",
            remedy="export the gap again, cut the table there, or raise max_grid_gap_h",
        )
    filled = values.to_numpy(dtype=float).copy()
    day = round(DAY / step)
    for index in np.flatnonzero(blank.to_numpy()):
        filled[index] = filled[index - day] if index >= day else filled[index - 1]
    return pd.Series(filled, index=values.index, name=values.name)
