"""``pipelines.forecast``: what it writes, what it remembers, and what it does with gaps, late rows, new and vanished series."""

from __future__ import annotations

import configparser
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.live_registry import demand_series, promote_forecaster
from models.base import QUANTILE_COLUMNS
from models.catalog import make_forecaster
from pipelines.cli import compose_config
from pipelines.forecast import ForecastConfig, forecast_config, run_once, source_of, summary_lines
from pipelines.live import target as target_module
from pipelines.live.champion import Served
from pipelines.live.observations import ObservationLog, _read, from_file, from_lake
from pipelines.live.target import TargetReport
from registry.digest import sha256_file
from registry.keys import read_trust, revoke
from registry.locks import exclusive
from registry.manifest import MANIFEST_FILE, package_digests, read_manifest
from registry.mlflow_client import open_client
from registry.signing import sign_package
from registry.tracking import open_tracking
from telemetry.errors import InputError
from telemetry.forecasts import ForecastTable
from telemetry.lake import Lake, SourceTables
from telemetry.quality import QualityReport
from telemetry.schema import empty

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
STEP = pd.Timedelta("10min")
HORIZON, TRAINED, SERIES = 6, 200, 5
BEGIN = pd.Timestamp("2026-01-05")
LAST_TRAINED = BEGIN + (TRAINED - 1) * STEP
SERIES_FRAME = demand_series(SERIES, TRAINED + 150)


def at(steps: int) -> pd.Timestamp:
    """Time so many steps after the last training row."""
    return LAST_TRAINED + steps * STEP


def rows_until(steps: int, frame: pd.DataFrame = SERIES_FRAME) -> pd.DataFrame:
    return frame[frame["ds"] <= at(steps)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    """Folder with a registry whose workload champion is version 1, a persistence."""
    root = tmp_path_factory.mktemp("registry")
    open_client(f"sqlite:///{root}/mlflow.db", must_exist=False)
    promote(root, "persistence")
    return root


def promote(root: Path, name: str, registered: str = "workload-forecaster", rows: pd.DataFrame | None = None) -> str:
    forecaster = make_forecaster(name, freq="10min", horizon=HORIZON, season_length=24).fit(rows_until(0) if rows is None else rows)
    scratch = root / f"package-{len(list(root.glob('package-*')))}"
    return promote_forecaster(open_tracking(f"sqlite:///{root}/mlflow.db"), forecaster, registered, scratch)


@pytest.fixture
def config(registry, tmp_path) -> ForecastConfig:
    """Configuration over a series file that the tests write."""
    overrides = [f"registry.tracking_uri=sqlite:///{registry}/mlflow.db", f"series={tmp_path}/series.parquet", "targets=workload"]
    return forecast_config(compose_config("forecast", [*overrides, f"state={tmp_path}/state", f"out={tmp_path}/lake"]))


@pytest.fixture
def run(config):
    """``run(steps, frame)``: one run at a time, with the observations that are there then; the report of the only target."""

    def go(steps: int, frame: pd.DataFrame | None = None, now: int | None = None):
        (rows_until(steps) if frame is None else frame).to_parquet(config.series["workload"])
        return run_once(replace(config, now=at(steps if now is None else now)))[0]

    return go


def table_of(config: ForecastConfig) -> pd.DataFrame:
    return ForecastTable(config.settings.out).read()


def test_forecasts_are_those_of_the_champion_on_all_it_could_know(run, config):
    report = run(3)
    assert (report.status, report.version, report.series, report.alerts) == ("written", "1", SERIES, [])
    assert report.issued_at == at(3).isoformat()
    expected = make_forecaster("persistence", freq="10min", horizon=HORIZON, season_length=24).fit(rows_until(0))
    expected = expected.update(rows_until(3)[rows_until(3)["ds"] > at(0)]).predict()
    table = table_of(config)
    assert list(table.columns) == ["unique_id", "issued_at", "ds", *QUANTILE_COLUMNS, "model", "version"]
    pd.testing.assert_frame_equal(table[list(QUANTILE_COLUMNS)], expected[list(QUANTILE_COLUMNS)])
    assert (table["issued_at"] == at(3).tz_localize("UTC")).all()
    assert set(table["version"]) == {"1"}
    views = Lake(config.settings.out).query("SELECT count(*) AS n, max(ds) AS last FROM forecasts")
    assert views["n"].iloc[0] == SERIES * HORIZON
    assert views["last"].iloc[0].tz_convert("UTC") == at(3 + HORIZON).tz_localize("UTC")


def test_a_member_that_corrects_itself_is_taken_over_where_it_stands():
    """Also for a series of a few rows, which leans on what others did at its age after it was corrected."""
    quick = {"n_estimators": 10, "max_train_rows": 2000, "min_data_in_leaf": 10, "threads": 1}
    forecaster = make_forecaster("lightgbm", freq="10min", horizon=HORIZON, season_length=24, **quick).fit(rows_until(60))
    newborn = rows_until(63)[rows_until(63)["ds"] > at(60)]
    forecaster.update(pd.concat([newborn, newborn[newborn["unique_id"] == "gpu_demand/pool-0003"].assign(unique_id="gpu_demand/pool-new")]))
    served = Served(forecaster)
    correction, said = served.first_correction(), served.said()
    issued = served.corrected(said, correction, served.scale())
    pd.testing.assert_frame_equal(served.frame(issued), forecaster.predict())
    assert np.abs(issued - said).max() > 0
    np.testing.assert_array_equal(served.scale(), forecaster._scales(forecaster._known_history()))
    young = served.known().ids == "gpu_demand/pool-new"
    alone = correction.apply(said, np.arange(HORIZON) * 3 // HORIZON, scale=served.scale()[:, None])
    assert np.abs(issued - np.maximum(alone, 0.0)).max(axis=(1, 2))[young] > 0
    assert all(row["steps"] == 0 for row in correction.report())


def test_rows_after_now_do_not_enter(run, config):
    report = run(2, rows_until(9), now=2)
    assert report.issued_at == at(2).isoformat()
    assert report.observations["after_now"] == 7 * SERIES
    assert table_of(config)["issued_at"].max() == at(2).tz_localize("UTC")


def test_the_same_run_twice_writes_once(run, config):
    run(1)
    first = {file: file.read_bytes() for file in ForecastTable(config.settings.out).files()}
    state = (config.settings.state / "workload" / "state.json").read_text()
    again = run(1)
    assert again.status == "unchanged"
    assert {file: file.read_bytes() for file in ForecastTable(config.settings.out).files()} == first
    assert json.loads(state)["adaptive"] == json.loads((config.settings.state / "workload" / "state.json").read_text())["adaptive"]


def test_a_run_that_was_killed_before_its_commit_is_done_again(run, config, monkeypatch):
    run(1)
    run(2)
    reference = config.settings.state.parent / "reference"
    shutil.copytree(config.settings.state, reference)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(target_module._State, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(3)
    run(3)
    interrupted = json.loads((config.settings.state / "workload" / "state.json").read_text())["adaptive"]
    shutil.rmtree(config.settings.state)
    shutil.copytree(reference, config.settings.state)
    run(3)
    assert json.loads((config.settings.state / "workload" / "state.json").read_text())["adaptive"] == interrupted
    assert not table_of(config).duplicated(["unique_id", "issued_at", "ds"]).any()


def test_intervals_learn_from_what_came_true(run, config):
    """Ten times the spread from the end of training on: raw intervals miss, the issued ones follow."""
    rng = np.random.default_rng(0)
    wild = SERIES_FRAME.copy()
    later = wild["ds"] > at(0)
    scale = wild.groupby("unique_id")["y"].transform("std")
    wild["y"] = np.where(later, wild["y"] + 3.0 * scale * rng.normal(size=len(wild)) + 100.0, wild["y"] + 100.0)
    matured = [run(steps, rows_until(steps, wild)).matured for steps in range(1, 25)]
    assert matured[:3] == [0, SERIES, 2 * SERIES]
    assert matured[-1] == HORIZON * SERIES
    report = run(25, rows_until(25, wild))
    assert [row["steps"] for row in report.coverage] == [24, 22, 20]
    assert report.coverage[0]["width80_ratio"] > 1.2
    assert "80 % intervals cover: near" in "\n".join(summary_lines(report))
    table = table_of(config)
    assert (np.diff(table[list(QUANTILE_COLUMNS)].to_numpy(), axis=1) >= 0).all()
    assert table["q10"].min() >= 0.0


def test_reported_coverage_is_that_of_the_issued_forecasts_that_came_true(run, config):
    for steps in range(1, 9):
        report = run(steps)
    table = table_of(config)
    told = table.merge(SERIES_FRAME.assign(ds=SERIES_FRAME["ds"].dt.tz_localize("UTC")), on=["unique_id", "ds"])
    told = told[told["ds"] <= at(8).tz_localize("UTC")]
    told["band"] = (((told["ds"] - told["issued_at"]) / STEP).astype(int) - 1) * 3 // HORIZON
    told["inside"] = (told["y"] >= told["q10"]) & (told["y"] <= told["q90"])
    by_time = told.groupby(["band", "ds"])["inside"].mean()
    for row in report.coverage:
        assert row["steps"] == len(by_time[row["band"]])
        assert row["coverage80"] == pytest.approx(by_time[row["band"]].mean())


def test_gaps_late_rows_and_series_that_lag(run, config):
    one, two = "gpu_demand/pool-0001", "gpu_demand/pool-0002"
    frame = rows_until(4)
    gap = frame[~((frame["unique_id"] == one) & frame["ds"].isin([at(2), at(3)])) & ~((frame["unique_id"] == two) & (frame["ds"] > at(2)))]
    report = run(4, gap)
    assert report.behind == [two]
    table = table_of(config)
    assert set(table.loc[table["unique_id"] == two, "issued_at"]) == {at(2).tz_localize("UTC")}
    report = run(5)
    assert report.observations["late"] == 2
    assert report.observations["new"] == SERIES + 2 + 2
    assert report.series == SERIES
    full = make_forecaster("persistence", freq="10min", horizon=HORIZON, season_length=24).fit(rows_until(0))
    expected = full.update(rows_until(5)[rows_until(5)["ds"] > at(0)]).predict()
    said = np.load(config.settings.state / "workload" / "pending" / f"{at(5).value}-v1" / "quantiles.npy")[:, :, 0]  # [H, N, Q]
    np.testing.assert_allclose(said.swapaxes(0, 1).reshape(-1, 9), expected[list(QUANTILE_COLUMNS)])


def test_a_series_that_did_not_move_on_is_not_issued_again(run, config):
    two = "gpu_demand/pool-0002"
    for steps in (1, 2, 3):
        frame = rows_until(steps)
        report = run(steps, frame[(frame["unique_id"] != two) | (frame["ds"] <= at(1))])
    assert report.series == SERIES - 1
    table = table_of(config)
    assert len(table[table["unique_id"] == two]) == HORIZON
    assert not table.duplicated(["unique_id", "issued_at", "ds"]).any()


def test_new_and_vanished_series_are_told(run, config):
    new = rows_until(HORIZON + 1)[rows_until(HORIZON + 1)["unique_id"] == "gpu_demand/pool-0003"].assign(unique_id="gpu_demand/new")
    frame = rows_until(HORIZON + 1)
    gone = "gpu_demand/pool-0000"
    frame = pd.concat([frame[(frame["unique_id"] != gone) | (frame["ds"] <= at(1))], new[new["ds"] > at(0)]])
    report = run(HORIZON + 1, frame)
    assert report.new_series == ["gpu_demand/new"]
    assert report.vanished == [gone]
    assert any("not forecast" in alert for alert in report.alerts)
    assert set(table_of(config)["unique_id"]) == ({*SERIES_FRAME["unique_id"], "gpu_demand/new"} - {gone})
    text = "\n".join(summary_lines(report))
    assert "new since training: 1 series (gpu_demand/new)" in text
    assert f"vanished: 1 series ({gone})" in text


def test_values_off_the_grid_are_left_out_and_counted(run):
    frame = rows_until(2)
    off = frame[(frame["ds"] == at(2))].assign(ds=at(2) + pd.Timedelta("3min"))
    report = run(2, pd.concat([frame, off]), now=3)
    assert report.observations["off_grid"] == SERIES
    assert report.issued_at == at(2).isoformat()


def test_a_first_row_off_the_grid_does_not_move_the_grid_of_training(run, config):
    frame = rows_until(1)
    off = frame[frame["ds"] == at(1)].assign(ds=at(1) - pd.Timedelta("3min"))
    report = run(1, pd.concat([frame[frame["ds"] <= at(0)], off]))
    assert (report.status, report.observations["off_grid"], report.issued_at) == ("written", SERIES, at(0).isoformat())
    report = run(2)
    assert (report.status, report.observations["new"], report.issued_at) == ("written", 2 * SERIES, at(2).isoformat())


def test_rows_before_the_first_that_came_may_be_late(run, config):
    frame = rows_until(3)
    run(3, frame[(frame["ds"] <= at(0)) | (frame["ds"] == at(3))])
    report = run(4)
    assert (report.observations["late"], report.observations["too_old"]) == (2 * SERIES, 0)


def test_old_observations_raise_an_alert(run):
    report = run(2, now=40)
    assert report.staleness_s == 38 * 600
    assert any(alert.startswith("stale: the newest observation is 380 min old") for alert in report.alerts)
    assert report.good


def test_a_revoked_version_serves_neither_from_the_registry_nor_from_the_copy(run, config, registry, tmp_path):
    own = shutil.copytree(registry, tmp_path / "own")
    rows_until(1).to_parquet(config.series["workload"])
    assert run_once(registry_of(own, config, 1))[0].good
    revoke(own / "keys", reason="trained on wrong data", versions=("workload-forecaster:1",))
    rows_until(2).to_parquet(config.series["workload"])
    report = run_once(registry_of(own, config, 2))[0]
    assert report.status == "failed"
    assert report.alerts[0].count("trained on wrong data") == 2


def test_a_refused_champion_leaves_the_last_good_one_in_service(run, config, registry, tmp_path):
    run(1)
    shutil.copytree(registry / "keys", tmp_path / "keys")
    broken = replace(config, settings=replace(config.settings, tracking_uri=f"sqlite:///{tmp_path}/gone.db"), now=at(2))
    rows_until(2).to_parquet(config.series["workload"])
    report = run_once(broken)[0]
    assert (report.status, report.version, report.series) == ("written", "1", SERIES)
    assert "no model registry" in report.alerts[0]
    assert not report.good
    (config.settings.state / "workload" / "package" / "weights" / "forecaster.json").write_text("{}")
    report = run_once(broken)[0]
    assert report.status == "failed"


def test_the_copy_that_serves_is_checked_as_the_registry_would(run, config, registry, tmp_path):
    """Its digests, that it is the one recorded, the scan and the verdicts; whatever fails is told beside what the registry said."""
    run(1)
    trust = read_trust(shutil.copytree(registry / "keys", tmp_path / "keys"))
    folder = config.settings.state / "workload"
    good = shutil.copytree(folder, tmp_path / "good")
    broken = replace(config, settings=replace(config.settings, tracking_uri=f"sqlite:///{tmp_path}/gone.db"), now=at(2))
    rows_until(2).to_parquet(config.series["workload"])

    def reseal(signed: bool = True, **changes: object) -> None:
        replace(read_manifest(folder / "package"), **changes).write(folder / "package")
        if signed:
            sign_package(folder / "package", trust)
        record = json.loads((folder / "champion.json").read_text())
        (folder / "champion.json").write_text(json.dumps({**record, "manifest_sha256": sha256_file(folder / "package" / MANIFEST_FILE)}))

    def other_record() -> None:
        record = json.loads((folder / "champion.json").read_text())
        (folder / "champion.json").write_text(json.dumps({**record, "manifest_sha256": "0" * 64}))

    def pickled() -> None:
        (folder / "package" / "weights" / "forecaster.json").write_bytes(pickle.dumps({"a": print}))
        reseal(files=package_digests(folder / "package"))

    gates = [{**gate, "passed": False} for gate in read_manifest(folder / "package").gates]
    for spoil, told in [
        (lambda: (folder / "champion.json").write_text("{}"), "champion.json cannot be read"),
        (other_record, "manifest.json was changed"),
        (pickled, "scan refused it"),
        (lambda: reseal(gates=gates), "its gates did not pass"),
        (lambda: reseal(signed=False, metrics={"wql": 0.0}), "does not fit"),
        (lambda: (folder / "package" / "signature.json").unlink(), "is not signed"),
        (lambda: reseal(registered_name="power-forecaster"), "made for 'power-forecaster'"),
        (lambda: shutil.rmtree(folder / "package"), "manifest.json is missing"),
    ]:
        shutil.rmtree(folder)
        shutil.copytree(good, folder)
        spoil()
        report = run_once(broken)[0]
        assert report.status == "failed", told
        assert "no model registry" in report.alerts[0]
        assert f"the last good copy cannot serve: {folder}" in report.alerts[0]
        assert told in report.alerts[0]


def test_a_copy_that_a_killed_run_left_with_the_record_of_another_is_recorded_anew(run, config):
    run(1)
    file = config.settings.state / "workload" / "champion.json"
    record = json.loads(file.read_text())
    for stale in ({"version": "7", "manifest_sha256": "0" * 64}, {"version": record["version"]}, []):
        file.write_text(json.dumps(stale))
        assert run(1).good
        assert json.loads(file.read_text()) == record


def registry_of(file: Path, config: ForecastConfig, steps: int) -> ForecastConfig:
    return replace(config, settings=replace(config.settings, tracking_uri=f"sqlite:///{file}/mlflow.db"), now=at(steps))


@pytest.mark.parametrize(("before", "lookback"), [((), 2), ((3,), 2), ((3,), 20)])
def test_an_older_version_gets_all_that_was_observed_since_it_was_trained(registry, run, config, tmp_path, before, lookback):
    """Whether it was in service before or not, and whether the newer one read back to what it had seen or not."""
    short = replace(config, settings=replace(config.settings, lookback_steps=lookback))
    newer = shutil.copytree(registry, registry.parent / f"{registry.name}-{tmp_path.name}")
    promote(newer, "persistence", rows=rows_until(20))
    for steps, root in [*((steps, registry) for steps in before), (30, newer), (31, newer), (32, registry), (33, registry)]:
        rows_until(steps).to_parquet(config.series["workload"])
        report = run_once(registry_of(root, short, steps))[0]
        assert (report.status, report.version) == ("written", "1" if root == registry else "2")
    log = ObservationLog.load(next((config.settings.state / "workload").glob("observations-*.npz")), STEP.value)
    found = log.later_than(dict.fromkeys(log.ids.tolist(), at(0).value))
    assert sorted(found["ds"].unique()) == [at(steps) for steps in range(1, 34)]
    assert len(found) == 33 * SERIES


def test_another_version_starts_its_own_intervals_and_finds_the_old_ones_again(registry, run, config):
    for steps in (1, 2, 3):
        run(steps)
    other = shutil.copytree(registry, registry.parent / f"{registry.name}-two")
    version = promote(other, "empirical_persistence")
    switched = replace(config, settings=replace(config.settings, tracking_uri=f"sqlite:///{other}/mlflow.db"), now=at(3))
    report = run_once(switched)[0]
    assert (report.status, report.version, report.model) == ("written", version, "empirical_persistence")
    assert [row["steps"] for row in report.coverage] == [0, 0, 0]
    stored = json.loads((config.settings.state / "workload" / "state.json").read_text())["adaptive"]
    assert list(stored) == ["1", version]
    assert run(4).coverage[0]["steps"] == 3
    assert set(table_of(config)["version"]) == {"1", version}


@pytest.mark.parametrize("content", [b"", b"{", None])
@pytest.mark.parametrize("spoiled", ["state.json", "observations-*.npz", "pending/*/ids.npy", "pending/*/quantiles.npy"])
def test_a_damaged_state_is_told_and_made_anew(run, config, spoiled, content):
    """Empty, of another format, and cut off in the middle; once, not in every run."""
    run(1)
    (file,) = (config.settings.state / "workload").glob(spoiled)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    report = run(2)
    assert (report.status, report.series) == ("written", SERIES)
    assert any("anew" in alert or "afresh" in alert or "dropped" in alert for alert in report.alerts)
    report = run(3)
    assert (report.status, report.series, report.alerts) == ("written", SERIES, [])


def test_a_pending_issue_without_one_of_its_files_is_dropped(run, config):
    run(1)
    (file,) = (config.settings.state / "workload").glob("pending/*/issued_ns.npy")
    file.unlink()
    report = run(2)
    assert (report.status, report.matured) == ("written", 0)
    assert any(alert.startswith("intervals do not learn from one issue") for alert in report.alerts)
    assert not file.parent.exists()
    assert run(3).matured == SERIES


def test_a_model_that_raises_fails_its_target_only(run, config, monkeypatch):
    from models.naive import Persistence

    def broken(self, panel, horizon):
        raise ZeroDivisionError("sigma")

    with monkeypatch.context() as patched:
        patched.setattr(Persistence, "_quantiles", broken)
        report = run(1)
    assert report.status == "failed"
    assert "ZeroDivisionError: sigma" in report.alerts[0]
    assert "broken" in report.traceback
    assert run(1).status == "written"


def test_only_one_run_at_a_time(run, config):
    with exclusive(config.settings.state / ".lock"), pytest.raises(InputError, match="held by another process"):
        run_once(replace(config, lock_timeout_s=0.0))


def test_old_days_are_dropped(config, run):
    short = replace(config, settings=replace(config.settings, retain_days=1))
    frame = demand_series(SERIES, TRAINED + 300)
    kept = []
    for steps in (1, 91, 235):  # of 6, 7 and 8 January
        rows_until(steps, frame).to_parquet(config.series["workload"])
        run_once(replace(short, now=at(steps)))
        kept.append(len(ForecastTable(config.settings.out).files()))
    assert kept == [1, 2, 2]
    assert set(table_of(config)["issued_at"]) == {at(91).tz_localize("UTC"), at(235).tz_localize("UTC")}
    ForecastTable(config.settings.out).prune("workload-forecaster", at(235) + pd.Timedelta(days=1))
    assert ForecastTable(config.settings.out).files() == []
    assert table_of(config).equals(empty("forecasts"))


def test_series_are_cut_from_the_lake(config, tmp_path):
    """The pools' demand as jobs: one job per pool and step, ended a step later."""
    jobs = empty("jobs")
    frame = rows_until(3)
    frame = frame[frame["ds"] > at(-30)]
    size = np.maximum(np.round(frame["y"]), 1.0).to_numpy()
    made = pd.DataFrame(
        {
            "job_id": [f"j{i}" for i in range(len(frame))],
            "submit_time": frame["ds"].to_numpy() - np.timedelta64(1, "s"),
            "end_time": (frame["ds"] + STEP).to_numpy() - np.timedelta64(1, "s"),
            "gpus": size,
            "workers": 1.0,
            "pool": frame["unique_id"].str.removeprefix("gpu_demand/").to_numpy(),
        }
    )
    for name in ("submit_time", "end_time"):
        made[name] = pd.to_datetime(made[name], utc=True).astype("datetime64[ns, UTC]")
    table = made.reindex(columns=jobs.columns)
    for name in jobs.columns.difference(made.columns):
        table[name] = pd.Series([None] * len(table), dtype=jobs[name].dtype)
    lake = tmp_path / "telemetry"
    Lake(lake).ingest(SourceTables("jobs", "0" * 64, {"jobs": table}, QualityReport()))
    report = run_once(replace(config, series={"workload": None}, lake_root=str(lake), now=at(3)))[0]
    assert report.status == "written", report.alerts
    assert (report.series, report.issued_at) == (SERIES, at(2).isoformat())  # demand is known until the last submission


def test_a_lake_without_news_is_no_error(tmp_path):
    times = pd.date_range("2026-01-05T00:05", periods=12, freq="10min", tz="UTC").astype("datetime64[ns, UTC]")
    text = {name: "" for name in empty("samples").columns if name not in ("time", "value")}
    samples = pd.DataFrame({"time": times, "value": 300.0, **text, "metric": "hw.power", "unit": "W", "node": "n1", "source": "meters"})
    lake = tmp_path / "lake"
    with pytest.raises(InputError, match="nothing to cut power from"):
        from_lake(lake, "power", "10min", BEGIN, 6)
    Lake(lake).ingest(SourceTables("meters", "1" * 64, {"samples": samples[empty("samples").columns]}, QualityReport()))
    found = from_lake(lake, "power", "10min", BEGIN + 3 * STEP, 6)
    assert found["unique_id"].unique().tolist() == ["power/node/n1"]
    assert (found["ds"].min(), found["ds"].max()) == (BEGIN + 4 * STEP, BEGIN + 12 * STEP)
    assert from_lake(lake, "power", "10min", BEGIN + 900 * STEP, 6).empty


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("targets=[weather]", "allowed: workload, power"),
        ("now=soon", "2026-01-05T12:00"),
        ("every_s=0", "from 1"),
        ("lookback_steps=1.5", "whole number"),
        ("series={demand: a.parquet}", "one by target"),
    ],
)
def test_wrong_values_are_named(override, named):
    with pytest.raises(InputError, match=named):
        forecast_config(compose_config("forecast", [override]))


def test_a_series_file_that_is_missing_or_wrong_is_told(run, config):
    report = run_once(replace(config, now=at(1)))[0]
    assert report.status == "failed"
    assert "no such file" in report.alerts[0]
    report = run(1, rows_until(1).drop(columns="y"))
    assert "missing column(s) y" in report.alerts[0]


@pytest.mark.parametrize(("unit", "zone"), [("ns", None), ("us", "UTC"), ("ms", None), ("us", "Asia/Tokyo")])
def test_a_series_file_is_read_from_then_on_whatever_the_unit_and_zone_of_its_times(tmp_path, unit, zone):
    ds = SERIES_FRAME["ds"].dt.tz_localize("UTC").dt.tz_convert(zone or "UTC").astype(f"datetime64[{unit}, {zone or 'UTC'}]")
    SERIES_FRAME.assign(ds=ds if zone else ds.dt.tz_localize(None)).to_parquet(tmp_path / "series.parquet")
    found = from_file(tmp_path / "series.parquet", at(3))
    expected = SERIES_FRAME[SERIES_FRAME["ds"] > at(3)].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    assert len(_read(tmp_path / "series.parquet", at(3) - pd.Timedelta("1ns"))) == len(found) + SERIES


@pytest.mark.parametrize(("targets", "shared"), [(("workload",), True), (("workload",), False), (("workload", "power"), True)])
def test_series_of_another_target_in_a_file_are_left_out(config, targets, shared):
    one = rows_until(1)[rows_until(1)["unique_id"] == "gpu_demand/pool-0001"]
    more = [one.assign(unique_id=uid) for uid in ("by-a-name-of-its-own", "power/node/n1")]
    pd.concat([rows_until(1), *more]).to_parquet(config.series["workload"])
    series = config.series if shared else {"workload": config.series["workload"]}
    report = run_once(replace(config, targets=targets, series=series, now=at(1)))[0]
    assert (report.target, report.status, report.series) == ("workload", "written", SERIES + 1)
    assert report.new_series == ["by-a-name-of-its-own"]


@pytest.mark.parametrize(("targets", "expected"), [(("power",), ["mine", "power/node/n1"]), (("workload", "power"), ["power/node/n1"])])
def test_an_id_without_a_target_is_of_the_only_one_or_of_the_workload(config, tmp_path, targets, expected):
    one = rows_until(1)[rows_until(1)["unique_id"] == "gpu_demand/pool-0001"]
    pd.concat([one.assign(unique_id=uid) for uid in ("gpu_demand/a", "mine", "power/node/n1")]).to_parquet(config.series["power"])
    found = source_of(replace(config, targets=targets))("power", BEGIN, "10min")
    assert sorted(found["unique_id"].unique()) == expected


def test_fallbacks_are_told_by_reason():
    few = {f"pool-{i}": "too little history" for i in range(5)} | {"odd": "no season", "odder": "no spread", "oddest": "no fit"}
    lines = summary_lines(TargetReport("workload", issued_at="2026-01-05T00:00:00", staleness_s=0.0, fallbacks=few))
    assert [line for line in lines if "on empirical persistence" in line] == [
        "  on empirical persistence: 5 series (pool-0, pool-1, pool-2 and 2 more): too little history",
        "  on empirical persistence: 1 series (odd): no season",
        "  on empirical persistence: 1 series (odder): no spread",
        "  on empirical persistence: 1 series (oddest): for 1 other reasons, see summary.json",
    ]


def test_nothing_promoted_is_bad_input(config):
    with pytest.raises(InputError, match=r"nothing was promoted yet for power; remedy: run `python -m pipelines.train`"):
        run_once(replace(config, targets=("power",)))


def test_examples_of_deployment_run_without_rights_they_do_not_need():
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read(EXAMPLES / "forecast.service")
    service = unit["Service"]
    assert service["User"] not in ("", "root")
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert service["ReadWritePaths"].split() == [service["WorkingDirectory"]]
    pod = yaml.safe_load((EXAMPLES / "forecast-cronjob.yaml").read_text())["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_command_itself_in_a_loop(registry, tmp_path):
    rows_until(2).to_csv(tmp_path / "series.csv", index=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.forecast", "series=series.csv", "every_s=1", "runs=2", f"now={at(2).isoformat()}"]
    done = subprocess.run(
        [*command, f"registry.tracking_uri=sqlite:///{registry}/mlflow.db"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"workload: persistence version 1: {SERIES} series, {SERIES * HORIZON} rows" in done.stdout
    assert "workload: persistence version 1: unchanged" in done.stdout
    assert "power: nothing was promoted yet" in done.stdout
    assert len(list((tmp_path / "outputs" / "lake").rglob("issued=*.parquet"))) == 1
