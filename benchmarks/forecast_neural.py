"""Global peers whose pins part with this environment's, each through its documented interface, in an interpreter of its own.

python benchmarks/forecast_neural.py PEER FOLDER

FOLDER holds ``series.parquet`` (``unique_id, ds, y`` and past covariates, gaps filled), ``windows.parquet`` (``unique_id, origin,
issued_at``: what each origin knows) and ``task.json``. The peer is fitted once on what the first origin knows (again every
``refit_every`` origins when that is not 0) and then shown the newer rows of each origin. ``forecasts.parquet`` and ``result.json``
(CPU seconds, versions) are written beside them. This file imports nothing of the project, so that the peers' environment needs none of it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def cpu_seconds() -> float:
    """User and system seconds of this process, its threads and the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Neural:
    """A neuralforecast model: quantile loss over the nine quantiles, early stopping on the last day of the training rows.

    The windows of each batch are scaled by themselves (NHITS) or normalised reversibly (PatchTST), as the library's tutorials do. Past
    covariates go to NHITS; PatchTST takes none.
    """

    package = "neuralforecast"

    def __init__(self, task: dict[str, Any]) -> None:
        from neuralforecast import NeuralForecast
        from neuralforecast.losses.pytorch import MQLoss
        from neuralforecast.models import NHITS, PatchTST

        self.task = task
        season, seed = task["season_length"], task["seed"]
        common = {
            "h": task["horizon"],
            "input_size": task["options"].get("input_size", 2 * season),
            "loss": MQLoss(quantiles=task["quantiles"]),
            "max_steps": task["options"].get("max_steps", 1000),
            "early_stop_patience_steps": 5,
            "val_check_steps": 50,
            "random_seed": seed,
            "start_padding_enabled": True,
            "windows_batch_size": 256,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": False,
            "enable_checkpointing": False,
        }
        if task["peer"] == "nhits":
            model = NHITS(**common, scaler_type="robust", hist_exog_list=task["covariates"] or None)
        else:
            # the paper's setting for small data sets (Nie et al. 2023, appendix A.1.4): 4 heads, 16 wide, 128 in the feed-forward layer
            model = PatchTST(**common, patch_len=16, stride=8, n_heads=4, hidden_size=16, linear_hidden_size=128, learning_rate=1e-3)
        self.columns = ["unique_id", "ds", "y", *(task["covariates"] if task["peer"] == "nhits" else [])]
        self.engine = NeuralForecast(models=[model], freq=task["freq"])

    def fit(self, known: pd.DataFrame) -> None:
        self.engine.fit(known[self.columns], val_size=self.task["season_length"])

    def predict(self, known: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """``unique_id, ds`` and quantiles ``[n, Q]`` after the last row of each series."""
        table = self.engine.predict(df=known[self.columns])
        table = table.reset_index() if "unique_id" not in table.columns else table
        values = table.drop(columns=["unique_id", "ds"])
        if values.shape[1] != len(self.task["quantiles"]):
            raise RuntimeError(f"columns {list(values.columns)} are not one per quantile")
        return table[["unique_id", "ds"]], values.to_numpy(dtype=float)


class AutoGluon:
    """AutoGluon-TimeSeries: its preset ``high_quality`` without pretrained models (their weights would have to be downloaded)."""

    package = "autogluon.timeseries"

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task

    def _frame(self, known: pd.DataFrame) -> Any:
        from autogluon.timeseries import TimeSeriesDataFrame

        columns = ["unique_id", "ds", "y", *self.task["covariates"]]
        return TimeSeriesDataFrame.from_data_frame(known[columns], id_column="unique_id", timestamp_column="ds")

    def fit(self, known: pd.DataFrame) -> None:
        from autogluon.timeseries import TimeSeriesPredictor

        task = self.task
        self.engine = TimeSeriesPredictor(
            prediction_length=task["horizon"],
            target="y",
            freq=task["freq"],
            quantile_levels=task["quantiles"],
            eval_metric="WQL",
            path=str(Path(task["folder"]) / "autogluon"),
            verbosity=1,
        )
        self.engine.fit(
            self._frame(known),
            presets=task["options"].get("preset", "high_quality"),
            time_limit=task["options"].get("time_limit_s", 600),
            excluded_model_types=["Chronos", "Chronos2", "Toto", "Toto2"],
            random_seed=task["seed"],
        )

    def predict(self, known: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """``unique_id, ds`` and quantiles ``[n, Q]`` after the last row of each series."""
        table = self.engine.predict(self._frame(known)).reset_index()
        names = [str(q) for q in self.task["quantiles"]]
        return table[["item_id", "timestamp"]].set_axis(["unique_id", "ds"], axis=1), table[names].to_numpy(dtype=float)


PEERS: dict[str, type[Neural] | type[AutoGluon]] = {"nhits": Neural, "patchtst": Neural, "autogluon": AutoGluon}


def play(task: dict[str, Any], series: pd.DataFrame, windows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Forecasts of all origins, oldest first, and the CPU seconds of fits and predictions."""
    spent = {"fit": 0.0, "predict": 0.0}
    peer, parts, fits = PEERS[task["peer"]](task), [], 0
    for number, (origin, rows) in enumerate(windows.groupby("origin")):
        issued = rows.set_index("unique_id")["issued_at"]
        known = series[series["ds"] <= series["unique_id"].map(issued)].reset_index(drop=True)
        begin = cpu_seconds()
        if number == 0 or (task["refit_every"] and number % task["refit_every"] == 0):
            peer = PEERS[task["peer"]](task) if number else peer
            peer.fit(known)
            fits += 1
            spent["fit"] += cpu_seconds() - begin
            begin = cpu_seconds()
        index, quantiles = peer.predict(known)
        spent["predict"] += cpu_seconds() - begin
        frame = pd.DataFrame(quantiles, columns=task["columns"])
        frame.insert(0, "unique_id", index["unique_id"].astype(str).to_numpy())
        frame.insert(1, "issued_at", frame["unique_id"].map(issued))
        frame.insert(2, "ds", index["ds"].to_numpy())
        parts.append(frame)
        print(f"progress {number + 1} {windows['origin'].nunique()} origin {origin}", flush=True)
    package = PEERS[task["peer"]].package
    versions = {name: importlib.metadata.version(name) for name in (package, "torch", "pandas", "numpy")}
    return pd.concat(parts, ignore_index=True), {"cpu_s": spent, "fits": fits, "versions": versions}


def main(peer: str, folder: Path) -> None:
    """Read the task, play it, write the answer."""
    warnings.simplefilter("ignore")
    task = json.loads((folder / "task.json").read_text()) | {"peer": peer, "folder": str(folder.resolve())}
    series, windows = pd.read_parquet(folder / "series.parquet"), pd.read_parquet(folder / "windows.parquet")
    os.chdir(folder)  # the libraries write logs where they stand
    forecasts, result = play(task, series, windows)
    forecasts.to_parquet("forecasts.parquet", index=False)
    Path("result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
