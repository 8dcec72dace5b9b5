"""Hand-computed cases for the reference simulator: resources, slices, budgets, outages, reviews, data and leases.

Unless said otherwise a node idles at 250 W + 30 W a GPU, and a 1-GPU job at 300 W adds 270 + 20 W.
"""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec


def _load(name):
    """A module beside this file, by path: another distribution installs a top-level package named tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


hand = _load("test_reference_simulator")
ref, job, one_pool, flat_grid, simulate, told, of_job = (
    getattr(hand, name) for name in ("ref", "job", "one_pool", "flat_grid", "simulate", "told", "of_job")
)
TRAINING = hand.TRAINING
KWH = 3.6e6


def two_sites(levels=(1.0,), **more):
    """One node of one GPU at each of two sites."""
    pools = (PoolSpec("near", "here", "V100", 1, 1), PoolSpec("far", "there", "A100", 1, 1))
    return ClusterSpec("two", (SiteSpec("here"), SiteSpec("there")), pools, level_fractions=levels, **more)


def starts(result):
    return [outcome.start_s for outcome in result.outcomes]


def rejections(result):
    return [outcome.rejected for outcome in result.outcomes]


# ---------------------------------------------------------------- resources and slices


def test_cpus_and_memory_bound_what_a_node_takes():
    """Eight CPUs and 16 GiB a node: six and four CPUs need two nodes, the next four fill the second, the last four wait for the six."""
    cluster = one_pool(2, 4, cpus_per_node=8, memory_gib_per_node=16)
    jobs = [
        job(0, 100, cpu_milli=6000), job(0, 500, cpu_milli=4000), job(0, 500, cpu_milli=4000), job(0, 500, cpu_milli=4000),
        job(0, 10, cpu_milli=9000), job(0, 10, memory_mib=16 * 1024 + 1), job(200, 10, memory_mib=16 * 1024),
    ]  # fmt: skip
    result = simulate(cluster, jobs)
    assert starts(result) == [0, 0, 0, 100, -1, -1, 200]
    assert rejections(result) == [0, 0, 0, 0, ref.TOO_LARGE, ref.TOO_LARGE, 0]


def test_a_job_without_gpus_draws_its_cpus_only_and_holds_no_gpu():
    jobs = [dataclasses.replace(job(0, 3600, max_watts=1.0), gpu_milli=0, workers=2, cpu_milli=3000), job(0, 100)]
    result = simulate(one_pool(1, 1, cpus_per_node=8, cpu_w_per_cpu=5.0), jobs)
    assert starts(result) == [0, 0]
    assert result.outcomes[0].energy_kwh == pytest.approx(2 * 3 * 5.0 / 1000, rel=1e-12)
    assert result.busy_gpu_s == pytest.approx(100)


def test_a_pool_without_cpu_numbers_has_no_cpu_limit():
    assert rejections(simulate(one_pool(1, 1), [job(0, 10, cpu_milli=10**6, memory_mib=10**7)])) == [0]


@pytest.mark.parametrize(
    ("slices", "asked", "held"),
    [
        (7, 143, 142),
        (7, 144, 285),
        (7, 300, 428),
        (7, 500, 571),
        (7, 572, 571),
        (7, 573, 1000),
        (4, 251, 500),
        (3, 334, 333),
        (0, 300, 300),
    ],
)
def test_shares_are_rounded_up_to_slice_profiles(slices, asked, held):
    """Of sevenths there are profiles of 1, 2, 3, 4 and 7; of other cuts all."""
    result = simulate(one_pool(1, 1, mig_slices=slices), [dataclasses.replace(job(0, 1000), gpu_milli=asked)])
    assert result.busy_gpu_s == pytest.approx(held)


def test_slices_bound_packing_watts_and_charge():
    """0.3 of a GPU takes 3/7: two fit, the third waits; 0.428 x 300 W is above a cap of 128 W that 0.3 x 300 W would keep."""
    jobs = [job(0, 10, 0.3), job(0, 10, 0.3), job(0, 10, 0.3), job(0, 10, 0.3, max_watts=128.0), job(0, 10, 0.3, max_watts=128.5)]
    result = simulate(one_pool(1, 1, mig_slices=7), jobs)
    assert starts(result) == [0, 0, 10, -1, 10]
    assert rejections(result) == [0, 0, 0, ref.MAX_WATTS, 0]
    assert result.outcomes[0].energy_kwh == pytest.approx(0.428 * (290 + 280) * 10 / KWH, rel=1e-9)


@pytest.mark.parametrize(("context", "active"), [(0.0, 135.0), (50.0, 50 + 220 * 0.5), (500.0, 270.0)])
def test_an_allocated_gpu_keeps_its_context_watts(context, active):
    """Half utilised: only what lies above the context scales, and the context is never more than active less idle."""
    result = simulate(one_pool(1, 1, gpu_context_w=context), [job(0, 3600, utilization=0.5)])
    assert result.outcomes[0].energy_kwh == pytest.approx((active + 20 + 280) / 1000, rel=1e-12)


# ---------------------------------------------------------------- outages and checkpoints


def test_overlapping_and_touching_outages_are_one_and_none_begins_before_the_window():
    assert ref.merged([(1, 5, 9), (0, 50, 60), (0, -7, 10), (0, 10, 20), (0, 55, 58), (2, -9, 0)]) == [(0, 0, 20), (0, 50, 60), (1, 5, 9)]


@pytest.mark.parametrize(("checkpoint", "end"), [(300, 2250), (0, 2850), (350, 800 + 50 + 1300), (701, 2850)])
def test_an_outage_loses_the_work_since_the_last_periodic_checkpoint(checkpoint, end):
    """At speed 1/2, 700 s are 350 of 1000; checkpoints at 300 and 600 s keep 300. Again from 800 s: 50 s of loading, then 700 / (1/2)."""
    result = simulate(
        one_pool(1, 1), [job(0, 1000, checkpoint_s=checkpoint, restart_s=50)], outages=[(0, 700, 800)], speed=0.5, sleep_after_s=-1
    )
    assert [event for event in result.events if event[1] in (ref.INTERRUPT, ref.NODE_DOWN, ref.NODE_UP)] == [
        (700, ref.NODE_DOWN, -1, 0, -1, 0), (700, ref.INTERRUPT, 0, 0, 0, 0), (800, ref.NODE_UP, -1, 0, -1, 0)]  # fmt: skip
    assert (result.outcomes[0].start_s, result.outcomes[0].end_s) == (0, end)
    ran = end - 100
    assert result.outcomes[0].energy_kwh == pytest.approx(ran * (290 + 280) / KWH, rel=1e-12)
    assert result.site_energy_kwh[0] == pytest.approx(ran * (290 + 280) / KWH, rel=1e-12)  # nothing while the only node is down


def test_loading_is_not_work():
    """Interrupted 80 s into its second run, of which 50 were loading: the one checkpoint of 20 s counts, not that of the 80."""
    jobs = [job(0, 1000, checkpoint_s=20, restart_s=50)]
    result = simulate(one_pool(1, 1), jobs, outages=[(0, 100, 200), (0, 280, 300)])
    assert result.outcomes[0].end_s == 300 + 50 + (1000 - 100 - 20)


def test_a_gang_is_interrupted_once_and_as_a_whole():
    """Two nodes go at once: the first of them is named; the third is idle and goes to sleep 10 s later."""
    result = simulate(one_pool(3, 1), [job(0, 100, 3)], outages=[(2, 50, 60), (1, 50, 80)], sleep_after_s=10)
    assert [event for event in result.events if event[0] <= 60 and event[1] != ref.START][2:] == [
        (50, ref.NODE_DOWN, -1, 0, -1, 1), (50, ref.INTERRUPT, 0, 0, 0, 1), (50, ref.NODE_DOWN, -1, 0, -1, 2),
        (60, ref.NODE_UP, -1, 0, -1, 2), (60, ref.SLEEP, -1, 0, -1, 0)]  # fmt: skip
    assert result.outcomes[0].end_s == 80 + 180 + 100


def test_a_node_that_goes_down_while_waking_forgets_its_wake_and_the_job_its_place():
    """Nothing was started, so the start at 200 s is the first: no loading."""
    result = simulate(one_pool(1, 1, wake_latency_s=60), [job(100, 50, restart_s=30)], outages=[(0, 130, 200)], sleep_after_s=0)
    assert of_job(result, 0) == [(100, ref.ARRIVE), (100, ref.RUN), (130, ref.INTERRUPT), (200, ref.RUN), (200, ref.START), (250, ref.END)]
    assert not [event for event in result.events if event[1] == ref.WAKE_DONE]


def test_a_waking_node_that_loses_its_job_is_idle_from_the_end_of_its_wake():
    """Both nodes wake for the pair at 100 s; one goes down at 130; the other is awake at 160 and, 40 s later, asleep again."""
    result = simulate(one_pool(2, 1, wake_latency_s=60), [job(100, 50, 2)], outages=[(1, 130, 500)], sleep_after_s=40)
    assert [event[:2] + event[5:] for event in result.events if event[5] == 0 and event[0] > 130][:2] == [
        (160, ref.WAKE_DONE, 0), (200, ref.SLEEP, 0)]  # fmt: skip


def test_a_node_down_at_second_0_is_no_place():
    result = simulate(one_pool(1, 1), [job(0, 10)], outages=[(0, -50, 40)])
    assert result.events[:2] == [(0, ref.NODE_DOWN, -1, 0, -1, 0), (0, ref.ARRIVE, 0, -1, -1, -1)]
    assert starts(result) == [40]


def test_easy_counts_no_node_that_is_down():
    """Three needed, one is down: the shadow time is the last estimated end, nothing is spare, so only what ends by then goes ahead."""
    jobs = [job(0, 100), job(1, 10, 3), job(2, 50), job(60, 200)]
    result = simulate(one_pool(3, 1), jobs, outages=[(2, 0, 10_000)], discipline="easy", queue_order="fcfs")
    assert starts(result) == [0, 10_000, 2, 10_010]


# ---------------------------------------------------------------- reviews


def test_pause_keeps_the_work_and_costs_the_loading():
    """Reviews at 100 and 200 s; 200 of 250 s done, asked again after hold_s, 20 s of loading, 50 s of work."""
    jobs = [job(0, 250, kind=TRAINING, preemptible=True, restart_s=20)]
    result = simulate(one_pool(1, 1), jobs, choose=told([1, 1, 0, 1]), review_s=100, hold_s=60)
    assert of_job(result, 0) == [
        (0, ref.ARRIVE), (0, ref.RUN), (0, ref.START), (200, ref.PAUSE), (260, ref.RUN), (260, ref.START), (330, ref.END)]  # fmt: skip
    assert result.questions == [(0, 0, (0, 1)), (100, 0, (0, 1)), (200, 0, (0, 1)), (260, 0, (0, 1))]
    assert result.outcomes[0].energy_kwh == pytest.approx(270 * (290 + 280) / KWH, rel=1e-12)
    assert result.busy_gpu_s == pytest.approx(270)


def test_only_preemptible_jobs_are_reviewed_and_a_pause_frees_the_place_at_once():
    jobs = [job(0, 300, preemptible=True), job(50, 100)]
    result = simulate(one_pool(1, 1), jobs, choose=told([1, 0, 1, 1, 1]), review_s=100, hold_s=10)
    assert [question[:2] for question in result.questions] == [(0, 0), (100, 0), (100, 1), (200, 0), (300, 0)]
    assert [outcome.end_s for outcome in result.outcomes] == [400, 200]


def test_change_of_level_goes_on_at_the_new_speed():
    """100 s at 1, 100 s at 1/2, the rest at 1."""
    cluster = dataclasses.replace(one_pool(1, 1), level_fractions=(1.0, 0.5))
    jobs = [job(0, 400, preemptible=True)]
    result = simulate(cluster, jobs, choose=told([1, 2, 1, 1, 1]), speed=[1.0, 0.5], power=[300.0, 150.0], review_s=100)
    assert [event for event in result.events if event[1] == ref.LEVEL] == [(100, ref.LEVEL, 0, 0, 1, -1), (200, ref.LEVEL, 0, 0, 0, -1)]
    assert result.questions[1:3] == [(100, 0, (0, 1, 2)), (200, 0, (0, 1, 2))]
    assert result.outcomes[0].end_s == 450
    assert result.outcomes[0].energy_kwh == pytest.approx((350 * 570 + 100 * 420) / KWH, rel=1e-12)


def test_a_change_of_level_does_not_load_again():
    """Paused with 100 s done; of 150 s of loading 100 are over when the level changes: 50 more, then 900 s at 1/2."""
    cluster = dataclasses.replace(one_pool(1, 1), level_fractions=(1.0, 0.5))
    answers = iter([1, 0, 1, 2])
    stay = 2
    result = simulate(
        cluster, [job(0, 1000, preemptible=True, restart_s=150)], choose=lambda j, allowed: next(answers, stay),
        speed=[1.0, 0.5], review_s=100, hold_s=100,
    )  # fmt: skip
    assert result.outcomes[0].end_s == 300 + 50 + 1800


def test_a_change_of_level_is_a_checkpoint():
    """Level at 100 s keeps 100 s; of the 250 s after it two periods of 100 s at 1/2 are kept; the rest runs at 1/2 from 400 s on."""
    cluster = dataclasses.replace(one_pool(1, 1), level_fractions=(1.0, 0.5))
    answers = iter([1, 2])
    result = simulate(
        cluster, [job(0, 1000, preemptible=True, checkpoint_s=100)], choose=lambda j, allowed: next(answers, 2),
        speed=[1.0, 0.5], review_s=100, outages=[(0, 350, 400)],
    )  # fmt: skip
    assert result.outcomes[0].end_s == 400 + (1000 - 100 - 100) * 2


def test_migration_takes_its_data_along():
    """100 GiB at 10 Gbit/s take 85.9 s; 0.4 kWh are paid at the far price; 100 of 1000 s are done; 10 s of loading after the arrival."""
    grid = ref.Grid(3600, 0, [[0.1] * 9, [0.3] * 9], [[500.0] * 9, [200.0] * 9], [[1.0] * 9, [1.5] * 9], [[0] * 9] * 2)
    moved = job(0, 1000, preemptible=True, restart_s=10, data_gib=100.0, data_site=0)
    moved = dataclasses.replace(moved, pools_allowed=(True, True))
    answers = iter([1, 2])
    result = simulate(two_sites(), [moved], grid, choose=lambda j, allowed: next(answers, 2), review_s=100)
    assert result.questions[:3] == [(0, 0, (1, 2)), (100, 0, (0, 1, 2)), (286, 0, (0, 1, 2))]
    assert [event for event in result.events if event[1] in (ref.MIGRATE, ref.START)] == [
        (0, ref.START, 0, 0, 0, -1), (100, ref.MIGRATE, 0, 1, 0, -1), (186, ref.START, 0, 1, 0, -1)]  # fmt: skip
    outcome = result.outcomes[0]
    assert (outcome.start_s, outcome.end_s, outcome.pool) == (0, 186 + 10 + 900, 1)
    near, far = 100 * 570 / KWH, 910 * 570 * 1.5 / KWH
    assert outcome.energy_kwh == pytest.approx(near + far + 0.4, rel=1e-12)
    assert outcome.cost_usd == pytest.approx(near * 0.1 + (far + 0.4) * 0.3, rel=1e-12)
    assert outcome.carbon_kg == pytest.approx(near * 0.5 + (far + 0.4) * 0.2, rel=1e-12)
    assert result.site_energy_kwh[1] - result.idle_energy_kwh[1] == pytest.approx(far + 0.4, rel=1e-12)


def test_data_is_sent_once_and_lies_where_it_was_sent():
    """Sent at 0, interrupted at 5 before it started: the second run finds the data there."""
    sent = job(0, 100, data_gib=50.0, data_site=0, pools=(False, True))
    result = simulate(two_sites(transfer_gbps=40.0), [sent], outages=[(1, 5, 8)])
    assert of_job(result, 0)[1:] == [(0, ref.RUN), (5, ref.INTERRUPT), (8, ref.RUN), (8, ref.START), (108, ref.END)]
    assert result.outcomes[0].energy_kwh == pytest.approx(0.2 + 100 * 570 / KWH, rel=1e-12)


# ---------------------------------------------------------------- budgets


def test_a_pool_budget_bounds_the_jobs():
    """370 W of idle node and twice 290 W: two at once, though four GPUs are there."""
    assert starts(simulate(one_pool(1, 4, budget_w=370 + 2 * 290), [job(0, 100)] * 3)) == [0, 0, 100]
    assert starts(simulate(one_pool(1, 4, budget_w=369 + 2 * 290), [job(0, 100)] * 3)) == [0, 100, 200]


def test_a_rack_budget_spreads_a_gang():
    """One job a rack: the pair takes both racks where best fit would fill the first; the single one must wait."""
    cluster = one_pool(2, 2, nodes_per_rack=1, rack_budget_w=310 + 290)
    assert starts(simulate(cluster, [job(0, 100, 2), job(1, 10)])) == [0, 100]
    assert starts(simulate(one_pool(2, 2, nodes_per_rack=2, rack_budget_w=620 + 290), [job(0, 100, 1), job(1, 10)])) == [0, 100]


def test_a_site_budget_spans_pools():
    sites, pools = (SiteSpec("here", budget_w=2 * 280 + 290),), (PoolSpec("a", "here", "V100", 1, 1), PoolSpec("b", "here", "A100", 1, 1))
    cluster = ClusterSpec("hand", sites, pools, level_fractions=(1.0,))
    jobs = [dataclasses.replace(job(0, 100), pools_allowed=(True, False)), dataclasses.replace(job(0, 100), pools_allowed=(False, True))]
    assert starts(simulate(cluster, jobs)) == [0, 100]


def test_a_waking_node_counts_at_the_larger_of_wake_and_awake_watts():
    """Asleep it needs 400 + 290 W, above the budget; awake it would need 280 + 290 W. Nothing else will come: stranded."""
    result = simulate(one_pool(1, 1, budget_w=600.0), [job(100, 10)], flat_grid(columns=1), sleep_after_s=0)
    assert rejections(result) == [ref.STRANDED]
    assert starts(simulate(one_pool(1, 1, budget_w=600.0), [job(100, 10)], flat_grid(columns=1))) == [100]
    assert starts(simulate(one_pool(1, 1, budget_w=690.0), [job(100, 10)], flat_grid(columns=1), sleep_after_s=0)) == [280]


def test_budgets_bound_changes_of_level():
    """One job at 290 W and one at 140 W fill the budget: the first may step down, the second may not step up until then."""
    cluster = dataclasses.replace(one_pool(1, 2, budget_w=310 + 290 + 140), level_fractions=(1.0, 0.5))
    jobs = [job(0, 1000, preemptible=True), job(0, 150, preemptible=True)]
    result = simulate(cluster, jobs, choose=told([1, 2, 1, 2] + [1] * 8), power=[300.0, 150.0], review_s=100)
    assert result.questions[:4] == [(0, 0, (1, 2)), (0, 1, (2,)), (100, 0, (0, 1, 2)), (100, 1, (0, 2))]


def test_a_migration_is_judged_while_the_old_place_is_committed():
    """The site has watts for one job: it may not move, though it would free what it needs."""
    sites, pools = (SiteSpec("here", budget_w=2 * 280 + 290),), (PoolSpec("a", "here", "V100", 1, 1), PoolSpec("b", "here", "A100", 1, 1))
    cluster = ClusterSpec("hand", sites, pools, level_fractions=(1.0,))
    moved = dataclasses.replace(job(0, 150, preemptible=True), pools_allowed=(True, True))
    assert simulate(cluster, [moved], review_s=100, choose=told([1, 1])).questions == [(0, 0, (1, 2)), (100, 0, (0, 1))]


# ---------------------------------------------------------------- services


def lease(submit, until, latest=None, peak=0.8, **more):
    more = {"until_s": until, "service": 0, "peak_load": peak} | more
    return job(submit, until - submit, latest=submit if latest is None else latest, deadline=submit, **more)


def test_a_lease_ends_at_its_until_however_late_and_draws_by_load():
    """Wanted from 100 to 1000 s, placed at 600: late by 500 s; the load is 0.5 until 900 s and 3 (that is 1) in the last 100 s."""
    grid = dataclasses.replace(flat_grid(step_s=300), load=[[9.0, 9.0, 0.5, 3.0, *[0.0] * 36]])
    result = simulate(one_pool(1, 1), [job(0, 600), lease(100, 1000, preemptible=True)], grid, review_s=100)
    outcome = result.outcomes[1]
    assert (outcome.start_s, outcome.end_s, outcome.late_start, outcome.missed_deadline) == (600, 1000, True, False)
    assert outcome.penalty_usd == pytest.approx(0.25 + 0.5 * 500 / 3600, rel=1e-12)
    assert outcome.energy_kwh == pytest.approx((300 * (135 + 300) + 100 * (270 + 300)) / KWH, rel=1e-12)
    assert len(result.questions) == 2  # never reviewed


def test_a_lease_that_does_not_run_is_withdrawn_at_its_until():
    """Never started: late from its latest start to its until. Interrupted for good: withdrawn, but its start was in time."""
    grid = dataclasses.replace(flat_grid(), load=[[1.0] * 40])
    result = simulate(one_pool(1, 1), [lease(0, 1000), lease(100, 500, latest=200)], grid, outages=[(0, 400, 2000)])
    first, second = result.outcomes
    assert [event for event in result.events if event[1] == ref.WITHDRAW] == [(500, ref.WITHDRAW, 1, -1, -1, -1),
                                                                               (1000, ref.WITHDRAW, 0, -1, -1, -1)]  # fmt: skip
    assert (first.start_s, first.end_s, first.withdrawn, first.late_start, first.penalty_usd) == (0, -1, True, False, 0.0)
    assert (second.start_s, second.end_s, second.withdrawn, second.late_start) == (-1, -1, True, True)
    assert second.penalty_usd == pytest.approx(0.25 + 0.5 * 300 / 3600, rel=1e-12)
    assert result.end_s == 1000


def test_a_lease_is_offered_only_levels_that_carry_its_peak_and_starts_before_its_until():
    grid = dataclasses.replace(flat_grid(), load=[[0.4] * 40])
    cluster = dataclasses.replace(one_pool(1, 1, wake_latency_s=60), level_fractions=(1.0, 0.5))
    jobs = [lease(0, 50, peak=1.01), lease(0, 50, peak=0.5), lease(0, 50, peak=0.51), lease(100, 160)]
    result = simulate(cluster, jobs, grid, speed=[1.0, 0.5], sleep_after_s=0)
    assert rejections(result) == [ref.TOO_SLOW, 0, 0, 0]
    assert result.questions == [(0, 1, (1, 2))]
    assert [outcome.withdrawn for outcome in result.outcomes] == [False, False, True, True]


# ---------------------------------------------------------------- stranded


def test_jobs_that_can_never_start_are_rejected_when_nothing_lies_ahead():
    """The budget forbids the second: nothing but the last step, at 3600 s, could change anything, and it does not."""
    jobs = [job(0, 100), job(50, 10, 2)]
    result = simulate(one_pool(1, 2, budget_w=310 + 290), jobs, flat_grid(columns=2))
    assert result.events[-2:] == [(3600, ref.GRID, -1, -1, -1, -1), (3600, ref.REJECT, 1, -1, -1, -1)]
    assert (result.outcomes[1].rejected, result.outcomes[1].violation, result.end_s) == (ref.STRANDED, True, 3600)


def test_an_outage_ahead_keeps_hope():
    jobs = [job(0, 10, 2)]
    assert starts(simulate(one_pool(2, 1), jobs, flat_grid(columns=1), outages=[(0, 0, 90_000)])) == [90_000]
