"""The benchmark of left-out devices: nothing of the left-out device's load is seen, and the cap curve is worth what the page says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.power_curves import mape, mlperf_rows, mlperf_table, printed, zeus_caps, zeus_rows, zeus_table
from envs.power.caps import CapCurve

FOLDER = Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")) / "c_power"
needs_traces = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no measurements under {FOLDER}")


def test_mape_by_hand():
    assert mape(np.array([110.0, 80.0]), np.array([100.0, 100.0])) == pytest.approx(15.0)


@needs_traces
def test_limits_of_a_left_out_board_are_predicted_within_five_percent_from_its_own_reading():
    rows = [row for row in zeus_rows(zeus_table(FOLDER)) if row["brings"] == "own reading"]
    assert len(rows) == 3
    for row in rows:
        assert row["ours"] < 5.0
        assert row["ours"] < row["linear"] / 2
    assert "own reading" in printed(rows)


@needs_traces
def test_with_the_data_sheet_alone_the_left_out_load_changes_no_prediction():
    table = zeus_table(FOLDER)
    own = table["model"] == "V100"

    def error(factor):
        moved = table.copy()
        moved.loc[own, ["average_power", "full_w"]] *= factor
        return next(row["ours"] for row in zeus_rows(moved) if (row["left_out"], row["brings"]) == ("V100", "data sheet"))

    # The prediction stays while the truth becomes enormous: it is then wholly missed.
    assert error(1000.0) == pytest.approx(100.0, abs=0.3)


@needs_traces
def test_mlperf_predictions_depend_on_the_left_out_system_by_its_idle_reading_only():
    table = mlperf_table(FOLDER)
    system = "1 x L4, MaxQ"
    above = {}
    for factor in (1.0, 1.5):
        moved = table.copy()
        own = moved["system"] == system
        moved.loc[own, "watts"] *= factor
        row = next(r for r in mlperf_rows(moved) if r["left_out"] == system and r["brings"].startswith("data sheet"))
        measured = moved.loc[own, "watts"].to_numpy()
        above[factor] = (row["ours"], measured)
    # 1.5 times the watts with the same prediction p: the error is mean |p / 1.5 y - 1|, with p within [(1 - e) y, (1 + e) y].
    error = above[1.0][0] / 100.0
    assert abs(above[1.5][0] / 100.0 - (1 - 1 / 1.5)) <= error / 1.5 + 1e-9


@needs_traces
def test_the_default_cap_curve_is_that_of_the_sweeps():
    fitted = zeus_caps(zeus_table(FOLDER))
    assert CapCurve().headroom == pytest.approx(fitted.headroom, abs=0.005)
    assert CapCurve().sharpness == pytest.approx(fitted.sharpness, abs=0.1)
