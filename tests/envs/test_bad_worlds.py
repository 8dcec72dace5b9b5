"""Worlds that cannot be, or hardly: each is refused with value, place and what is allowed, or comes out right."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from envs.cluster import DEFAULT_OBJECTIVES, SiteSpec
from envs.heuristics import JUDGES, Judge
from envs.job_table import LARGEST_GPUS, LARGEST_SECONDS, LARGEST_WORKERS
from envs.kernel import run_policy
from envs.kernel_choosers import TIGHTEST
from envs.power.curves import levels_for, load_curves, points_of
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.world_arrays import REJECT_REASONS, TOO_LARGE
from telemetry.errors import InputError

AWAKE = Judge("t", PolicySettings(sleep_after_s=-1, queue_order="fcfs"), TIGHTEST, "")
KERNEL = "the check belongs to a file of the kernel that is being rewritten"


def _run(world, policy=AWAKE):
    return run_policy(world, policy, RewardSpec())


def _refused(error, *words):
    """The error is one for users and names value, place and what is allowed."""
    assert error.value.where, str(error.value)
    assert error.value.allowed or error.value.remedy, str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


# ---------------------------------------------------------------- jobs


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("duration_s", -1, "0 to 3,155,760,000 seconds"),
        ("duration_s", 1e12, "0 to 3,155,760,000 seconds"),
        ("duration_s", np.inf, "0 to 3,155,760,000 seconds"),
        ("duration_s", np.nan, "0 to 3,155,760,000 seconds"),
        ("requested_duration_s", 1e12, "up to 3,155,760,000 seconds"),
        ("requested_duration_s", "long", "a number, or nothing"),
        ("gpus", 0.0, "or 0 with CPUs"),
        ("gpus", np.nan, "0 (a job of CPUs alone) to"),
        ("gpus", 1e9, "to 1,000,000"),
        ("gpus", 1e30, "to 1,000,000"),
        ("gpus", 0.0001, "a share of one GPU"),
        ("workers", 1e18, "from 1 to 1,000,000,000"),
        ("workers", 1.5, "from 1 to 1,000,000,000"),
        ("priority", 1e30, "a whole number"),
        ("priority", "high", "a number, or nothing"),
        ("max_watts", "little", "a number, or nothing"),
        ("max_watts", 0.0, "above 0 W"),
        ("gpu_utilization", "much", "a number, or nothing"),
    ],
)
def test_a_job_that_cannot_be_is_named_with_value_and_range(worlds, column, value, allowed):
    rows = [worlds.job("good"), worlds.job("odd") | {column: value}]
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(), rows)
    _refused(error, column, str(value), "job 'odd'", allowed)


def test_duplicate_and_missing_ids_are_refused(worlds):
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(), [worlds.job("same"), worlds.job("same", 5)])
    _refused(error, "'same' occurs twice")
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(), [worlds.job("a"), worlds.job(None)])
    _refused(error, "1 rows without job_id")


def test_a_deadline_after_the_end_of_the_calendar_is_refused(worlds):
    objectives = DEFAULT_OBJECTIVES | {"training": replace(DEFAULT_OBJECTIVES["training"], deadline_stretch=3.0)}
    row = worlds.job("century", workload_class="training", requested_duration_s=LARGEST_SECONDS)
    assert worlds.world_of(worlds.cluster(), [row]).jobs.estimate_s[0, 0] == LARGEST_SECONDS
    with pytest.raises(InputError) as error:
        worlds.world_of(replace(worlds.cluster(), objectives=objectives), [row])
    _refused(error, "2262", "3,155,760,000 s", "job 'century'", "requested_duration_s")


def test_a_job_of_no_time_takes_a_second(worlds):
    totals = _run(worlds.world_of(worlds.cluster(), [worlds.job("x", duration_s=0)]))
    assert totals.job_end_s[0, 0] - totals.job_start_s[0, 0] == 1


def test_jobs_at_the_limits_are_counted_exactly(worlds):
    """A century of one GPU; and gangs whose GPUs do not fit 32 bits, too large for any cluster."""
    rows = [
        worlds.job("century", duration_s=LARGEST_SECONDS, gpu_model="V100"),
        worlds.job("huge", 1, gpus=float(LARGEST_GPUS), workers=LARGEST_WORKERS),
        worlds.job("wide", 1, workers=LARGEST_WORKERS),
    ]
    world = worlds.world_of(worlds.cluster(nodes=1, gpus=1), rows, worlds.grid(step="1D"))
    totals = _run(world)
    assert totals.job_end_s[0].tolist() == [LARGEST_SECONDS, -1, -1]
    assert [REJECT_REASONS.get(reason) for reason in totals.job_rejected[0]] == [None, "too_large", "too_large"]
    spec = world.cluster.pools[0]
    watts = spec.node_idle_w + world.static.gpu_power_w[0, 0, 4] + spec.cpu_w_per_gpu
    assert totals.job_energy_kwh[0, 0] == pytest.approx(watts * 1.15 * LARGEST_SECONDS / 3.6e6, rel=1e-9)
    assert totals.energy_kwh[0].sum() == pytest.approx(totals.job_energy_kwh.sum() + totals.idle_energy_kwh.sum(), rel=1e-9)


@pytest.mark.parametrize("judge", JUDGES)
def test_only_jobs_that_are_too_large_end_the_window_with_their_rejection(worlds, judge):
    rows = [worlds.job("a", 100, gpus=5.0), worlds.job("b", 900, gpus=4.0, workers=3)]
    totals = _run(worlds.world_of(worlds.cluster(), rows), JUDGES[judge])
    assert totals.job_rejected[0].tolist() == [TOO_LARGE, TOO_LARGE]
    assert totals.end_s[0] == 900
    assert totals.decisions[0] == 0


@pytest.mark.parametrize("judge", JUDGES)
def test_a_world_without_jobs_is_over_at_once(worlds, judge):
    world = worlds.windows_of(worlds.cluster(), [[worlds.job("x")]], worlds.grid())
    empty = worlds.world_of(worlds.cluster(), [])
    assert _run(empty, JUDGES[judge]).end_s.tolist() == [0]
    assert _run(world, JUDGES[judge]).end_s[0] > 0


@pytest.mark.parametrize("judge", ["k8s_default", "fifo", "easy", "lookahead"])
def test_a_crowd_in_one_second_is_served_to_the_last(worlds, judge):
    """All jobs at second 0: each runs once, never more GPUs at a time than there are, and GPU-seconds add up."""
    rng = np.random.default_rng(0)
    count = 1500
    rows = [
        worlds.job(f"j{index:05d}", 0, int(seconds), gpus=float(gpus), gpu_model="V100")
        for index, (seconds, gpus) in enumerate(zip(rng.integers(1, 4000, count), rng.choice([0.25, 0.5, 1, 2, 4], count), strict=True))
    ]
    world = worlds.world_of(worlds.cluster(nodes=8), rows)
    totals = _run(world, JUDGES[judge])
    start, end = totals.job_start_s[0], totals.job_end_s[0]
    milli = world.jobs.gpu_milli[0]
    assert (end > start).all()
    assert totals.busy_gpu_s[0] == pytest.approx(((end - start) * milli).sum() / 1000.0, rel=1e-12)
    moments = np.concatenate([start, end])
    change = np.concatenate([milli, -milli])
    order = np.lexsort((change, moments))  # ends before starts
    assert np.cumsum(change[order]).max() <= 8 * 4 * 1000


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize(("nodes", "gpus"), [(0, 4), (-3, 4), (2, 0)])
def test_pools_without_nodes_or_gpus_are_refused(worlds, nodes, gpus):
    with pytest.raises(InputError) as error:
        worlds.cluster(nodes=nodes, gpus=gpus)
    _refused(error, f"{nodes} nodes of {gpus} GPUs", "pool 'v'", "at least 1 x 1")


@pytest.mark.parametrize(
    "fractions", [(), (0.9,), (1.0, 1.2), (1.0, 0.7, 0.8), (1.0, 0.7, 0.7), (1.0, 0.0), (np.nan,), (1.0, np.nan), (1.0, 0.01)]
)
def test_levels_that_do_not_fall_or_were_not_measured_are_refused(worlds, fractions):
    with pytest.raises(InputError) as error:
        worlds.world_of(replace(worlds.cluster(), level_fractions=fractions), [worlds.job("x")])
    _refused(error, str(fractions))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nodes", 1.5),
        ("node_idle_w", -5.0),
        ("node_idle_w", np.nan),
        ("gpu_idle_w", np.inf),
        ("node_sleep_w", -1.0),
        ("cpu_w_per_gpu", -20.0),
        ("wake_power_w", np.nan),
        ("wake_latency_s", 1.5),
        ("wake_latency_s", 10**13),
    ],
)
def test_impossible_figures_of_a_pool_are_refused(worlds, name, value):
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(**{name: value}), [worlds.job("x")])
    _refused(error, name, "pool 'v'")


def test_an_idle_gpu_above_a_busy_one_is_refused(worlds):
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(gpu_idle_w=9999.0), [worlds.job("x")])
    _refused(error, "gpu_idle_w", "9999", "pool 'v'")


@pytest.mark.parametrize(("name", "value"), [("pue_base", 0.5), ("pue_base", np.nan), ("pue_per_c", -1.0), ("pue_free_cooling_c", np.nan)])
def test_impossible_cooling_is_refused(worlds, name, value):
    spec = worlds.cluster()
    with pytest.raises(InputError) as error:
        worlds.world_of(replace(spec, sites=(SiteSpec("east", **{name: value}), spec.sites[1])), [worlds.job("x")])
    _refused(error, name, "site 'east'")


@pytest.mark.parametrize(
    ("name", "value"), [("max_wait_s", -5), ("max_wait_s", 10**13), ("deadline_stretch", -1.0), ("deadline_stretch", np.nan)]
)
def test_impossible_objectives_are_refused(worlds, name, value):
    objectives = DEFAULT_OBJECTIVES | {"interactive": replace(DEFAULT_OBJECTIVES["interactive"], **{name: value})}
    with pytest.raises(InputError) as error:
        worlds.world_of(replace(worlds.cluster(), objectives=objectives), [worlds.job("x")])
    _refused(error, name, "interactive")


# ---------------------------------------------------------------- power curves


def _with(column, value, level=1.0):
    table = load_curves().astype({column: object})
    rows = (table["gpu_model"] == "V100") & (table["kind"] == "training") & (table["level_fraction"] == level)
    table.loc[rows, column] = value
    return table


@pytest.mark.parametrize("column", ["speed", "power_w"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, "fast"])
def test_a_curve_that_is_no_curve_is_refused(tmp_path, column, value):
    table = _with(column, value)
    with pytest.raises(InputError) as error:
        levels_for("V100", (1.0,), table)
    _refused(error, column, str(value), "V100, training, level 1.0", "above 0")
    table.to_csv(tmp_path / "curves.csv", index=False)
    with pytest.raises(InputError) as error:
        load_curves(tmp_path / "curves.csv")
    _refused(error, column, "curves.csv", "V100, training, level 1.0")


def test_a_level_that_is_slower_and_draws_more_is_refused():
    with pytest.raises(InputError) as error:
        levels_for("V100", (1.0,), _with("power_w", 500.0, 0.9))
    _refused(error, "power_w rises", "to 500 as the level falls to 0.9", "V100, training")
    with pytest.raises(InputError) as error:
        levels_for("V100", (1.0,), _with("speed", 1.5, 0.9))
    _refused(error, "speed rises", "to 1.5 as the level falls to 0.9")
    with pytest.raises(InputError) as error:
        levels_for("V100", (1.0,), _with("level_fraction", 0.9))
    _refused(error, "level 0.9 twice")


def test_a_gpu_faster_than_the_reference_ends_earlier(worlds):
    """Speed 1.6 and 400 W: 3600 s of reference work take 2250 s, and the energy follows."""
    table = load_curves()
    table.loc[table["gpu_model"] == "V100", ["speed", "power_w"]] *= [1.6, 1.0]
    table.loc[(table["gpu_model"] == "V100") & (table["level_fraction"] == 1.0), "power_w"] = 400.0
    cluster = replace(worlds.cluster(nodes=1, gpus=1), curves=points_of(table, "mine"))
    world = worlds.world_of(cluster, [worlds.job("x", duration_s=3600, gpu_model="V100")])
    totals = _run(world)
    assert world.static.speed[0, 0].tolist() == [1.6] * 5
    assert totals.job_end_s[0, 0] == 2250
    assert totals.job_energy_kwh[0, 0] == pytest.approx((250 + 20 + 400) * 1.15 * 2250 / 3.6e6, rel=1e-12)


# ---------------------------------------------------------------- grid


@pytest.mark.parametrize("value", [np.nan, np.inf, "cheap"])
def test_a_price_that_is_no_number_is_named_with_its_place(worlds, value):
    table = worlds.grid().astype({"price_usd_per_kwh": object})
    table.loc[60, "price_usd_per_kwh"] = value
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(), [worlds.job("x")], table)
    _refused(error, f"price_usd_per_kwh {value}", "east at 2024-01-08T12:00:00+00:00", "a finite number")


def test_a_negative_price_pays_for_what_is_used(worlds):
    world = worlds.world_of(worlds.cluster(), [worlds.job("x", gpu_model="V100")], worlds.grid(price=np.full(24, -0.3)))
    totals = _run(world)
    assert totals.cost_usd.sum() == pytest.approx(-0.3 * totals.energy_kwh.sum(), rel=1e-12)
    assert totals.objective_usd[0] == pytest.approx((-0.3 + 0.1 * 0.4) * totals.energy_kwh.sum(), rel=1e-9)
    keen = _run(world, JUDGES["greedy_cost"])
    assert keen.job_level[0, 0] == np.argmax(world.static.gpu_power_w[0, :, 4] / world.static.speed[0, :, 4])


@pytest.mark.parametrize(
    ("name", "value"), [("temperature_c", np.inf), ("temperature_c", 900.0), ("temperature_c", "hot"), ("renewable_fraction", 7.0)]
)
def test_impossible_weather_is_refused(worlds, name, value):
    with pytest.raises(InputError) as error:
        worlds.world_of(worlds.cluster(), [worlds.job("x")], worlds.grid().assign(**{name: value}))
    _refused(error, f"{name} {value}", "east at")


def _clocks(worlds, east, west):
    """The same moments, written by each site's own clock; the price tells the hour in UTC."""
    table = worlds.grid(price=np.arange(24) / 100.0)
    parts = [table[table["site"] == name] for name in ("east", "west")]
    return pd.concat([part.assign(time=clock(part["time"])) for part, clock in zip(parts, (east, west), strict=True)], ignore_index=True)


def _aware(zone):
    return lambda times: times.dt.tz_convert(zone)


def _texts(zone):
    return lambda times: times.dt.tz_convert(zone).map(lambda time: time.isoformat())


def _naive(times):
    return times.dt.tz_localize(None)


@pytest.mark.parametrize(
    ("east", "west"),
    [
        (_aware("America/New_York"), _aware("Europe/Berlin")),
        (_texts("America/New_York"), _texts("Asia/Kolkata")),
        (_aware("Asia/Tokyo"), _naive),
        (_naive, _naive),
    ],
)
def test_sites_with_different_clocks_mean_the_same_moments(worlds, east, west):
    """A zone is converted, a time without one is UTC: the result is that of UTC throughout."""
    rows = [worlds.job("v", 7000, 9000, gpu_model="V100"), worlds.job("a", 7000, 9000, gpu_model="A100")]
    expected = _run(worlds.world_of(worlds.cluster(), rows, worlds.grid(price=np.arange(24) / 100.0)))
    got = _run(worlds.world_of(worlds.cluster(), rows, _clocks(worlds, east, west)))
    assert np.array_equal(got.cost_usd, expected.cost_usd)


def test_a_site_whose_clock_is_off_is_refused(worlds):
    def local_without_zone(times):
        return times.dt.tz_convert("Europe/Berlin").dt.tz_localize(None)

    for off in (local_without_zone, lambda times: times + pd.Timedelta(minutes=30)):
        with pytest.raises(InputError) as error:
            worlds.world_of(worlds.cluster(), [worlds.job("x")], _clocks(worlds, _aware("UTC"), off))
        _refused(error, "covers other times", "site 'west'", "the same times for every site")


def test_submissions_by_different_clocks_are_the_same_moments(worlds):
    rows = [
        worlds.job(name) | {"submit_time": time}
        for name, time in (
            ("berlin", pd.Timestamp("2024-01-08 03:00", tz="Europe/Berlin")),
            ("text", "2024-01-07T18:00:00-08:00"),
            ("naive", pd.Timestamp("2024-01-08 02:00")),
            ("utc", pd.Timestamp("2024-01-08 02:00", tz="UTC")),
        )
    ]
    assert worlds.world_of(worlds.cluster(), rows).jobs.submit_s[0].tolist() == [7200] * 4


def test_ten_years_of_hours_in_one_window_add_up(worlds):
    """87,672 steps, jobs in the first and the last hour: an idle decade between them, charged step by step."""
    days = 3653
    price = np.linspace(0.01, 0.24, 24)
    last = days * 86_400 - 7200
    rows = [worlds.job("first", 0, 3600, gpu_model="V100"), worlds.job("last", last, 3600, gpu_model="V100")]
    world = worlds.world_of(worlds.cluster(nodes=1, gpus=1), rows, worlds.grid(days=days, price=price))
    totals = _run(world)
    assert totals.job_start_s[0].tolist() == [0, last]
    idle_kw = (250 + 30) * 1.15 / 1000.0
    # 3652 whole days of the west pool's idling, and its last day but for its last hour
    assert totals.cost_usd[0, 1] == pytest.approx(idle_kw * (3652 * price.sum() + price[:23].sum()), rel=1e-9)
