"""The table ``forecasts``: checked rows, whole files, one an issue."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable
from telemetry.lake import Lake
from telemetry.schema import FORECAST_COLUMNS, FORECAST_QUANTILES, empty

AT = pd.Timestamp("2026-01-05T10:00", tz="UTC")


def frame(issued_at: pd.Timestamp = AT, version: str = "1", steps: int = 3) -> pd.DataFrame:
    ds = issued_at + pd.to_timedelta(10 * (1 + np.arange(steps)), unit="min")
    table = pd.DataFrame({"unique_id": "a", "issued_at": issued_at, "ds": ds, "model": "lstm", "version": version})
    table[list(FORECAST_QUANTILES)] = np.arange(9.0)
    return table.astype({"issued_at": "datetime64[ns, UTC]", "ds": "datetime64[ns, UTC]"})


def test_issues_are_appended_and_an_issue_written_again_is_replaced(tmp_path):
    table = ForecastTable(tmp_path)
    later = AT + pd.Timedelta("10min")
    for at, version in ((AT, "1"), (later, "1"), (later, "2"), (AT, "1")):
        table.write(frame(at, version), "workload-forecaster", at, version)
    found = table.read()
    assert list(found.columns) == list(FORECAST_COLUMNS)
    assert len(found) == 9
    assert len(table.read("workload-forecaster", start=later)) == 6
    assert len(table.read(end=later)) == 3
    assert table.read("power-forecaster").equals(empty("forecasts"))
    assert Lake(tmp_path).query("SELECT version, count(*) AS n FROM forecasts GROUP BY 1 ORDER BY 1")["n"].tolist() == [6, 3]
    assert not list(tmp_path.rglob(".*"))


def test_an_ingest_leaves_forecasts_alone(tmp_path):
    table = ForecastTable(tmp_path)
    file = table.write(frame(), "workload-forecaster", AT, "1")
    lake = Lake(tmp_path)
    lake.ingest()
    lake.tidy()
    assert file.is_file()
    assert lake.rows() == {"samples": 0, "jobs": 0, "grid": 0}


def test_a_lake_without_forecasts_has_an_empty_view(tmp_path):
    assert Lake(tmp_path).query("SELECT unique_id, issued_at, q10 FROM forecasts").empty


def test_whole_days_are_pruned(tmp_path):
    table = ForecastTable(tmp_path)
    for day in range(4):
        at = AT + pd.Timedelta(days=day)
        table.write(frame(at), "workload-forecaster", at, "1")
    assert table.prune("power-forecaster", AT + pd.Timedelta(days=9)) == 0
    assert table.prune("workload-forecaster", AT + pd.Timedelta(days=2)) == 2
    assert table.read()["issued_at"].min() == AT + pd.Timedelta(days=2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.assign(q10=99.0), "quantiles do not cross"),
        (lambda t: t.assign(ds=t["issued_at"] - (t["ds"] - t["issued_at"])), "ds is after issued_at"),
        (lambda t: t.assign(q50=np.nan), "q50"),
        (lambda t: pd.concat([t, t], ignore_index=True), "unique"),
        (lambda t: t.drop(columns="model"), "model"),
        (lambda t: t.assign(ds=t["ds"].dt.tz_localize(None)), "ds"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, change, named):
    table = ForecastTable(tmp_path)
    with pytest.raises(InputError, match=named):
        table.write(change(frame()), "workload-forecaster", AT, "1")
    assert table.files() == []


@pytest.mark.parametrize(("source", "version"), [("../elsewhere", "1"), ("workload-forecaster", "1/2"), ("", "1")])
def test_names_cannot_leave_the_folder(tmp_path, source, version):
    with pytest.raises(InputError, match="allowed: letters"):
        ForecastTable(tmp_path).write(frame(version=version), source, AT, version)


def test_a_damaged_file_is_named(tmp_path):
    table = ForecastTable(tmp_path)
    table.write(frame(), "workload-forecaster", AT, "1").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="remove that file"):
        table.read()
