"""Profiles of jobs: whose readings they are, shares of the board, and nothing after the time they are seen at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from telemetry.errors import InputError
from telemetry.job_profiles import job_profiles

START = pd.Timestamp("2026-01-05", tz="UTC")
NEVER = pd.Series([pd.NaT], dtype="datetime64[ns, UTC]")


def at(minutes):
    return START + pd.Timedelta(minutes=minutes)


def rows(metric, values, *, pod, device="gpu0", node="n1"):
    times = [at(m) for m in range(1, len(values) + 1)]
    return pd.DataFrame({"time": times, "metric": metric, "value": values, "site": "s", "node": node, "device": device, "pod_uid": pod})


def jobs_table(**changes):
    times = {"submit_time": START, "start_time": START, "end_time": at(4)}
    row = {"job_id": "a", "workload_class": "training", **times, "gpus": 2.0, "workers": 1.0, "requested_duration_s": np.nan}
    return pd.DataFrame([row | changes])


SAMPLES = pd.concat(
    [
        rows("hw.power", [100.0, 110.0, 120.0, 130.0, 999.0, 999.0], pod="a-1f00d"),
        rows("hw.power", [300.0, 310.0, 320.0, 330.0], pod="a-1f00d", device="gpu1"),
        rows("hw.gpu.utilization", [0.1, 0.2, 0.3, 0.4], pod="a-1f00d"),
        rows("hw.power", [7.0], pod="b-1f00d", device="gpu2"),
        rows("hw.power", [8.0], pod="", device="gpu3"),
    ],
    ignore_index=True,
)


def test_readings_of_a_job_are_the_mean_of_its_devices_until_it_ends():
    (profile,) = job_profiles(SAMPLES, jobs_table(), {"n1": (50.0, 250.0)})
    assert profile.seconds.tolist() == [60.0, 120.0, 180.0, 240.0]
    assert profile.power_w.tolist() == [200.0, 210.0, 220.0, 230.0]
    np.testing.assert_allclose(profile.power_share, (profile.power_w - 50.0) / 200.0)
    assert profile.utilization.tolist() == [0.1, 0.2, 0.3, 0.4]
    assert np.isnan(profile.memory).all()
    assert profile.group == "s/n1"
    assert profile.elapsed_s == 240.0


def test_without_a_board_there_is_no_share_but_watts():
    (profile,) = job_profiles(SAMPLES, jobs_table())
    assert np.isnan(profile.power_share).all()
    assert np.isfinite(profile.power_w).all()


def test_nothing_later_than_as_of_is_looked_at():
    seen = job_profiles(SAMPLES, jobs_table(), as_of=at(2))
    cut = job_profiles(SAMPLES[SAMPLES["time"] <= at(2)], jobs_table().assign(end_time=NEVER), as_of=at(2))
    (one,), (other,) = seen, cut
    assert one.elapsed_s == other.elapsed_s == 120.0
    np.testing.assert_array_equal(one.power_w, other.power_w)
    assert one.seconds.max() == 120.0
    assert job_profiles(SAMPLES, jobs_table(), as_of=START - pd.Timedelta(minutes=1)) == []
    later = jobs_table(submit_time=at(3), start_time=at(3))
    assert job_profiles(SAMPLES, later, as_of=at(2)) == []
    with pytest.raises(InputError, match="zone"):
        job_profiles(SAMPLES, jobs_table(), as_of=pd.Timestamp("2026-01-05"))


def test_a_profile_cut_by_hand_is_the_one_seen_then():
    (whole,) = job_profiles(SAMPLES, jobs_table())
    (seen,) = job_profiles(SAMPLES, jobs_table(), as_of=at(2))
    cut = whole.until(120.0)
    np.testing.assert_array_equal(cut.power_w, seen.power_w)
    assert cut.elapsed_s == seen.elapsed_s


def test_a_job_without_readings_has_an_empty_profile_and_one_that_has_not_started_none():
    (profile,) = job_profiles(SAMPLES, jobs_table(job_id="z", workload_class=None))
    assert len(profile.seconds) == 0
    assert profile.workload_class == ""
    assert profile.group == ""
    waiting = jobs_table().assign(start_time=NEVER)
    assert job_profiles(SAMPLES, waiting) == []
