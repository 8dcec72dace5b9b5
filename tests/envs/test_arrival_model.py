"""The arrival model against processes whose rate, drift and sessions are known."""

import numpy as np
import pandas as pd
import pytest

from envs.worlds.arrivals import ArrivalModel, drift_variances, sample_drift, split_sessions, week_rates
from envs.worlds.compare import arrival_figures, comparison, distances, session_figures
from telemetry.errors import InputError

MONDAY = pd.Timestamp("2024-01-01", tz="UTC")


def table(second, **columns):
    order = np.argsort(second, kind="stable")
    frame = pd.DataFrame(
        {"submit_time": MONDAY + pd.to_timedelta(np.asarray(second)[order], unit="s"), "duration_s": 60.0, "gpus": 1.0, "workers": 1}
    )
    frame = frame.assign(job_id=[f"j{i:06d}" for i in range(len(frame))], team="a")
    return frame.assign(**{name: np.asarray(value)[order] for name, value in columns.items()})


def rhythmic(weeks=8, seed=0, drift=0.0):
    """Two users whose sessions of five equal jobs start by day at 2 an hour, by night at 0.2."""
    rng = np.random.default_rng(seed)
    hours = weeks * 168
    rate = np.where((np.arange(hours) % 24 >= 8) & (np.arange(hours) % 24 < 20), 2.0, 0.2)
    x = sample_drift(np.array([0, 0, 0, drift, 0]), hours, rng)
    number = rng.poisson(rate * np.exp(x - drift / 2))
    start = np.repeat(np.arange(hours) * 3600, number) + rng.integers(0, 3600, number.sum())
    user = rng.choice(["a", "b"], len(start), p=[0.7, 0.3])
    size = np.where(user == "a", 5, 1)
    second = np.repeat(start, size) + 20 * np.concatenate([np.arange(n) for n in size])
    length = np.repeat(rng.integers(100, 1000, len(start)), size)
    return table(second, team=np.repeat(user, size), gpus=np.repeat(np.where(user == "a", 1.0, 8.0), size), duration_s=length.astype(float))


def test_sessions_are_cut_by_gap_and_length():
    second = [0, 60, 120, 5000, 5060, 100_000]
    sessions = split_sessions(table(second), gap_s=600)
    assert sessions.start_s.tolist() == [MONDAY.timestamp() + s for s in (0, 5000, 100_000)]
    assert sessions.count.tolist() == [3, 2, 1]
    assert sessions.offset_s.tolist() == [0, 60, 120, 0, 60, 0]
    assert split_sessions(table(second), gap_s=600, limit_s=90).count.tolist() == [2, 1, 2, 1]
    assert split_sessions(table(second, team=list("ababab")), gap_s=600).count.max() == 2
    assert split_sessions(table([0, 0, 300, 600, 600, 90_000]), gap_s=200).count.tolist() == [1] * 6, "stamps coarser than the gap"
    with pytest.raises(InputError, match="missing column owner"):
        split_sessions(table(second), users=("owner",))


def test_rates_shrink_between_the_raw_mean_and_the_rhythm():
    counts = np.zeros(336)
    counts[[5, 168 + 5]] = 10.0
    place = np.arange(336) % 168
    assert week_rates(counts, place, 0)[5] == pytest.approx(10.0, rel=1e-6)
    shrunk = week_rates(counts, place, 2.0)
    assert shrunk[29] > 0, "the same hour on another day is lifted by the day rhythm"
    assert shrunk[29] < shrunk[5] < 10
    flat = np.full(336, 3.0)
    assert week_rates(flat, place, 2.0) == pytest.approx(np.full(168, 3.0))
    with pytest.raises(InputError, match="shrink_weeks"):
        week_rates(flat, place, -1.0)


def test_drift_is_found_where_it_is_and_only_there():
    rng = np.random.default_rng(3)
    expected = np.full(168 * 60, 4.0)
    truth = np.array([0, 0, 0, 0.3, 0])
    counts = rng.poisson(expected * np.exp(sample_drift(truth, len(expected), rng) - 0.15))
    assert drift_variances(counts.astype(float), expected).sum() == pytest.approx(0.3, abs=0.09)
    assert drift_variances(rng.poisson(expected).astype(float), expected).sum() < 0.02


def test_a_sample_has_the_trace_rate_rhythm_shapes_and_bursts():
    jobs = rhythmic()
    model = ArrivalModel.fit(jobs)
    drawn = model.sample(months=2, seed=1)
    assert model.rate[12] / model.rate[2] == pytest.approx(10, rel=0.5)
    one, other = arrival_figures(jobs), arrival_figures(drawn)
    assert other.jobs_per_day == pytest.approx(one.jobs_per_day, rel=0.12)
    assert other.dispersion_1h == pytest.approx(one.dispersion_1h, rel=0.25)
    assert other.dispersion_10min == pytest.approx(one.dispersion_10min, rel=0.25)
    assert one.dispersion_10min > 2
    assert other.gap_cv == pytest.approx(one.gap_cv, rel=0.25)
    assert other.autocorrelation_24h == pytest.approx(one.autocorrelation_24h, abs=0.15)
    away = distances(jobs, drawn)
    assert max(away.values()) < 0.1, away
    poisson = table(np.random.default_rng(0).integers(0, 56 * 86_400, len(jobs)))
    assert distances(jobs, poisson)["gap_ks"] > 0.3
    assert distances(jobs, poisson)["hour_of_day_tv"] > 0.2


def test_sessions_stay_whole_and_belong_to_one_user():
    jobs = rhythmic(weeks=4)
    drawn = ArrivalModel.fit(jobs).sample(seed=2)
    assert ((drawn["team"] == "a") == (drawn["gpus"] == 1.0)).all()
    sizes = split_sessions(drawn).count[split_sessions(drawn).user == 0]
    assert (sizes % 5 == 0).mean() > 0.97, "only those at the span's ends are cut, or overlap"


def test_samples_follow_the_seed_and_start_and_leave_the_past_out():
    jobs = rhythmic(weeks=3).assign(state="completed", pool="p", requested_duration_s=500.0)
    jobs["deadline"] = jobs["submit_time"] + pd.Timedelta(hours=2)
    model = ArrivalModel.fit(jobs)
    drawn = model.sample(months=0.5, seed=4)
    pd.testing.assert_frame_equal(drawn, model.sample(months=0.5, seed=4))
    assert not drawn["submit_time"].equals(model.sample(months=0.5, seed=5)["submit_time"])
    assert set(drawn) == set(jobs) - {"state", "pool"}
    assert (drawn["deadline"] - drawn["submit_time"] == pd.Timedelta(hours=2)).all()
    assert drawn["job_id"].is_unique
    assert drawn["submit_time"].is_monotonic_increasing
    assert drawn["submit_time"].min() >= MONDAY + pd.Timedelta(weeks=3)
    assert drawn["submit_time"].min().dayofweek == 0
    later = model.sample(months=0.1, seed=4, start=pd.Timestamp("2025-06-04", tz="UTC"))
    assert later["submit_time"].between("2025-06-04", "2025-06-07").all()
    with pytest.raises(InputError, match="months"):
        model.sample(months=0.0)


def test_too_little_to_fit_is_refused():
    with pytest.raises(InputError, match="no jobs"):
        ArrivalModel.fit(rhythmic().iloc[:0])
    with pytest.raises(InputError, match="at least 48 and 20"):
        ArrivalModel.fit(table([0, 10_000, 300_000]))
    with pytest.raises(InputError, match="at least 10 over at least two days"):
        arrival_figures(table(range(100)))


def test_session_figures_by_hand():
    jobs = table([0, 60, 4000, 90_000, 172_800], team=list("aaaba"), gpus=[1.0, 1.0, 2.0, 4.0, 1.0], duration_s=[3600.0] * 4 + [7200.0])
    found = session_figures(jobs)
    assert (found.users, found.largest_session) == (2, 2)
    assert found.busiest_user_share == pytest.approx(3 / 4)
    assert found.sessions_per_day == pytest.approx(4 / 2)
    assert found.jobs_per_session == pytest.approx(5 / 4)
    assert (found.median_duration_s, found.mean_gpus) == (3600.0, 1.8)
    assert found.gpu_hours_per_day == pytest.approx((1 + 1 + 2 + 4 + 2) / 2)


def test_weekdays_are_shares_of_the_rate_not_of_the_count():
    every_hour = np.arange(0, 10 * 86_400, 3600)
    share = arrival_figures(table(every_hour)).weekday_share
    assert share == pytest.approx(np.full(7, 1 / 7)), "three days are there twice, at the same rate"
    doubled = np.concatenate([every_hour, every_hour[24:48] + 1])
    assert np.argmax(arrival_figures(table(doubled)).weekday_share) == 1, "the second day is a Tuesday"


def test_comparison_tells_alike_from_unlike():
    jobs = rhythmic()
    figures, apart = comparison({"one": jobs, "two": rhythmic(seed=1), "other": jobs.assign(team="c", duration_s=5.0, gpus=2.0)})
    assert list(figures) == ["one", "two", "other"]
    assert figures.loc["jobs_per_day", "one"] == pytest.approx(figures.loc["jobs_per_day", "other"])
    assert list(apart) == ["one - two", "one - other", "two - other"]
    assert apart["one - two"].max() < 0.12
    assert apart.loc[["duration_ks", "session_user_tv", "gpus_ks"], "one - other"].min() > 0.6
    assert apart.loc[["gap_ks", "hour_of_day_tv", "day_of_week_tv"], "one - other"].max() == 0
