"""The forecast benchmark's pieces: windows, peers, resuming, ranks, means and the table. Nothing here looks at a clock."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from series_makers import daily, series_frame

from benchmarks import forecast, forecast_data, forecast_report, forecast_runs, forecast_skill
from benchmarks.forecast_outside import Recorded, run_outside, windows_of
from benchmarks.forecast_peers import PEERS, VARIANTS, conformal_distribution, on_grid
from models.backtest import BacktestConfig
from models.base import QUANTILE_COLUMNS
from models.metrics import bootstrap_ratio
from telemetry.errors import InputError

SMALL = BacktestConfig(horizon=18, origins=3, calibration_origins=0, test_fraction=0.2)


@pytest.fixture(scope="module")
def series():
    values = {"busy": daily(500, 1), "idle": np.zeros(500), "signed": daily(500, 2) - 40}
    frame = series_frame(values)
    return frame[~((frame["unique_id"] == "busy") & frame.index.isin(range(200, 210)))]


# ---------------------------------------------------------------- peers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*PEERS, *VARIANTS])
def test_peers_keep_the_contract(name, series, monkeypatch):
    monkeypatch.setattr("benchmarks.forecast_peers.StatsPeer.windows", 3)
    monkeypatch.setattr("benchmarks.forecast_peers.MlforecastPeer.windows", 3)
    monkeypatch.setattr("benchmarks.forecast_peers.MlforecastPeer.trees", 3)
    pytest.importorskip("mlforecast" if name.startswith("mlforecast") else "statsforecast")
    cut = series["ds"].min() + pd.Timedelta("3D")
    peer = (PEERS | VARIANTS)[name](freq="10min", horizon=4, season_length=144, input_size=300)
    peer.fit(series[series["ds"] <= cut])
    first = peer.predict()
    later = peer.update(series[(series["ds"] > cut) & (series["ds"] <= cut + pd.Timedelta("20min"))]).predict()
    for frame, issued in ((first, cut), (later, cut + pd.Timedelta("20min"))):
        assert list(frame.columns) == ["unique_id", "issued_at", "ds", *QUANTILE_COLUMNS, "model"]
        assert set(frame["issued_at"]) == {issued}
        assert set(frame["ds"]) == set(pd.date_range(issued + pd.Timedelta("10min"), periods=4, freq="10min"))
        quantiles = frame[list(QUANTILE_COLUMNS)].to_numpy()
        assert np.isfinite(quantiles).all()
        assert (np.diff(quantiles, axis=1) >= 0).all()
        assert (quantiles[frame["unique_id"] != "signed"] >= 0).all()
    assert (later["q50"].to_numpy() != first["q50"].to_numpy()).any()


def test_gaps_are_filled_forward_only():
    frame = series_frame({"a": np.arange(6)}).drop(index=[2, 3])
    assert on_grid(frame, "10min")["y"].tolist() == [0, 1, 1, 1, 4, 5]


def test_conformal_offsets_are_quantiles_of_both_signs():
    errors = np.array([[1.0, -2.0], [-3.0, 4.0]])
    offsets = conformal_distribution(errors)
    assert offsets.shape == (2, 9)
    assert offsets[0].tolist() == pytest.approx(np.quantile([-3, -1, 1, 3], np.arange(1, 10) / 10).tolist())
    assert offsets[:, 4].tolist() == pytest.approx([0.0, 0.0])


# ---------------------------------------------------------------- runs


def test_a_result_is_taken_from_disk_only_for_the_same_data_and_settings(series, tmp_path, monkeypatch):
    first = forecast_runs.run_one(tmp_path, "small", series, "10min", "persistence", SMALL)
    assert first["error"] is None
    assert first["windows"]["origins"] == 3
    assert first["crossings"] == 0
    assert set(first["cpu_s"]) == {"fit", "update", "predict"}

    def never(*args, **options):
        raise AssertionError("computed again")

    real = forecast_runs.backtest_of
    monkeypatch.setattr(forecast_runs, "backtest_of", never)
    assert forecast_runs.run_one(tmp_path, "small", series, "10min", "persistence", SMALL) == json.loads(json.dumps(first))
    with pytest.raises(AssertionError, match="computed again"):
        forecast_runs.run_one(tmp_path, "small", series.assign(y=series["y"] + 1), "10min", "persistence", SMALL)
    (tmp_path / "small" / "persistence.parquet").unlink()  # as if killed between the two files
    with pytest.raises(AssertionError, match="computed again"):
        forecast_runs.run_one(tmp_path, "small", series, "10min", "persistence", SMALL)
    monkeypatch.setattr(forecast_runs, "backtest_of", real)
    again = forecast_runs.run_one(tmp_path, "small", series, "10min", "persistence", SMALL)
    assert again["overall"] == first["overall"]


def test_a_forecaster_that_fails_is_a_result(series, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, **options):
            raise RuntimeError("no")

    monkeypatch.setitem(PEERS, "broken", Broken)
    record = forecast_runs.run_one(tmp_path, "small", series, "10min", "broken", SMALL)
    assert "RuntimeError: no" in record["error"]
    forecast_runs.run_one(tmp_path, "small", series, "10min", "persistence", SMALL)
    monkeypatch.setitem(forecast_data.DATA_SETS, "small", forecast_data.DataSet("small", "small", lambda *_: series))
    summary = forecast_report.summarise(tmp_path, ["small"], ["persistence", "broken"], ["broken"])
    assert "RuntimeError: no" in summary["failed"]["small"]["broken"]
    assert list(summary["results"]["small"]) == ["persistence"]


PEER = """
import json, sys
from pathlib import Path
import pandas as pd
folder = Path(sys.argv[2])
task = json.loads((folder / "task.json").read_text())
windows = pd.read_parquet(folder / "windows.parquet")
series = pd.read_parquet(folder / "series.parquet")
parts = []
for _, rows in windows.iterrows():
    known = series[(series["unique_id"] == rows["unique_id"]) & (series["ds"] <= rows["issued_at"])]
    for step in range(1, task["horizon"] + 1):
        ds = rows["issued_at"] + step * pd.Timedelta(task["freq"])
        quantiles = {name: known["y"].iloc[-1] - k for k, name in enumerate(task["columns"])}
        parts.append({"unique_id": rows["unique_id"], "issued_at": rows["issued_at"], "ds": ds, **quantiles})
pd.DataFrame(parts).to_parquet(folder / "forecasts.parquet")
(folder / "result.json").write_text(json.dumps({"cpu_s": {"fit": 1.0, "predict": 2.0}, "fits": 1, "versions": {}}))
print("progress 1 1")
"""


def test_an_outside_peer_is_scored_on_the_same_windows(series, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text(PEER)
    monkeypatch.setattr("benchmarks.forecast_outside.SCRIPT", script)
    seen = []
    record = run_outside(
        tmp_path, "small", series, "10min", "nhits", sys.executable, SMALL, {}, lambda *told: seen.append(told), fresh=True
    )
    forecast_runs.run_one(tmp_path, "small", series, "10min", "persistence", SMALL)
    assert record["error"] is None
    assert seen == [("nhits", 1, 1)]
    assert record["cpu_s"] == {"fit": 1.0, "update": 0.0, "predict": 2.0}
    assert record["crossings_before_sorting"] == record["windows"]["rows"]
    assert record["crossings"] == 0
    ours, theirs = (pd.read_parquet(tmp_path / "small" / f"{name}.parquet") for name in ("persistence", "nhits"))
    assert forecast_skill.same_windows(ours, theirs)
    assert not forecast_skill.same_windows(ours, theirs.iloc[1:])


def test_an_outside_peer_that_fails_says_what_it_said(series, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit('no such model')")
    monkeypatch.setattr("benchmarks.forecast_outside.SCRIPT", script)
    record = run_outside(tmp_path, "small", series, "10min", "nhits", sys.executable, SMALL, {}, print)
    assert "no such model" in record["error"]


def test_recorded_forecasts_are_those_issued_at_what_is_known(series):
    windows = windows_of(series, "10min", SMALL)
    assert windows.groupby("origin")["unique_id"].nunique().tolist() == [3, 3, 3]
    steps = windows.assign(ds=windows["issued_at"] + pd.Timedelta("10min"))
    forecasts = steps.assign(**{name: -float(k) for k, name in enumerate(QUANTILE_COLUMNS)})
    recorded = Recorded(forecasts)
    issued = windows.loc[windows["origin"] == 1, "issued_at"].max()
    told = recorded.fit(series[series["ds"] <= issued]).predict()
    assert set(told["issued_at"]) == {issued}
    assert (told.loc[told["unique_id"] != "signed", "q10"] == 0.0).all()
    assert (told.loc[told["unique_id"] == "signed", list(QUANTILE_COLUMNS)].to_numpy() == np.arange(-8.0, 1.0)).all()


# ---------------------------------------------------------------- skill


def test_critical_difference_is_that_of_demsar():
    assert forecast_skill.critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)  # Demsar 2006, section 3.2.5 (q = 2.569)
    assert forecast_skill.critical_difference(2, 30) == pytest.approx(1.96 * np.sqrt(6 / 180), abs=1e-3)


def test_ranks_share_ties_and_leave_out_gaps():
    table = pd.DataFrame({"a": [1.0, 2.0, 1.0], "b": [1.0, 1.0, np.nan], "c": [5.0, 9.0, 0.0]})
    assert forecast_skill.mean_ranks(table).to_dict() == {"b": 1.25, "a": 1.75, "c": 3.0}


def test_groups_are_the_longest_runs_that_do_not_differ():
    ranks = pd.Series([1.0, 1.8, 2.5, 5.0], index=list("abcd"))
    assert forecast_skill.rank_groups(ranks, 1.0) == [(0, 1), (1, 2)]
    assert forecast_skill.rank_groups(ranks, 2.0) == [(0, 2)]
    assert forecast_skill.rank_groups(ranks, 0.1) == []


def test_geometric_mean_is_that_of_the_ratios_and_one_set_gives_the_usual_interval():
    rng = np.random.default_rng(0)
    losses = {d: {n: rng.uniform(1, 2, 30) * k for n, k in (("x", 1.0), ("persistence", 2.0), ("seasonal_naive", 3.0))} for d in "ab"}
    told = forecast_skill.compare(losses, ["x"], ["a", "b"])
    assert told["better_naive"] == {"a": "persistence", "b": "persistence"}
    ratios = [losses[d]["x"].sum() / losses[d]["persistence"].sum() for d in "ab"]
    mean = told["geometric"]["x"]["naive"]
    assert mean["ratio"] == pytest.approx(np.sqrt(ratios[0] * ratios[1]))
    assert mean["low"] < mean["ratio"] < mean["high"]
    one = told["ratios"]["a"]["x"]["naive"]
    assert (one["ratio"], one["low"], one["high"]) == pytest.approx(bootstrap_ratio(losses["a"]["x"], losses["a"]["persistence"]))
    assert told["geometric"]["x"]["peer"] == {"ratio": 1.0, "low": 1.0, "high": 1.0}


def test_scaled_losses_weigh_series_by_their_scale():
    rows = [
        {"unique_id": uid, "origin": k, "y": y, **dict.fromkeys(QUANTILE_COLUMNS, 0.0)}
        for k in (0, 1)
        for uid, y in (("a", 1.0), ("b", 100.0))
    ]
    frame = pd.DataFrame(rows)
    assert forecast_skill.origin_losses(frame) == pytest.approx([101.0, 101.0])
    assert forecast_skill.origin_losses(frame, {"a": 1.0, "b": 50.0}) == pytest.approx([3.0, 3.0])
    assert forecast_skill.origin_losses(frame, {"a": 0.0, "b": 50.0}) == pytest.approx([2.0, 2.0])


def test_best_peer_per_data_set_is_stricter_than_the_best_single_one():
    flat = np.ones(10)
    losses = {"a": {"p": flat, "q": 2 * flat, "us": flat}, "b": {"p": 4 * flat, "q": flat, "us": flat}, "c": {"p": flat, "us": flat}}
    told = forecast_skill.compare(losses, ["p", "q"], ["a", "b"])
    assert told["best_peer"] == {"a": "p", "b": "q", "c": "p"}
    assert told["best_single_peer"] == "q"
    assert told["geometric"]["us"]["peer"]["ratio"] == pytest.approx(1.0)
    assert told["geometric"]["us"]["single_peer"]["ratio"] == pytest.approx(np.sqrt(0.5))
    assert told["geometric"]["us"]["naive"] is None


# ---------------------------------------------------------------- command, report


def test_the_command_resumes_reports_draws_and_writes_the_table(series, tmp_path, monkeypatch, capsys):
    tiny = forecast_data.DataSet("tiny", "tiny series", lambda *_: series)
    for module in (forecast, forecast_report, forecast_data):
        monkeypatch.setattr(module, "DATA_SETS", {"tiny": tiny})
    monkeypatch.setattr(forecast, "play", lambda tasks, jobs: [forecast.run_task(task) for task in tasks])
    monkeypatch.setattr(forecast, "traces_root", lambda: tmp_path)
    page, out = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"# Page\n\nbefore\n\n{forecast_report.BEGIN}\nold\n{forecast_report.END}\n\nafter\n")
    words = ["forecast", "--quick", "--data", "tiny", "--only", "empirical_persistence", "--jobs", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    assert forecast.main() == 0
    monkeypatch.setattr(sys, "argv", [*words, "--report", "--docs", str(page)])
    assert forecast.main() == 0
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("# Page\n\nbefore\n")
    assert text.endswith("\n\nafter\n")
    assert "| **empirical_persistence** |" in text
    assert "`python -m benchmarks.forecast --quick" in text
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["results"]["tiny"]) == {"persistence", "seasonal_naive", "empirical_persistence"}
    assert summary["ranks"]["cases"] == 3
    assert (out / "skill.png").stat().st_size > 0
    assert (out / "critical_difference.png").stat().st_size > 0
    assert "against the better naive" in capsys.readouterr().out


def test_data_sets_without_traces_are_told_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JOULEWISE_TRACES", str(tmp_path / "none"))
    assert forecast.usable_sets(["helios", "sample_power"]) == ["sample_power"]
    assert "helios: left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="JOULEWISE_TRACES"):
        forecast_data.load_data("helios", forecast_data.traces_root(), tmp_path)
    with pytest.raises(InputError, match="unknown data set 'weather'"):
        forecast_data.load_data("weather", tmp_path, tmp_path)


def test_interpreters_by_peer(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    found = forecast.interpreters([f"autogluon={other}", str(one)])
    assert {name: Path(python).name for name, python in found.items()} == {"nhits": "one", "patchtst": "one", "autogluon": "other"}
    with pytest.raises(InputError, match="unknown peer 'prophet'"):
        forecast.interpreters([f"prophet={one}"])
    with pytest.raises(InputError, match="no such file"):
        forecast.interpreters([str(tmp_path / "none")])
    with pytest.raises(InputError, match="nhits has no interpreter"):
        forecast.chosen_names(["nhits"], {})


@pytest.mark.skipif(not forecast_data.traces_root().is_dir(), reason=f"no traces at {forecast_data.traces_root()}")
@pytest.mark.parametrize("name", [name for name, data in forecast_data.DATA_SETS.items() if data.public])
def test_public_data_sets_give_forty_origins_that_share_no_factor_with_the_day(name, tmp_path):
    series = forecast_data.load_data(name, forecast_data.traces_root(), tmp_path)
    windows = windows_of(series, forecast_data.FREQ, forecast_runs.backtest_config())
    assert windows["origin"].nunique() >= 40
    assert windows.groupby("origin")["unique_id"].nunique().min() == series["unique_id"].nunique()
    first = windows[windows["origin"] == 0].set_index("unique_id")["issued_at"]
    known = series[series["ds"] <= series["unique_id"].map(first)]
    assert known.groupby("unique_id").size().min() >= 3 * 144
