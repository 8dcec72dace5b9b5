"""The load forecast of measured runs: phases by hand, and nothing of a run's own future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from benchmarks.power_mlperf import HORIZON, STEP_S, GriddedRun, gridded, load_of, load_quantiles
from envs.power.runs import RunLog, clean_log


def run_log(train_s: float, benchmark: str = "b", nodes: int = 1) -> RunLog:
    """10 s idle at 2 kW, 40 s of start-up at 3 kW, training at 7 kW, 60 s idle; a reading a second."""
    time_s = np.arange(0.0, 110.0 + train_s + 1)
    watts = np.select([time_s <= 10, time_s <= 50, time_s <= 50 + train_s], [2000.0, 3000.0, 7000.0], 2000.0)
    logs = tuple(clean_log(f"node_{i}", time_s + 1000.0, watts) for i in range(nodes))
    return RunLog("s", benchmark, f"r{train_s}", "a", logs, 1010.0, 1050.0, 1050.0 + train_s)


def test_bins_keep_the_energy_and_a_site_is_the_sum_of_its_nodes():
    run = gridded(run_log(300.0, nodes=2))
    assert run.watts.shape == (2, 41)
    assert run.watts[0, 10] == pytest.approx(7000.0)
    frame = run.frame().pivot_table(index="ds", columns="unique_id", values="y")
    np.testing.assert_allclose(frame["power/site/2-nodes"], frame["power/node/n0"] + frame["power/node/n1"])
    copied = run_log(300.0, nodes=2)
    copied = replace(copied, nodes=(copied.nodes[0], replace(copied.nodes[1], copy_of="node_0")))
    assert gridded(copied).watts.shape[0] == 1, "a copy is no measurement"


def test_load_by_phase():
    edges = np.arange(0.0, 90.0, 10.0)
    assert load_of(edges, 10.0, 35.0, 65.0, 0.4).tolist() == pytest.approx([0, 0.4, 0.4, 0.7, 1, 1, 0.5, 0])


def past_runs() -> list[GriddedRun]:
    return [gridded(run_log(d)) for d in (200.0, 300.0, 400.0)]


def test_a_run_that_has_lasted_longer_than_most_is_expected_to_end():
    run = gridded(run_log(500.0))
    start = int(run.start_s // STEP_S)
    early = load_quantiles(run, start + 1, past_runs(), 0.3)
    late = load_quantiles(run, start + 31, past_runs(), 0.3)
    assert early[2, 4] == 1.0, "no earlier run was that short"
    assert late[-1, 4] < 0.5, "only the longest earlier run is left, and it ends within the horizon"
    assert early.shape == late.shape == (HORIZON, 9)
    assert (np.diff(early, axis=1) >= 0).all()
    beyond = load_quantiles(run, start + 45, past_runs(), 0.3)
    assert (beyond == 1.0).all(), "longer than any: nothing is known but that it runs"


def test_nothing_of_the_run_s_own_future_is_used():
    run = gridded(run_log(300.0))
    at = int(run.start_s // STEP_S) + 5
    other = replace(run, stop_s=run.stop_s + 500.0, watts=run.watts * np.where(np.arange(run.watts.shape[1]) > at, 2.0, 1.0))
    np.testing.assert_array_equal(load_quantiles(run, at, past_runs(), 0.3), load_quantiles(other, at, past_runs(), 0.3))
    waiting = replace(run, init_s=100.0, start_s=140.0, stop_s=440.0)
    assert (load_quantiles(waiting, 3, past_runs(), 0.3) == 0.0).all(), "a start to come is not known"
    assert isinstance(run.end, pd.Timestamp)
