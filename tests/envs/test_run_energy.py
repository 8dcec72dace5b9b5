"""Energy of measured runs: cleaning and integration by hand, the replay by hand, and the left-out runs of the real logs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.mlperf_energy import PROTOCOLS, compare, fit_for, fit_with_startup, main, summary
from benchmarks.mlperf_logs import LogSet, read_runs
from envs.power import curves
from envs.power.run_replay import replay, replay_on, replayed_watts
from envs.power.runs import (
    NodePower,
    RunLog,
    clean_log,
    energy_kwh,
    idle_node_w,
    mean_active_w,
    mean_startup_w,
    measured_kwh,
    startup_s,
)
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("JOULEWISE_TRACES", ROOT.parent / "shared" / "traces")) / "c_power"
ONE, EIGHT = "1xSMC-H100-SXM-80GB", "8xSMC-H100-SXM-80GB"


def made_run(
    active_w=7000.0, *, idle_w=2000.0, startup_w=2600.0, nodes=1, name="r", benchmark="b", allocation="a", system=ONE, train_s=300
):
    """10 s idle, 40 s start-up, training, 60 s idle: square, one reading a second."""
    time_s = np.arange(0.0, 10 + 40 + train_s + 60 + 1)
    watts = np.full(len(time_s), idle_w)
    watts[(time_s > 10) & (time_s <= 50)] = startup_w
    watts[(time_s > 50) & (time_s <= 50 + train_s)] = active_w
    logs = tuple(clean_log(f"node_{i}", time_s + 1000.0, watts) for i in range(nodes))
    return RunLog(system, benchmark, name, allocation, logs, 1010.0, 1050.0, 1050.0 + train_s)


# ---------------------------------------------------------------- cleaning and integration


def test_readings_that_no_awake_node_gives_are_dropped_and_repeats_averaged():
    log = clean_log("n", [4, 0, 2, 2, 3, 5, 6, 7], [2400, 2000, 2100, 2300, -1, np.nan, -43, 54])
    assert log.time_s.tolist() == [0, 2, 4]
    assert log.watts.tolist() == [2000, 2200, 2400]
    assert (log.dropped, log.merged) == (4, 1)


@pytest.mark.parametrize(
    ("times", "watts", "words"),
    [
        ([0, 1], [2000], "2,\\) times for \\(1,\\) readings"),
        ([0, np.inf], [2000, 2000], "not a number"),
        ([0, 1, 2], [-1, 2000, 3], "1 usable of 3 readings"),
        ([5, 5], [2000, 2100], "1 usable of 2 readings"),
        ([], [], "0 usable of 0"),
    ],
)
def test_a_log_that_cannot_be_used_says_so(times, watts, words):
    with pytest.raises(InputError, match=words):
        clean_log("node_3", times, watts, where="bert/run_1")


def test_energy_is_the_area_under_straight_lines_between_readings():
    log = clean_log("n", [0, 10, 30], [1000, 2000, 2000])
    assert energy_kwh(log, 0, 30) * 3.6e6 == pytest.approx(15_000 + 40_000)
    assert energy_kwh(log, 5, 20) * 3.6e6 == pytest.approx(5 * 1750 + 20_000)  # from 1500 W on
    assert energy_kwh(log, -2, 32) * 3.6e6 == pytest.approx(2 * 1000 + 55_000 + 2 * 2000)
    assert energy_kwh(log, 7, 7) == 0.0
    with pytest.raises(InputError, match="begin <= end"):
        energy_kwh(log, 8, 7)


def test_a_missing_stretch_is_bridged_and_counted_as_a_gap():
    whole = made_run()
    log = whole.nodes[0]
    watts = np.where((log.time_s >= 1100) & (log.time_s < 1170), -1.0, log.watts)
    holed = replace(whole, nodes=(clean_log("node_0", log.time_s, watts),))
    assert holed.nodes[0].dropped == 70
    assert holed.longest_gaps_s() == pytest.approx([71.0])
    assert measured_kwh(holed, *holed.window_s) == pytest.approx(measured_kwh(whole, *whole.window_s))


def test_windows_are_whole_seconds_within_the_readings_with_the_training_on_one():
    run = replace(made_run(), run_start_s=1050.4, run_stop_s=1349.9)
    logs = (run.nodes[0], clean_log("late", run.nodes[0].time_s[3:-2] + 0.3, run.nodes[0].watts[3:-2]))
    run = replace(run, nodes=logs)
    assert run.span_s == pytest.approx((1003.3, 1408.3))
    begin, end = run.window_s
    assert begin == pytest.approx(1003.4)
    assert end - begin == pytest.approx(404)
    assert run.timed_s == (1050.4, 1349.9)
    assert startup_s(run) == (1010.0, 1050.4)
    early = replace(run, run_start_s=990.0, init_start_s=900.0)  # the log begins after the training did
    assert early.timed_s[0] == pytest.approx(1003.3)
    assert startup_s(early)[0] == startup_s(early)[1]


# ---------------------------------------------------------------- fits


def test_fits_by_hand():
    runs = [made_run(6800.0), made_run(7200.0), made_run(5000.0, benchmark="other")]
    ramp = 300 * 0.5 / 300  # the first second of training climbs half way
    assert mean_active_w(runs[:2]) == pytest.approx(7000.0 - ramp * (7000 - 2600) / 300, rel=1e-6)
    both = mean_active_w(runs)  # two benchmarks count the same although one has two runs
    assert both == pytest.approx((mean_active_w(runs[:2]) + mean_active_w(runs[2:])) / 2)
    assert mean_startup_w(runs) == pytest.approx(2600.0 - 0.5 * 600 / 40)
    quiet = idle_node_w(runs[:1], without_startup=True)
    assert quiet == pytest.approx(2000.0 + 0.5 * 4800 / 70)  # the fall after training is outside it
    assert idle_node_w(runs[:1]) == pytest.approx((quiet * 70 + (2600.0 - 7.5) * 40) / 110)
    only_training = replace(runs[0], run_start_s=900.0, run_stop_s=2000.0)
    with pytest.raises(InputError, match="no reading outside"):
        idle_node_w([only_training])
    with pytest.raises(InputError, match="at least one run"):
        mean_active_w([])


def test_the_left_out_run_changes_nothing_in_its_own_fit():
    runs = [made_run(w, name=f"r{i}", allocation=f"a{i % 2}") for i, w in enumerate((6800.0, 6900.0, 7000.0, 7100.0))]
    runs += [made_run(6000.0, benchmark="c", name="c1")]
    runs += [made_run(w, system=EIGHT, nodes=8, name=f"e{i}", train_s=60) for i, w in enumerate((5000.0, 5100.0))]
    runs += [made_run(w, system=EIGHT, nodes=8, benchmark="c", name=f"f{i}", train_s=50) for i, w in enumerate((5200.0, 5300.0))]
    for index, left in ((0, runs[0]), (5, runs[5])):
        strange = made_run(
            9999.0,
            idle_w=3500.0,
            nodes=len(left.nodes),
            system=left.system,
            name=left.run,
            allocation=left.allocation,
            train_s=round(left.run_stop_s - left.run_start_s),
        )
        others = (*runs[:index], strange, *runs[index + 1 :])
        for protocol in PROTOCOLS[:-1]:
            fit = fit_for(left, tuple(runs), protocol)
            assert fit == fit_for(strange, others, protocol), protocol
        assert fit_with_startup(left, tuple(runs), "run") == fit_with_startup(strange, others, "run")


def test_protocols_take_the_runs_that_they_name():
    runs = tuple(made_run(w, name=f"r{i}", allocation=f"a{i % 2}") for i, w in enumerate((6800.0, 6900.0, 7000.0)))
    runs += (made_run(6000.0, benchmark="c", name="c1"),)
    assert fit_for(runs[0], runs, "run").fitted_on == 2
    assert fit_for(runs[0], runs, "allocation").fitted_on == 1
    assert fit_for(runs[0], runs, "benchmark").power.active_w == pytest.approx(mean_active_w(runs[3:]))
    assert fit_for(runs[0], runs, "scale") is None
    assert fit_for(runs[3], runs, "run") is None


def test_power_that_makes_no_pool_is_refused():
    with pytest.raises(InputError, match="0 < idle <= active"):
        NodePower(3000.0, 2000.0)
    with pytest.raises(InputError, match="gpu_idle_w 300"):
        NodePower(2000.0, 7000.0).pool("p", "s", "H100", 1, 300.0)


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("nodes", [1, 8])
def test_replay_by_hand(nodes):
    run, power = made_run(nodes=nodes), NodePower(2000.0, 7000.0, startup_w=2600.0)
    result = replay(run, power, gpu_idle_w=70.0)
    assert (result.seconds, result.job_s, result.startup_begin_s) == (410, (50, 350), None)
    assert result.timed_kwh == pytest.approx(nodes * 300 * 7000 / 3.6e6, rel=1e-9)
    assert result.window_kwh == pytest.approx(nodes * (300 * 7000 + 110 * 2000) / 3.6e6, rel=1e-9)
    started = replay(run, power, gpu_idle_w=70.0, with_startup=True)
    assert started.startup_begin_s == 10
    assert started.window_kwh == pytest.approx(nodes * (300 * 7000 + 40 * 2600 + 70 * 2000) / 3.6e6, rel=1e-9)
    assert replay(run, power, gpu_idle_w=0.0).window_kwh == pytest.approx(result.window_kwh, rel=1e-9)
    edges, watts = replayed_watts(run, power, started)
    assert edges.tolist() == [0, 10, 50, 350, 410]
    assert watts == pytest.approx([2000, 2600, 7000, 2000])


def test_a_run_that_fills_its_window_needs_no_idle_around():
    run = replace(made_run(), run_start_s=900.0, run_stop_s=2000.0)
    result = replay(run, NodePower(2000.0, 7000.0), gpu_idle_w=70.0, with_startup=True)
    assert result.job_s == (0, 410)
    assert result.window_kwh == pytest.approx(410 * 7000 / 3.6e6, rel=1e-9)


def test_replay_keeps_the_measured_duration_on_a_faster_model_and_refuses_a_wrong_pool():
    run = made_run(train_s=301)
    pool = NodePower(2000.0, 7000.0).pool("p", "site", "H100", 1, 70.0)
    result = replay_on(run, pool)
    h100_w = float(curves.levels_for("H100", (1.0,))[1][0, WORKLOAD_CLASSES.index("training")])
    assert result.job_s == (50, 351)
    assert result.timed_kwh == pytest.approx(301 * (2000 + 8 * (h100_w - 70)) / 3.6e6, rel=1e-9)
    with pytest.raises(InputError, match="a pool of 2 nodes"):
        replay_on(run, replace(pool, nodes=2))


def test_errors_and_their_summary_by_hand():
    runs = tuple(made_run(w, name=f"r{w:.0f}", allocation="one", startup_w=2000.0) for w in (6000.0, 7000.0))
    records = compare(LogSet(runs, ()))
    assert [record["protocol"] for record in records] == ["run", "shipped", "run", "shipped"]  # no other allocation, benchmark or scale
    ramp_j = 0.5 * 5000  # the fall after the last second of training lies outside the timed part, the climb inside
    fitted = 7000 - ramp_j / 300
    timed = records[0]["errors"]["timed"]
    assert timed == pytest.approx(100 * (fitted / (6000 - 0.5 * 4000 / 300) - 1), rel=1e-6)
    table = summary(records).set_index(["protocol", "system", "compared"])
    row = table.loc[("run", "all", "timed")]
    assert (row["runs"], row["within"]) == (2, 0.0)
    assert row["worst"] == pytest.approx(timed)


def test_the_command_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mlperf_energy", "--traces", str(tmp_path), "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit, match="no such file"):
        main()
    assert not (tmp_path / "x.json").exists()


# ---------------------------------------------------------------- curves of one's own


def test_own_curves_replace_a_model_and_leave_the_others():
    own = curves.points_of(NodePower(2000.0, 7000.0, source="mine").curves("H100", 70.0), "mine")
    table = curves.curve_table(own)
    speed, power_w = curves.levels_for("H100", (1.0,), table)
    assert speed.tolist() == [[1.0] * len(WORKLOAD_CLASSES)]
    assert power_w == pytest.approx(np.full((1, len(WORKLOAD_CLASSES)), 695.0))
    assert np.array_equal(curves.levels_for("V100", (1.0,), table)[1], curves.levels_for("V100", (1.0,))[1])
    rising = curves.load_curves().assign(power_w=lambda rows: 1.0 / rows["level_fraction"])
    with pytest.raises(InputError, match="power_w rises"):
        curves.points_of(rising, "mine")


# ---------------------------------------------------------------- the real logs


def test_no_logs_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="JOULEWISE_TRACES"):
        read_runs(tmp_path)


@pytest.fixture(scope="module")
def logs() -> LogSet:
    if not (FOLDER / "mlperf_train40_smc_1_8node_watts.parquet").is_file():
        pytest.skip(f"no node power logs in {FOLDER} (set JOULEWISE_TRACES)")
    return read_runs(FOLDER)


def test_the_logs_hold_95_runs_once_each(logs):
    assert len(logs.runs) == 95
    assert len(logs.repeated_runs) == 5
    assert sum(bool(log.copy_of) for run in logs.runs for log in run.nodes) == 50
    assert {len(run.nodes) for run in logs.runs} == {1, 8}
    assert all((np.diff(log.time_s) > 0).all() for run in logs.runs for log in run.nodes)
    dropped = [run.run for run in logs.runs if any(log.dropped for log in run.nodes)]
    assert dropped == ["result_4957-240509201759121706710_2"]


def test_left_out_runs_are_replayed_within_5_percent(logs):
    """One run of every benchmark and scale, and the one whose meters dropped out, each fitted on all the others."""
    first: dict[tuple, RunLog] = {}
    for run in logs.runs:
        first.setdefault((run.system, run.benchmark), run)
    left = [*first.values(), next(run for run in logs.runs if run.longest_gaps_s().max() > 30)]
    worst = []
    for run in left:
        fit = fit_for(run, logs.runs, "run")
        result = replay(run, fit.power, gpu_idle_w=70.0)
        worst.append(100 * (result.window_kwh / measured_kwh(run, *run.window_s) - 1))
        worst.append(100 * (result.timed_kwh / measured_kwh(run, *run.timed_s) - 1))
    assert len(worst) == 20
    assert np.abs(worst).max() < 5.0
    assert np.median(np.abs(worst)) < 2.0


def test_eight_nodes_draw_less_per_node_than_one_and_waiting_explains_most(logs):
    run = next(run for run in logs.runs if run.benchmark == "resnet" and run.system == EIGHT)
    measured = measured_kwh(run, *run.timed_s)
    error = {
        name: 100 * (replay(run, fit_for(run, logs.runs, name).power, gpu_idle_w=70.0).timed_kwh / measured - 1)
        for name in ("scale", "scale_wait")
    }
    assert error["scale"] > 10.0
    assert abs(error["scale_wait"]) < 5.0
