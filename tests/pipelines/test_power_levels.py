"""The power step of the main job: shared origins, curves of the cluster, and coherent forecasts from what the backtests left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs.cluster_io import load_cluster
from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from models.power import PowerModel, level_of
from pipelines.cli import CONF_DIR, build
from pipelines.config import PowerConfig
from pipelines.stages.power_levels import (
    FOLDER,
    PARTS_FILE,
    caps_of,
    cluster_curves,
    log_power_levels,
    part_bounds,
    reconcile_power,
    shared_plan,
    write_power_facts,
)
from pipelines.workspace import read_json, write_json
from registry.tracking import open_tracking
from telemetry.errors import InputError

FREQ, STEPS = "1h", 24 * 30
CONFIG = BacktestConfig(horizon=6, origins=20, calibration_origins=12, season_length=24)
POWER = PowerConfig(conditional=True, parts=True, caps_w={"power/site/west": 5200.0}, cap_quantile=0.8)
PARENTS = {"power/node/west-v100-0000": "power/pool/west-v100", "power/node/west-v100-0001": "power/pool/west-v100"}
PARENTS |= {"power/pool/west-v100": "power/site/west"}


def long(values: dict[str, np.ndarray], start: str = "2026-01-05 01:00") -> pd.DataFrame:
    ds = pd.date_range(start, periods=STEPS, freq=FREQ)
    return pd.concat([pd.DataFrame({"unique_id": uid, "ds": ds[-len(y) :], "y": y}) for uid, y in values.items()], ignore_index=True)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    """Folders as the stages leave them, of a plant of two nodes whose watts follow the pool's demand."""
    root = tmp_path_factory.mktemp("power")
    rng = np.random.default_rng(0)
    demand = np.repeat(rng.integers(0, 9, size=STEPS // 3), 3).astype(float)
    nodes = [330.0 + 130.0 * demand + np.abs(rng.normal(scale=25.0, size=STEPS)) for _ in range(2)]
    values = {f"power/node/west-v100-000{k}": node for k, node in enumerate(nodes)}
    values |= {"power/pool/west-v100": sum(nodes), "power/site/west": sum(nodes)}
    series = {"power": long(values), "workload": long({"gpu_demand/west-v100": demand})}
    parts = long({f"power/{part}/west-v100-000{k}{end}": 0.5 * nodes[k] for k in (0, 1) for part, end in (("gpu", "/0"), ("host", ""))})
    features = root / "features"
    features.mkdir()
    parts.to_parquet(features / PARTS_FILE)
    parents = {**PARENTS, **{uid: f"power/node/{uid.split('/')[2]}" for uid in parts["unique_id"].unique()}}
    cluster = load_cluster("sample", CONF_DIR)
    write_power_facts(features, parents, cluster_curves(cluster, parents, list(values)))
    plan = shared_plan(series, FREQ, CONFIG)
    for target, frame in series.items():
        frame.to_parquet(features / f"series_{target}.parquet")
        result = run_backtest(frame, FREQ, {"empirical_persistence": {"condition": "none"}}, CONFIG, plan=plan)
        out = root / "forecasters" / target
        out.mkdir(parents=True)
        result.scores["empirical_persistence"].forecasts.to_parquet(out / "forecasts.parquet")
        write_json(out / "champion.json", {"name": "empirical_persistence"})
    bounds = {uid: [200.0, 1500.0] for uid in values if "/node/" in uid} | part_bounds(parts, cluster)
    scores = reconcile_power(root / "forecasters", features, bounds, POWER, CONFIG, FREQ, plan)
    write_json(root / "scores.json", scores)
    return root


def test_levels_agree_and_what_was_learned_is_left_behind(stage):
    folder = stage / "forecasters" / "power" / FOLDER
    scores = read_json(folder / "scores.json")
    assert scores == read_json(stage / "scores.json")
    assert scores["incoherence_w"]["direct"]["mean"] > 0.1
    assert scores["incoherence_w"]["reconciled"]["largest"] < 1e-6
    assert set(scores["levels"]) == {"gpu", "host", "node", "pool", "site"}
    final = pd.read_parquet(folder / "forecasts.parquet")
    assert (final["part"] == "test").all()
    assert set(final["unique_id"].map(level_of)) == set(scores["levels"])
    assert final[final["unique_id"].map(level_of) == "node"][["q10", "q90"]].to_numpy().max() <= 1500.0
    model = PowerModel.from_json(read_json(folder / "model.json"))
    assert model.responses.keys() == {"power/node/west-v100-0000", "power/node/west-v100-0001", "power/pool/west-v100"}
    assert set(scores["shares"]) == {"node", "pool"}


def test_caps_are_the_configured_ones_or_a_quantile_of_the_past(stage):
    scores = read_json(stage / "scores.json")
    assert scores["caps"].keys() == {"power/pool/west-v100", "power/site/west"}
    assert scores["caps"]["power/site/west"]["cap_w"] == 5200.0
    series = pd.read_parquet(stage / "features" / "series_power.parquet")
    pool = series[series["unique_id"] == "power/pool/west-v100"]
    assert caps_of(POWER, pool)["power/pool/west-v100"] == pytest.approx(pool["y"].quantile(0.8))
    assert "power/node/west-v100-0000" not in caps_of(POWER, series)
    for cap in scores["caps"].values():
        assert 0 <= cap["mean_probability"] <= 1
        assert cap["brier"] < 0.25


def test_the_figure_and_the_metrics_are_logged(stage, tmp_path):
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")
    folder = stage / "forecasters" / "power" / FOLDER
    with tracking.run("power") as run:
        log_power_levels(run, folder, pd.read_parquet(stage / "features" / "series_power.parquet"))
    kept = tracking.client.get_run(run.run_id).data.metrics
    assert kept["coherence/reconciled_largest_w"] < 1e-6
    assert kept["site/wql_reconciled"] > 0
    assert kept["cap/site/west/cap_w"] == 5200.0
    names = [item.path for item in tracking.client.list_artifacts(run.run_id, "plots")]
    assert names == ["plots/power_levels.png"]


def test_origins_are_shared_only_where_histories_end_together():
    both = {"power": long({"a": np.arange(STEPS, dtype=float)}), "workload": long({"b": np.arange(STEPS - 40, dtype=float)})}
    plan = shared_plan(both, FREQ, CONFIG)
    scores = {name: run_backtest(frame, FREQ, {"persistence": {}}, CONFIG, plan=plan).scores for name, frame in both.items()}
    issues = [s["persistence"].forecasts["issued_at"].unique().tolist() for s in scores.values()]
    assert issues[0] == issues[1]
    late = {**both, "workload": long({"b": np.arange(STEPS, dtype=float)}, start="2026-01-05 05:00")}
    assert shared_plan(late, FREQ, CONFIG) is None
    assert shared_plan({"power": both["power"]}, FREQ, CONFIG) is None
    with pytest.raises(InputError, match="origins of another backtest"):
        run_backtest(both["power"], FREQ, ["persistence"], CONFIG, partials=object(), plan=plan)


def test_curves_of_the_cluster():
    cluster = load_cluster("sample", CONF_DIR)
    curves = cluster_curves(cluster, PARENTS, ["power/pool/west-v100", "power/node/west-v100-0000", "power/site/west"])
    pool, node = curves["power/pool/west-v100"], curves["power/node/west-v100-0000"]
    assert pool.load_id == node.load_id == "gpu_demand/west-v100"
    assert pool.idle_w == 4 * node.idle_w == 4 * (210.0 + 4 * 30.0)
    assert pool.watts_per_unit == pytest.approx(4 * node.watts_per_unit)
    assert pool.capacity == node.capacity == 16.0
    assert "power/site/west" not in curves


@pytest.mark.parametrize("values", [{"cap_quantile": 1.0}, {"caps_w": {"power/site/west": -5.0}}, {"caps_w": {"power/site/west": "much"}}])
def test_wrong_caps_are_refused(values):
    with pytest.raises(InputError, match="cap"):
        build(PowerConfig, {"conditional": True, "parts": True, "caps_w": {}, "cap_quantile": 0.9, **values}, "power")
