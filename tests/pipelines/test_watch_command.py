"""``pipelines.watch``: finds what was planted, is quiet otherwise, says it once, and survives a kill anywhere."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from models.base import QUANTILE_COLUMNS, QUANTILES
from pipelines import watch as watch_module
from pipelines.cli import compose_config
from pipelines.triggers import TriggerLog
from pipelines.watch import run_once, summary_lines
from pipelines.watching.settings import WatchConfig, watch_config
from pipelines.watching.state import WatchState
from pipelines.watching.target import TargetWatch
from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable

STEP, HORIZON, SEASON = pd.Timedelta("10min"), 18, 144
BEGIN, TRAINED_DAYS, SERVED_DAYS, DRIFT_DAY = pd.Timestamp("2026-01-05"), 4, 12, 7
SERVES = BEGIN + pd.Timedelta(days=TRAINED_DAYS)
DRIFTS = SERVES + pd.Timedelta(days=DRIFT_DAY)
END = SERVES + pd.Timedelta(days=SERVED_DAYS)
IDS = [f"power/node/n{i}" for i in range(3)]
IDLE_W, PER_GPU_W = 100.0, 10.0


def load_of(number: int) -> np.ndarray:
    """A daily wave and noise that forgets within the hour."""
    rng, rows = np.random.default_rng(number), (TRAINED_DAYS + SERVED_DAYS) * SEASON
    noise = np.convolve(rng.normal(size=rows + 5), np.full(6, 0.4), mode="valid")
    return 20.0 + 6.0 * np.sin(2 * np.pi * np.arange(rows) / SEASON) + noise


def frame_of(values: dict[str, np.ndarray]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"unique_id": uid, "ds": pd.date_range(BEGIN + STEP, periods=len(y), freq=STEP), "y": y}) for uid, y in values.items()
    ]
    return pd.concat(parts, ignore_index=True)


LOADS = frame_of({uid.replace("power/node/", "gpu_demand/"): load_of(n) for n, uid in enumerate(IDS)})
WATTS = frame_of({uid: IDLE_W + PER_GPU_W * load_of(n) for n, uid in enumerate(IDS)})


def forecasts_at(at: pd.Timestamp, truth: pd.DataFrame) -> pd.DataFrame:
    """A champion that knows the wave and the spread of the undisturbed watts, and corrects itself by nothing."""
    ahead = pd.date_range(at + STEP, periods=HORIZON, freq=STEP)
    steps = np.round((ahead - BEGIN) / STEP).to_numpy().astype(int) - 1
    centre = IDLE_W + PER_GPU_W * (20.0 + 6.0 * np.sin(2 * np.pi * steps / SEASON))
    parts = []
    for uid in truth["unique_id"].unique():
        rows = pd.DataFrame({"unique_id": uid, "issued_at": at.tz_localize("UTC"), "ds": ahead.tz_localize("UTC")})
        quantiles = {
            q: centre + 10.0 * np.sqrt(6) * 0.4 * 1.28 * (level - 0.5) / 0.4 for q, level in zip(QUANTILE_COLUMNS, QUANTILES, strict=True)
        }
        parts.append(rows.assign(**quantiles, model="wave", version="3"))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Root of a lake with an issue at the begin of every block."""
    root = tmp_path_factory.mktemp("lake")
    for at in pd.date_range(SERVES, END, freq="3h", inclusive="left"):
        ForecastTable(root).write(forecasts_at(at, WATTS), "power-forecaster", at.tz_localize("UTC"), "3")
    return root


@pytest.fixture
def config(table, tmp_path) -> WatchConfig:
    LOADS.to_parquet(tmp_path / "loads.parquet")
    curves = {uid: {"load_id": uid.replace("power/node/", "gpu_demand/"), "idle_w": IDLE_W, "watts_per_unit": PER_GPU_W} for uid in IDS}
    (tmp_path / "facts.json").write_text(json.dumps({"curves": curves}))
    files = f"series={{workload: {tmp_path}/loads.parquet, power: {tmp_path}/watts.parquet}}"
    places = [f"{name}={tmp_path}/{name}" for name in ("live_state", "state", "out")]
    overrides = ["targets=power", f"forecasts={table}", files, *places, f"triggers={tmp_path}/triggers.jsonl"]
    raw = OmegaConf.to_container(compose_config("watch", [*overrides, f"power_curves={tmp_path}/facts.json"]), resolve=True)
    return watch_config(raw)


def shot(config: WatchConfig, watts: pd.DataFrame, now: pd.Timestamp = END, **given):
    watts[watts["ds"] <= now].to_parquet(config.series["power"])
    reports, done = run_once(replace(config, now=now), **given)
    return reports[0], done


def drifted(factor: float) -> pd.DataFrame:
    """New hardware: so many times the watts, for the same load."""
    return WATTS.assign(y=np.where(WATTS["ds"] > DRIFTS, factor, 1.0) * WATTS["y"])


def rules_of(report) -> set[str]:
    return {one.trigger.rule for one in report.fresh}


def test_nothing_planted_nothing_found(config):
    report, done = shot(config, WATTS)
    assert (report.status, report.version, report.fresh, done) == ("watched", "3", [], [])
    assert set(report.judged) == {"loss", "loss_alone", "coverage", "bias", "data", "power_model", "worthless"}
    assert report.new_blocks >= 8 * (SERVED_DAYS - 1)
    assert report.blocks["miss"].mean() == pytest.approx(0.2, abs=0.06)
    assert "outcomes=FILE" in report.not_watched["policy_cost"]
    assert (config.out / "power.png").stat().st_size > 10_000
    assert not config.triggers.exists()
    assert "of the way to an alarm" in "\n".join(summary_lines(report))


def test_new_hardware_is_found_by_the_power_model_and_asked_for_once(config):
    report, done = shot(config, drifted(1.4))
    assert {"power_model", "loss"} <= rules_of(report)
    first = min(pd.Timestamp(one.trigger.at) for one in report.fresh)
    assert DRIFTS <= first.tz_localize(None) <= DRIFTS + pd.Timedelta(days=1)
    opened = TriggerLog(config.triggers).open()
    assert len(opened) == 1, "one at a time"
    assert "power-forecaster version 3" in opened[0].reason
    assert "\n" not in opened[0].reason
    assert sum("retraining asked for" in line for line in done) == 1
    again, nothing = shot(config, drifted(1.4))
    assert (again.fresh, again.new_blocks, nothing) == ([], 0, [])
    assert TriggerLog(config.triggers).open() == opened


def test_shots_on_the_way_find_the_same_as_one_at_the_end(config, tmp_path):
    watts = drifted(1.4)
    whole, _ = shot(config, watts)
    steps = replace(config, state=tmp_path / "steps", triggers=tmp_path / "steps.jsonl")
    found = []
    for now in pd.date_range(SERVES + pd.Timedelta(days=2), END, freq="75h").append(pd.DatetimeIndex([END])):
        found += [one.key for one in shot(steps, watts, now)[0].fresh]
    assert sorted(found) == sorted(one.key for one in whole.fresh)
    blocks = [WatchState.load(root / "power" / "state.json", []).frame() for root in (config.state, steps.state)]
    pd.testing.assert_frame_equal(blocks[0][["rows", "loss", "miss", "power"]], blocks[1][["rows", "loss", "miss", "power"]])


@pytest.mark.parametrize("killed", ["before the log", "after the log", "before the blocks"])
def test_a_shot_that_is_killed_is_done_again_and_nothing_twice(config, monkeypatch, killed):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        place = {"before the log": (TriggerLog, "offer"), "after the log": (TargetWatch, "told"), "before the blocks": (WatchState, "save")}
        patched.setattr(*place[killed], die)
        with pytest.raises(KeyboardInterrupt):
            shot(config, drifted(1.4))
    report, _ = shot(config, drifted(1.4))
    assert {"power_model", "loss"} <= rules_of(report)
    assert len(TriggerLog(config.triggers).open()) == 1
    assert shot(config, drifted(1.4))[0].fresh == []


def test_retraining_is_started_for_what_is_open_also_after_a_kill(config):
    calls: list[list[str]] = []
    shot(config, drifted(1.4))
    _, done = shot(replace(config, retrain=True), drifted(1.4), run=lambda command: calls.append(command) or 0)
    (trigger,) = TriggerLog(config.triggers).open()
    assert calls == [[sys.executable, "-m", "pipelines.retrain", f"trigger={trigger.id}"]]
    assert done == [f"{trigger.rule}: python -m pipelines.retrain trigger={trigger.id} ended with 0"]


def test_a_new_tenant_and_a_dead_meter_are_told_by_name(config):
    new = WATTS[WATTS["unique_id"] == IDS[0]].assign(unique_id="power/node/new")
    late = WATTS["ds"] > END - pd.Timedelta(days=4)
    stuck = WATTS.assign(y=np.where(late & (WATTS["unique_id"] == IDS[1]), 150.0, WATTS["y"]))
    report, _ = shot(config, pd.concat([stuck, new[new["ds"] > DRIFTS]], ignore_index=True))
    reasons = {one.trigger.rule: one for one in report.fresh}
    assert "power/node/new" in reasons["new_series"].trigger.reason
    assert (reasons["dead_series"].severity, reasons["dead_series"].trigger.evidence["series"]) == ("warn", [IDS[1]])


def test_realised_cost_above_the_simulated_is_told(config, tmp_path):
    hours = pd.date_range(SERVES, END, freq="1h")
    rng = np.random.default_rng(0)
    costs = np.exp(0.05 * rng.normal(size=len(hours)))
    outcomes = pd.DataFrame({"time": hours.strftime("%Y-%m-%dT%H:%M:%SZ"), "realised_usd": costs, "simulated_usd": 1.0, "jobs": 20})
    outcomes = outcomes.assign(realised_missed=1, simulated_missed=1)
    outcomes.to_csv(tmp_path / "fine.csv", index=False)
    fine, _ = shot(replace(config, outcomes=tmp_path / "fine.csv"), WATTS)
    assert fine.fresh == []
    assert {"policy_cost", "policy_sla"} <= set(fine.judged)
    worse = outcomes.assign(realised_usd=np.where(hours > DRIFTS, 1.3, 1.0) * costs)
    worse.to_csv(tmp_path / "worse.csv", index=False)
    report, _ = shot(replace(config, outcomes=tmp_path / "worse.csv", state=tmp_path / "other"), WATTS)
    assert rules_of(report) == {"policy_cost"}
    outcomes.drop(columns="jobs").to_csv(tmp_path / "bad.csv", index=False)
    bad, _ = shot(replace(config, outcomes=tmp_path / "bad.csv", state=tmp_path / "third"), WATTS)
    assert (bad.status, "no column jobs" in bad.alerts[0]) == ("failed", True)


def test_damaged_state_is_begun_anew_and_said(config):
    shot(config, WATTS)
    (config.state / "power" / "state.json").write_text('{"format": 1, "blocks": 7}')
    report, _ = shot(config, WATTS)
    assert "state started afresh" in report.alerts[0]
    assert report.new_blocks > 50


def test_a_finding_is_an_mlflow_run_with_its_page(config, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    report, _ = shot(replace(config, track=True, tracking_uri=uri), drifted(1.4))
    client = watch_module.open_client(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("joulewise").experiment_id])
    assert report.fresh[0].trigger.id in run.data.tags["trigger"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/watch_power.png"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("targets=[load]", "workload, power"),
        ("rules.loss.signal=luck", "loss_ratio"),
        ("rules.loss.severity=panic", "rollback"),
        ("rules.loss.detector.kind=oracle", "page_hinkley"),
        ("+rules.loss.sevrity=warn", "severity"),
        ("rules.loss.reference_blocks=many", "whole number"),
        ("power_curves=nowhere.json", "no such file"),
        ("outcomes=nowhere.csv", "no such file"),
        ("track=1", "true, false"),
        ("cooldown_h=-1", "from 0"),
        ("series_rules.new_share=2", "new_share"),
        ("now=noon", "now"),
    ],
)
def test_wrong_values_are_named(override, named):
    with pytest.raises(InputError, match=named):
        watch_config(OmegaConf.to_container(compose_config("watch", [override]), resolve=True))


def test_a_rule_can_be_switched_off():
    raw = OmegaConf.to_container(compose_config("watch", ["rules.bias=null"]), resolve=True)
    assert "bias" not in {rule.name for rule in watch_config(raw).rules}


def test_exit_codes_of_the_command(config, table, tmp_path, monkeypatch, capsys):
    drifted(1.4).to_parquet(config.series["power"])
    places = [f"{name}={tmp_path}/{name}" for name in ("live_state", "state", "out")]
    command = ["watch", "targets=power", f"series={config.series['power']}", *places, f"triggers={tmp_path}/triggers.jsonl"]
    codes = []
    for forecasts in (table, table, tmp_path / "nothing"):
        monkeypatch.setattr(sys, "argv", [*command, f"now={END.isoformat()}", f"hydra.run.dir={tmp_path}/hydra", f"forecasts={forecasts}"])
        with pytest.raises(SystemExit) as ended:
            watch_module.main()
        codes.append(ended.value.code)
    assert codes == [1, 0, 2]
    assert "no forecasts of power" in capsys.readouterr().err
