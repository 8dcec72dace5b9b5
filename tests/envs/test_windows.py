"""Job preparation, time splits and window cutting."""

import numpy as np
import pandas as pd
import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.job_table import DEFAULT_ESTIMATE_S, prepare_jobs
from envs.windows import check_grid, cut_windows, split_months, split_time
from telemetry.errors import InputError

CLUSTER = ClusterSpec("c", (SiteSpec("west"),), (PoolSpec("p", "west", "V100", 2, 4),))
START = pd.Timestamp("2026-01-05", tz="UTC")


def jobs_table(count=200, hours=240, seed=0, **columns):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "job_id": [f"j{i}" for i in range(count)],
            "submit_time": START + pd.to_timedelta(np.sort(generator.uniform(0, hours * 3600, count)), unit="s"),
            "duration_s": generator.integers(60, 7200, count),
            "gpus": generator.choice([0.5, 1.0, 2.0], count),
            "workers": 1,
        }
    )
    return frame.assign(**columns)


def grid_table(days=20, before=7, sites=("west",), step="1h"):
    times = pd.date_range(START - pd.Timedelta(days=before), periods=days * 24, freq=step)
    rows = [pd.DataFrame({"time": times, "site": site, "price_usd_per_kwh": 0.1, "carbon_g_per_kwh": 300.0}) for site in sites]
    return pd.concat(rows, ignore_index=True)


def test_prepare_fills_every_column_and_never_reads_the_true_duration():
    first = prepare_jobs(jobs_table(), CLUSTER)
    longer = prepare_jobs(jobs_table().assign(duration_s=lambda f: f["duration_s"] * 7), CLUSTER)
    visible = [c for c in first.columns if c != "duration_s"]
    pd.testing.assert_frame_equal(first[visible], longer[visible])
    assert not first.drop(columns=["gpu_model", "data_site", "workload", "until", "service"]).isna().any().any()
    share = first["gpus"] < 1
    assert set(first.loc[share, "workload_class"]) == {"interactive"}
    assert set(first.loc[~share, "workload_class"]) == {"training"}
    assert set(first.loc[~share, "estimate_s"]) == {DEFAULT_ESTIMATE_S["training"]}


def test_requested_time_wins_over_the_default():
    table = prepare_jobs(jobs_table(3, requested_duration_s=[100.2, np.nan, 0]), CLUSTER).set_index("job_id")
    assert table.loc["j0", "estimate_s"] == 101
    assert table.loc["j1", "estimate_s"] == DEFAULT_ESTIMATE_S[table.loc["j1", "workload_class"]]
    assert table.loc["j2", "estimate_s"] == DEFAULT_ESTIMATE_S[table.loc["j2", "workload_class"]]


def test_objectives_by_hand():
    """Training: wait 12 h, stretch 2. Real-time: wait 300 s, stretch 1.5, bound start; an own deadline moves the latest start."""
    submit = pd.Timestamp("2026-01-05T00:00:00.7Z")
    frame = pd.DataFrame(
        {
            "job_id": ["a", "b", "c", "d", "e"],
            "submit_time": submit,
            "duration_s": 10,
            "gpus": 1.0,
            "workers": 1,
            "workload_class": ["training", "realtime_inference", "training", "realtime_inference", "realtime_inference"],
            "requested_duration_s": 1000,
            "deadline": [pd.NaT, pd.NaT, *(START + pd.Timedelta(seconds=s) for s in (5000, 5000, 1100))],
        }
    )
    table = prepare_jobs(frame, CLUSTER).set_index("job_id")
    seconds = lambda name: (table[name] - START).dt.total_seconds().to_dict()  # noqa: E731
    assert seconds("submit_time")["a"] == 0
    assert seconds("deadline") == {"a": 43200 + 2000, "b": 300 + 1500, "c": 5000, "d": 5000, "e": 1100}
    assert seconds("latest_start") == {"a": 43200, "b": 300, "c": 4000, "d": 300, "e": 100}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": 1.5}, "gpus 1.5"),
        ({"gpus": 0}, "gpus 0"),
        ({"workers": 0}, "workers 0"),
        ({"duration_s": -1}, "duration_s -1"),
        ({"duration_s": np.nan}, "duration_s nan"),
        ({"workload_class": "mining"}, "workload_class 'mining'"),
        ({"max_watts": -5.0}, "max_watts -5"),
        ({"gpu_utilization": 55.0}, "gpu_utilization 55"),
        ({"submit_time": "tomorrow"}, "submit_time"),
        ({"job_id": "same"}, "twice"),
    ],
)
def test_bad_jobs_are_named(change, words):
    with pytest.raises(InputError, match=words):
        prepare_jobs(jobs_table(4).assign(**change), CLUSTER)


def test_missing_column_is_named():
    with pytest.raises(InputError, match="missing column duration_s"):
        prepare_jobs(jobs_table(4).drop(columns="duration_s"), CLUSTER)


def test_grid_checks():
    grid = grid_table()
    assert (check_grid(grid.assign(price_usd_per_kwh=-0.02))["price_usd_per_kwh"] == -0.02).all()
    with pytest.raises(InputError, match="price_usd_per_kwh nan"):
        check_grid(grid.assign(price_usd_per_kwh=grid["price_usd_per_kwh"].where(grid.index != 5)))
    with pytest.raises(InputError, match="1 gaps or repeated"):
        check_grid(grid.drop(index=7))
    with pytest.raises(InputError, match="1 gaps or repeated"):
        check_grid(pd.concat([grid, grid.iloc[[9]]]))
    with pytest.raises(InputError, match="missing column carbon_g_per_kwh"):
        check_grid(grid.drop(columns="carbon_g_per_kwh"))
    with pytest.raises(InputError, match="carbon_g_per_kwh -1"):
        check_grid(grid.assign(carbon_g_per_kwh=-1.0))
    with pytest.raises(InputError, match="other times"):
        check_grid(pd.concat([grid, grid_table(days=19).assign(site="zeta")]))


def test_time_splits_are_disjoint_and_ordered():
    jobs = prepare_jobs(jobs_table(), CLUSTER)
    parts = split_time(jobs, (0.6, 0.2, 0.2))
    assert sum(map(len, parts)) == len(jobs)
    assert parts[0]["submit_time"].max() < parts[1]["submit_time"].min() <= parts[1]["submit_time"].max() < parts[2]["submit_time"].min()
    train, _, test = split_months(prepare_jobs(jobs_table(400, hours=24 * 100), CLUSTER))
    assert set(train["submit_time"].dt.strftime("%Y-%m")).isdisjoint(test["submit_time"].dt.strftime("%Y-%m"))
    with pytest.raises(InputError, match="months of jobs"):
        split_months(jobs)


def test_windows_of_the_test_part_hold_nothing_of_training():
    train, _, test = split_time(prepare_jobs(jobs_table(), CLUSTER))
    begin, end = test["submit_time"].min(), test["submit_time"].max()
    windows = cut_windows(test, grid_table(), 12 * 3600, 5, seed=1, start=begin.ceil("h"), end=end)
    for window in windows:
        assert begin <= window.start
        assert window.start + pd.Timedelta(hours=12) <= end
        assert not set(window.jobs["job_id"]) & set(train["job_id"])


def test_windows_hold_their_jobs_and_their_history_and_follow_the_seed():
    jobs, grid = prepare_jobs(jobs_table(), CLUSTER), grid_table()
    first, again, other = (cut_windows(jobs, grid, 48 * 3600, 6, seed=seed) for seed in (3, 3, 4))
    assert [w.start for w in first] == [w.start for w in again]
    assert [w.start for w in first] != [w.start for w in other]
    assert len({w.start for w in first}) == 6
    for window in first:
        inside = jobs[(jobs["submit_time"] >= window.start) & (jobs["submit_time"] < window.start + pd.Timedelta(hours=48))]
        assert list(window.jobs["job_id"]) == list(inside["job_id"])
        assert window.grid["time"].min() <= window.start - pd.Timedelta(hours=24)


def test_too_many_windows_and_foreign_times_are_refused():
    jobs, grid = prepare_jobs(jobs_table(hours=50), CLUSTER), grid_table()
    with pytest.raises(InputError, match="at most"):
        cut_windows(jobs, grid, 48 * 3600, 20, seed=0)
    with pytest.raises(InputError, match="do not meet"):
        cut_windows(jobs, grid.assign(time=grid["time"] + pd.Timedelta(days=400)), 3600, 1, seed=0)
