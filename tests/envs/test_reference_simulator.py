"""Hand-computed cases for the plain-Python reference simulator: what it says must follow from docs/simulator.md with pencil and paper."""

import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.reward import RewardSpec
from telemetry.classes import CLASS_INDEX


def _load_reference():
    """By path: another distribution installs a top-level package named tests."""
    if "joulewise_reference" not in sys.modules:
        path = Path(__file__).parents[1] / "reference" / "__init__.py"
        spec = importlib.util.spec_from_file_location("joulewise_reference", path, submodule_search_locations=[str(path.parent)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["joulewise_reference"] = module
        spec.loader.exec_module(module)
    return sys.modules["joulewise_reference"]


ref = _load_reference()
TRAINING, REALTIME = CLASS_INDEX["training"], CLASS_INDEX["realtime_inference"]


def one_pool(nodes, gpus, **pool):
    return ClusterSpec("hand", (SiteSpec("here"),), (PoolSpec("p", "here", "V100", nodes, gpus, **pool),), level_fractions=(1.0,))


def job(submit, duration, gpus=1, estimate=None, kind=REALTIME, latest=10**6, deadline=10**7, pools=(True,), **more):
    milli, workers = (1000, gpus) if gpus >= 1 else (round(1000 * gpus), 1)
    times = (submit, duration, estimate or duration)
    return ref.Job(*times, milli, workers, kind, 0, latest, deadline, pools_allowed=pools, **more)


def flat_grid(sites=1, pools=1, step_s=3600, columns=40, price=0.1, carbon=500.0, pue=1.0, reserve=0):
    return ref.Grid(
        step_s, 0, [[price] * columns] * sites, [[carbon] * columns] * sites, [[pue] * columns] * sites, [[reserve] * columns] * pools
    )


def simulate(cluster, jobs, grid=None, choose=None, power=300.0, speed=1.0, outages=(), **settings):
    """``power`` and ``speed``: one value, or one for each level. The first run offered is taken unless ``choose`` says otherwise."""
    kinds, levels, pools = 5, len(cluster.level_fractions), len(cluster.pools)
    rows = lambda value: value if isinstance(value, list) else [value] * levels  # noqa: E731
    table = lambda value: [[[of_level] * kinds for of_level in rows(value)] for _ in range(pools)]  # noqa: E731
    choose = choose or (lambda j, allowed: next(a for a in allowed if a > 0))
    grid = grid or flat_grid(len(cluster.sites), pools)
    return ref.Simulator(cluster, table(speed), table(power), jobs, grid, ref.Settings(**settings), RewardSpec(), choose, outages).run()


def told(answers):
    """Answers in the order of the questions; one too many or too few is an error."""
    answers = iter(answers)
    return lambda j, allowed: next(answers)


def of_job(result, j):
    return [event[:2] for event in result.events if event[2] == j]


TEXTBOOK = [job(0, 100, 6), job(1, 50, 8), job(2, 90, 4), job(3, 500, 2), job(4, 500, 2)]


@pytest.mark.parametrize(
    ("discipline", "starts"),
    [
        # Ten processors. The head (8 wide) waits for the first job's end at 100; two processors stay spare then.
        ("easy", [0, 100, 2, 92, 150]),  # third ends at 92 <= 100, fourth fits the spare two, nothing is spare for the fifth
        ("strict", [0, 100, 150, 150, 150]),
        ("free", [0, 592, 2, 92, 92]),  # the head starves until the narrow jobs are over
    ],
)
def test_disciplines_on_the_textbook_example(discipline, starts):
    """Lifka 1995 / Mu'alem and Feitelson 2001: backfill only what does not delay the first waiting job."""
    result = simulate(one_pool(10, 1), TEXTBOOK, discipline=discipline, queue_order="fcfs")
    assert [outcome.start_s for outcome in result.outcomes] == starts


def test_easy_backfill_uses_estimates_and_not_true_run_times():
    jobs = [job(0, 50, 6, estimate=100), job(1, 50, 8), job(2, 10, 4, estimate=98), job(3, 10, 4, estimate=99)]
    result = simulate(one_pool(10, 1), jobs, discipline="easy", queue_order="fcfs")
    # The third is estimated to end exactly at the shadow time 100; the fourth would end after it, though it needs only 10 s.
    assert [outcome.start_s for outcome in result.outcomes] == [0, 50, 2, 100]


def test_fcfs_and_sjf_order():
    jobs = [job(0, 30), job(1, 20), job(2, 10), job(2, 10, estimate=40)]
    fcfs = simulate(one_pool(1, 1), jobs, discipline="strict", queue_order="fcfs")
    sjf = simulate(one_pool(1, 1), jobs, discipline="strict", queue_order="sjf")
    assert [outcome.start_s for outcome in fcfs.outcomes] == [0, 30, 50, 60]
    assert [outcome.start_s for outcome in sjf.outcomes] == [0, 40, 30, 60]


def test_priority_order_prefers_priority_then_earliest_latest_start():
    jobs = [job(0, 10), job(1, 10, latest=500), job(1, 10, latest=400), dataclasses.replace(job(1, 10, latest=900), priority=1)]
    result = simulate(one_pool(1, 1), jobs)
    assert [outcome.start_s for outcome in result.outcomes] == [0, 30, 20, 10]


def test_energy_cost_and_carbon_by_hand():
    """One 2-GPU job for an hour on a 4-GPU node, PUE 1.2: job = 2 x (300 - 30 + 20) + 2 x (250 + 120) / 4 W; the rest is idle."""
    cluster = one_pool(1, 4)
    result = simulate(cluster, [job(0, 3600, 2)], flat_grid(price=0.2, carbon=400.0, pue=1.2))
    job_kwh = (2 * (270 + 20) + 2 * 370 / 4) * 1.2 / 1000
    site_kwh = (370 + 2 * (270 + 20)) * 1.2 / 1000
    outcome = result.outcomes[0]
    assert outcome.energy_kwh == pytest.approx(job_kwh, rel=1e-12)
    assert outcome.cost_usd == pytest.approx(job_kwh * 0.2, rel=1e-12)
    assert outcome.carbon_kg == pytest.approx(job_kwh * 0.4, rel=1e-12)
    assert result.site_energy_kwh[0] == pytest.approx(site_kwh, rel=1e-12)
    assert result.idle_energy_kwh[0] == pytest.approx(site_kwh - job_kwh, rel=1e-12)


def test_a_deferred_job_pays_the_price_of_the_hours_in_which_it_runs():
    """Held at 0 and 1800 s, run at 3600 s; it spans a cheap and a negative hour, and the first hour is idle only."""
    grid = ref.Grid(3600, 0, [[1.0, 0.1, -0.05]], [[0.0] * 3], [[1.0] * 3], [[0] * 3])
    answers = iter([0, 0, 1])
    result = simulate(
        one_pool(1, 1), [job(0, 5400, kind=TRAINING)], grid, choose=lambda j, allowed: next(answers), hold_s=1800, power=280.0
    )
    watts = 250 + 20 + 280
    assert result.outcomes[0].start_s == 3600
    assert result.outcomes[0].cost_usd == pytest.approx(watts / 1000 * (0.1 + 0.5 * -0.05), rel=1e-12)
    assert result.site_cost_usd[0] == pytest.approx(0.28 * 1.0 + result.outcomes[0].cost_usd, rel=1e-12)


def test_sleep_and_wake_take_time_and_energy():
    """Asleep from 100 s on, woken at 1000 s for 60 s at 400 W, then 100 s of work; late by 60 s against its latest start."""
    cluster = one_pool(1, 1, wake_latency_s=60)
    result = simulate(cluster, [job(1000, 100, latest=1000, deadline=1100)], sleep_after_s=100, power=330.0)
    kinds = [(event[0], event[1]) for event in result.events]
    assert kinds == [(100, ref.SLEEP), (1000, ref.ARRIVE), (1000, ref.RUN), (1000, ref.WAKE), (1060, ref.WAKE_DONE), (1060, ref.START),
                     (1160, ref.END)]  # fmt: skip
    joules = 100 * 280 + 900 * 15 + 60 * 400 + 100 * (280 + 300 + 20)
    assert result.site_energy_kwh[0] == pytest.approx(joules / 3.6e6, rel=1e-12)
    assert result.outcomes[0].late_start
    assert result.outcomes[0].missed_deadline
    assert result.outcomes[0].penalty_usd == pytest.approx(2 * (0.25 + 0.5 * 60 / 3600), rel=1e-12)


def test_warm_reserve_keeps_the_lowest_nodes_awake():
    result = simulate(one_pool(3, 1), [job(500, 10)], flat_grid(reserve=1), sleep_after_s=100)
    assert [event[5] for event in result.events if event[1] == ref.SLEEP and event[0] == 100] == [2, 1]
    assert result.outcomes[0].start_s == 500


def test_rejections_name_the_first_reason_that_holds():
    jobs = [
        dataclasses.replace(job(0, 10), pools_allowed=(False,)),
        dataclasses.replace(job(0, 10), gpu_milli=3000),
        job(0, 10, 5),
        job(0, 10, 2, max_watts=599.0),
        job(0, 10, 2, max_watts=600.0),
    ]
    result = simulate(one_pool(2, 2), jobs, power=300.0)
    assert [outcome.rejected for outcome in result.outcomes] == [ref.NO_GPU_MODEL, ref.TOO_LARGE, ref.TOO_LARGE, ref.MAX_WATTS, 0]


def test_fractions_pack_by_the_node_rule():
    best = simulate(one_pool(2, 1), [job(0, 50, 0.5), job(1, 50, 0.5)], node_rule="best_fit", sleep_after_s=10)
    spread = simulate(one_pool(2, 1), [job(0, 50, 0.5), job(1, 50, 0.5)], node_rule="least_allocated", sleep_after_s=10)
    assert [event[5] for event in best.events if event[1] == ref.SLEEP] == [1]
    assert not [event for event in spread.events if event[1] == ref.SLEEP]


def test_speed_stretches_the_run_and_rounds_up():
    result = simulate(one_pool(1, 1), [job(0, 100)], speed=0.3)
    assert result.outcomes[0].end_s == math.ceil(100 / 0.3)
