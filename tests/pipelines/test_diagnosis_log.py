"""What the main job keeps of a target's data: a file beside the backtest, a table in MLflow, lines at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
import pandas as pd

from models.diagnosis import COLUMNS
from pipelines.cli import compose_config
from pipelines.config import train_config
from pipelines.stages.forecast_plots import log_target
from pipelines.stages.forecasters import BOUNDS_FILE, backtest_target, series_path
from registry.tracking import open_tracking


def test_findings_and_fallbacks_are_kept_and_logged(tmp_path) -> None:
    rng = np.random.default_rng(0)
    ds = pd.date_range("2025-03-03", periods=400, freq="10min")
    whole = pd.DataFrame({"unique_id": "a", "ds": ds, "y": 50 + rng.normal(size=400)})
    young = whole.tail(60).assign(unique_id="b")
    features, out = tmp_path / "features", tmp_path / "workload"
    features.mkdir()
    (features / BOUNDS_FILE).write_text("{}")
    pd.concat([whole.drop(index=range(100, 120)), young]).to_parquet(series_path(features, "workload"))
    config = train_config(compose_config("train", ["forecaster=quick", "engine.workers=1"]))
    backtest = replace(config.backtest, horizon=6, origins=4, calibration_origins=0)
    config = replace(config, backtest=backtest, forecasters={})
    backtest_target("workload", features, out, config, None, SimpleQueue())

    stored = json.loads((out / "diagnosis.json").read_text())
    assert {"gaps": 1, "begins_late": 1, "short": 1, "fallback": 1}.items() <= stored["counts"].items()
    assert any("seasonal_naive: history of" in f["detail"] for f in stored["findings"])
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.run("forecast workload") as run:
        log_target(run, "workload", out, series_path(features, "workload"))
    folder = tmp_path / "mlartifacts" / run.run_id / "artifacts"
    assert json.loads((folder / "diagnosis.json").read_text()) == stored
    table = json.loads((folder / "tables" / "diagnosis.json").read_text())
    assert table["columns"] == list(COLUMNS)
    assert len(table["data"]) == len(stored["findings"])
