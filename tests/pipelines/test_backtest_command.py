"""``python -m pipelines.backtest`` as its users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from models.catalog import FORECASTERS, make_forecaster
from models.series_store import read_store
from pipelines.backtest import chosen_members, member_options
from pipelines.cli import compose_config
from pipelines.series_files import freq_of, series_batches
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.backtest", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def write_series(file: Path, rows: int = 300) -> Path:
    ds = pd.date_range("2025-03-03", periods=rows, freq="1h", tz="Europe/Berlin")
    y = 20 + 5 * np.sin(np.arange(rows) * 2 * np.pi / 24) + np.random.default_rng(0).normal(size=rows)
    frame = pd.DataFrame({"unique_id": "00042", "ds": ds, "y": y, "price": 1.0})
    frame.to_csv(file, index=False) if file.suffix == ".csv" else frame.to_parquet(file)
    return file


def test_scores_a_file_and_writes_json(tmp_path: Path) -> None:
    write_series(tmp_path / "load.parquet")
    done = run(
        tmp_path, "series=load.parquet", "freq=1h", "horizon=6", "origins=20", "out=scores/load.json", "forecasters=[persistence,arima]"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "scores" / "load.json").read_text())
    assert document["n_origins"] == 20
    assert set(document["forecasters"]) == {"persistence", "arima"}
    for entry in document["forecasters"].values():
        for key in ("wql", "sql", "mase", "coverage80", "width80", "fit_s", "predict_s"):
            assert isinstance(entry[key], float)
            assert isinstance(entry["series"]["00042"][key], float)
    assert "arima" in done.stdout
    assert "wrote scores/load.json" in done.stdout
    assert [p.name for p in (tmp_path / "scores").iterdir()] == ["load.json"]


def test_keeps_forecasts_and_leaves_no_pieces(tmp_path: Path) -> None:
    write_series(tmp_path / "load.csv")
    arguments = ["series=load.csv", "forecasts=kept/all", "forecasters=[persistence]", "work_dir=pieces", "engine.workers=1"]
    done = run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    forecasts = pd.read_parquet(tmp_path / "kept" / "all")
    assert set(forecasts["model"]) == {"persistence", "seasonal_naive"}  # every backtest scores both naives
    rows = forecasts[(forecasts["model"] == "persistence") & (forecasts["part"] == "test")]
    assert rows.groupby("origin").size().tolist() == [18] * 20
    assert pq.ParquetFile(next((tmp_path / "kept" / "all" / "persistence").glob("*.parquet"))).num_row_groups == 2
    assert not [path for path in (tmp_path / "pieces").rglob("*") if path.is_file()]
    again = run(tmp_path, *arguments)
    assert again.returncode == 2
    assert "already there" in again.stderr


def test_a_folder_of_parquet_is_one_set_of_series(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    frame = pd.read_parquet(write_series(tmp_path / "a.parquet")).set_index("ds")
    for number, part in enumerate((frame.iloc[200:], frame.iloc[:200])):
        part.to_parquet(tmp_path / "parts" / f"{number}.parquet")
    batches = series_batches(tmp_path / "parts")
    store = read_store(batches, freq_of(batches, tmp_path / "parts"))
    assert store.report.rows == 300
    np.testing.assert_array_equal(store.values, pd.read_parquet(tmp_path / "a.parquet")["y"])


def test_a_failing_forecaster_shows_in_the_exit_code(tmp_path: Path) -> None:
    write_series(tmp_path / "load.csv")
    done = run(tmp_path, "series=load.csv", "out=o.json", "forecasters=[persistence,lightgbm]", "forecaster.lightgbm.num_leaves=1")
    assert done.returncode == 1, done.stderr
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["freq"] == "3600s"
    assert document["forecasters"]["lightgbm"]["status"] == "failed"
    assert document["forecasters"]["persistence"]["status"] == "ok"


def test_bad_input_is_one_line_and_exit_2(tmp_path: Path) -> None:
    write_series(tmp_path / "load.parquet")
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "load.parquet").read_bytes()[:200])
    done = run(tmp_path, "series=broken.parquet", "out=o.json")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: broken.parquet: cannot be read")
    assert not (tmp_path / "o.json").exists()


def rows_of(file: Path) -> pd.DataFrame:
    return pd.concat(series_batches(file)(), ignore_index=True)


def test_readers_name_what_they_cannot_read(tmp_path: Path) -> None:
    assert rows_of(write_series(tmp_path / "a.csv"))["unique_id"].iloc[0] == "00042"
    with pytest.raises(InputError, match="no such file"):
        rows_of(tmp_path / "none.csv")
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(InputError, match=r"allowed: .parquet, .csv"):
        rows_of(tmp_path / "a.xlsx")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="cannot be read"):
        rows_of(tmp_path / "empty.csv")
    (tmp_path / "parts").mkdir()
    with pytest.raises(InputError, match="no Parquet file"):
        rows_of(tmp_path / "parts")


def test_names_choose_among_the_configured() -> None:
    options = {"persistence": {}, "lstm": {"epochs": 2}}
    assert chosen_members(None, options) == options
    assert chosen_members(["lstm", "arima"], options) == {"lstm": {"epochs": 2}, "arima": {}}
    for wrong in (["lstmm"], []):
        with pytest.raises(InputError, match="allowed: persistence"):
            chosen_members(wrong, options)


def test_every_forecaster_has_a_config_that_builds_it() -> None:
    group = ROOT / "conf" / "forecaster"
    assert {file.stem for file in group.glob("*.yaml")} == {*FORECASTERS, "all", "quick"}
    for choice in ("all", "quick"):
        members = member_options(OmegaConf.to_container(compose_config("backtest_command", [f"forecaster={choice}"]).forecaster))
        assert set(members) == set(FORECASTERS)
        for name, options in members.items():
            assert make_forecaster(name, freq="10min", horizon=3, **options).name == name
    single = OmegaConf.to_container(compose_config("backtest_command", ["forecaster=lstm"]).forecaster)
    assert list(member_options(single)) == ["lstm"]


def test_yaml_and_code_agree_on_the_defaults() -> None:
    everything = OmegaConf.to_container(compose_config("backtest_command").forecaster)
    for name, options in member_options(everything).items():
        assert make_forecaster(name, freq="10min", horizon=3, **options).options == make_forecaster(name, freq="10min", horizon=3).options
