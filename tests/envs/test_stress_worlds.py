"""Stress worlds change what they say and nothing else, and refuse to change nothing."""

import numpy as np
import pandas as pd
import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.worlds.stress import flash_crowd, heat_wave, price_spike, site_loss, telemetry_loss
from telemetry.errors import InputError

START = pd.Timestamp("2024-03-04", tz="UTC")
AT = START + pd.Timedelta(hours=30)


def jobs(count=2000):
    submit = START + pd.to_timedelta(np.linspace(0, 5 * 86_400, count).astype(int), unit="s")
    frame = pd.DataFrame({"job_id": [f"j{i:05d}" for i in range(count)], "submit_time": submit, "duration_s": 60.0 + np.arange(count)})
    return frame.assign(gpus=1.0, workers=1, state="completed", start_time=submit, deadline=submit + pd.Timedelta(hours=3))


def grid():
    times = pd.date_range(START, periods=96, freq="h")
    one = pd.DataFrame({"time": times, "price_usd_per_kwh": np.linspace(-0.01, 0.2, 96), "carbon_g_per_kwh": 300.0 + np.arange(96)})
    one = one.assign(renewable_fraction=0.5, temperature_c=20.0)
    return pd.concat([one.assign(site=site) for site in ("west", "east")], ignore_index=True).sort_values(
        ["time", "site"], ignore_index=True
    )


def outside(table, hours, site=None):
    inside = (table["time"] >= AT) & (table["time"] < AT + pd.Timedelta(hours=hours))
    return ~inside if site is None else ~(inside & (table["site"] == site))


def test_flash_crowd_adds_to_the_span_only():
    before = jobs()
    after = flash_crowd(before, AT, 6, factor=4.0, seed=1)
    crowd = after[after["job_id"].str.startswith("crowd-")]
    pd.testing.assert_frame_equal(after.drop(crowd.index).reset_index(drop=True), before)
    assert len(crowd) == pytest.approx(3 * 2000 * 6 / 120, rel=0.2)
    assert crowd["submit_time"].between(AT, AT + pd.Timedelta(hours=6)).all()
    early = (crowd["submit_time"] < AT + pd.Timedelta(hours=2)).mean()
    assert early == pytest.approx((1 - np.exp(-1)) / (1 - np.exp(-3)), abs=0.08)
    assert crowd["state"].isna().all()
    assert crowd["start_time"].isna().all()
    assert (crowd["deadline"] - crowd["submit_time"] == pd.Timedelta(hours=3)).all()
    assert after["job_id"].is_unique
    assert after["submit_time"].is_monotonic_increasing
    pd.testing.assert_frame_equal(after, flash_crowd(before, AT, 6, factor=4.0, seed=1))
    assert len(flash_crowd(before, AT, 6, factor=4.0, seed=2)) != len(after)


def test_a_second_crowd_is_like_the_table_before_the_first():
    before, later = jobs(), AT + pd.Timedelta(hours=24)
    first = flash_crowd(before, AT, 6, factor=9.0, seed=1, prefix="one")
    both = flash_crowd(first, later, 6, factor=9.0, seed=2, like=before, prefix="two")
    second = both[both["job_id"].str.startswith("two-")]
    assert both["job_id"].is_unique
    assert len(second) == pytest.approx(8 * 2000 * 6 / 120, rel=0.1)
    assert second["submit_time"].between(later, later + pd.Timedelta(hours=6)).all()
    pd.testing.assert_frame_equal(both.drop(second.index).reset_index(drop=True), first)


def test_price_spike():
    before = grid()
    after = price_spike(before, AT, 3, factor=10, floor_usd_per_kwh=0.3, sites=["west"])
    kept = outside(before, 3, "west")
    pd.testing.assert_frame_equal(after[kept], before[kept])
    price = before.loc[~kept, "price_usd_per_kwh"]
    assert (after.loc[~kept, "price_usd_per_kwh"] == np.maximum(price * 10, 0.3)).all()
    assert after.drop(columns="price_usd_per_kwh").equals(before.drop(columns="price_usd_per_kwh"))
    low = price_spike(before, START, 1, factor=2, floor_usd_per_kwh=0.05)
    assert low["price_usd_per_kwh"].iloc[:2].tolist() == [0.05, 0.05], "a negative price is lifted as well"


def test_heat_wave_is_a_half_sine():
    before = grid()
    after = heat_wave(before, AT, 24, add_c=12.0, sites=["east"])
    added = (after["temperature_c"] - before["temperature_c"])[after["site"] == "east"].to_numpy()
    assert added[:30].tolist() == [0.0] * 30
    assert added[54:].tolist() == [0.0] * 42
    assert added.max() == pytest.approx(12.0, abs=0.1)
    assert added[30:54] == pytest.approx(added[30:54][::-1])
    assert (after["temperature_c"] == before["temperature_c"])[after["site"] == "west"].all()
    with pytest.raises(InputError, match="no temperature"):
        heat_wave(before.assign(temperature_c=np.nan), AT, 24)


def test_telemetry_loss_holds_the_last_value():
    before = grid()
    after = telemetry_loss(before, AT, 5)
    kept = outside(before, 5)
    pd.testing.assert_frame_equal(after[kept], before[kept])
    last = before[before["time"] == AT - pd.Timedelta(hours=1)].iloc[0]
    for name in ("price_usd_per_kwh", "carbon_g_per_kwh"):
        assert (after.loc[~kept, name] == last[name]).all()
        assert not (before.loc[~kept, name] == last[name]).any()
    with pytest.raises(InputError, match="no value before"):
        telemetry_loss(before, START, 5)


def test_site_loss_takes_every_node_of_the_site():
    pools = (PoolSpec("a", "west", "V100", 2, 4), PoolSpec("b", "east", "A100", 3, 4), PoolSpec("c", "west", "T4", 1, 2))
    cluster = ClusterSpec("c", (SiteSpec("west"), SiteSpec("east")), pools)
    outages = site_loss(cluster, "west", AT, 2.5)
    assert outages["node"].tolist() == ["a-0000", "a-0001", "c-0000"]
    assert set(outages["node"]) < set(cluster.node_names)
    assert outages.columns.tolist() == ["node", "begin", "end"]
    assert (outages["begin"] == AT).all()
    assert (outages["end"] == AT + pd.Timedelta(hours=2.5)).all()
    with pytest.raises(InputError, match="unknown site 'north'"):
        site_loss(cluster, "north", AT, 1)
    with pytest.raises(InputError, match="hours 0"):
        site_loss(cluster, "west", AT, 0)


@pytest.mark.parametrize("stress", [price_spike, heat_wave, telemetry_loss])
def test_nothing_is_changed_in_place_and_nothing_to_change_is_an_error(stress):
    table = grid()
    copy = table.copy()
    stress(table, AT, 2)
    pd.testing.assert_frame_equal(table, copy)
    with pytest.raises(InputError, match="no grid row"):
        stress(table, AT + pd.Timedelta(days=400), 2)
    with pytest.raises(InputError, match="unknown site 'north'"):
        stress(table, AT, 2, sites=["north"])
    with pytest.raises(InputError, match="hours 0"):
        stress(table, AT, 0)


def test_a_crowd_needs_a_time_in_the_trace_and_a_factor():
    with pytest.raises(InputError, match="flash_crowd"):
        flash_crowd(jobs(), AT + pd.Timedelta(days=40), 6)
    with pytest.raises(InputError, match=r"factor 1\.0"):
        flash_crowd(jobs(), AT, 6, factor=1.0)
    with pytest.raises(InputError, match="none drawn"):
        flash_crowd(jobs(10), AT, 0.001, factor=1.01)
