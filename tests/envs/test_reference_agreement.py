"""The compiled simulator and the plain-Python reference agree event for event, question for question and total for total.

Clusters, work, prices and answers are random; every example is a different small world. The reference was written from docs/simulator.md
and shares no code with the kernel.
"""

import dataclasses
import importlib.util
import random
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import world as world_module
from envs.cluster import ClassObjective, ClusterSpec, PoolSpec, SiteSpec
from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import WindowTables
from telemetry.classes import WORKLOAD_CLASSES


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
START = pd.Timestamp("2026-03-02T07:00:00Z")
REWARD = RewardSpec(late_cap_hours=1.0)
KINDS = len(WORKLOAD_CLASSES)


@dataclasses.dataclass
class Case:
    """One random world in both dialects."""

    cluster: ClusterSpec
    speed: list
    power_w: list
    jobs: list
    grid: object
    temperature: list
    settings: PolicySettings
    answers: int


def draw_case(rng: random.Random, n_sites: int, n_pools: int, n_jobs: int, settings_: PolicySettings) -> Case:
    levels = rng.choice([(1.0,), (1.0, 0.6), (1.0, 0.75, 0.5)])
    sites = tuple(SiteSpec(f"s{i}", rng.uniform(1.0, 1.4), rng.uniform(0, 0.02), rng.uniform(5, 20)) for i in range(n_sites))
    pools = tuple(
        PoolSpec(
            f"p{i}", f"s{rng.randrange(n_sites)}", f"G{i}", rng.randint(1, 3), rng.randint(1, 4), rng.uniform(50, 400), rng.uniform(5, 60),
            rng.uniform(0, 40), rng.uniform(0, 30), rng.choice([1, 30, 60, 180, 600]), rng.uniform(100, 900),
        )
        for i in range(n_pools)
    )  # fmt: skip
    objectives = {name: ClassObjective(0, 1.0, rng.random() < 0.6, rng.random() < 0.5) for name in WORKLOAD_CLASSES}
    cluster = ClusterSpec("random", sites, pools, levels, objectives)
    speed, power = [], []
    for _ in pools:
        top = [(rng.choice([1.0, rng.uniform(0.3, 3.0)]), rng.uniform(80, 400)) for _ in range(KINDS)]
        speed.append([[top[k][0] * fraction**0.4 for k in range(KINDS)] for fraction in levels])
        power.append([[top[k][1] * fraction for k in range(KINDS)] for fraction in levels])
    step_s, columns = rng.choice([600, 900, 3600]), rng.randint(1, 12)
    history = 86400 // step_s
    series = lambda low, high: [[rng.uniform(low, high) for _ in range(history + columns)] for _ in sites]  # noqa: E731
    temperature = series(-5, 40)
    pue = [
        [site.pue_base + site.pue_per_c * max(0.0, t - site.pue_free_cooling_c) for t in row]
        for site, row in zip(sites, temperature, strict=True)
    ]
    reserve = [[rng.choice([0, 0, 0, 1, 2]) for _ in range(history + columns)] for _ in pools]
    grid = ref.Grid(step_s, history, series(-0.05, 0.4), series(20, 700), pue, reserve)
    span = rng.choice([0, 200, 3000, 12000])
    submits = sorted(rng.randint(0, span) for _ in range(n_jobs))
    jobs = [draw_job(rng, submit, n_pools, power) for submit in submits]
    return Case(cluster, speed, power, jobs, grid, temperature, settings_, rng.randrange(2**32))


def draw_job(rng: random.Random, submit: int, n_pools: int, power: list):
    duration = rng.choice([1, rng.randint(1, 300), rng.randint(1, 6000)])
    model = rng.choice([None, None, None, rng.randrange(n_pools + 1)])  # the last one is a model that no pool has
    gpu_milli = rng.choice([1000, 1000, 2000, 4000, 5000, 500, 250, 333, rng.randint(1, 999)])
    workers = rng.choice([1, 1, 1, 2, 3, 7])
    watts = float("inf")
    if rng.random() < 0.3:
        watts = gpu_milli * workers / 1000 * rng.uniform(40, 420)
    latest = submit + rng.choice([0, rng.randint(0, 5000)])
    return ref.Job(
        submit, duration, rng.choice([duration, rng.randint(1, 6000)]), gpu_milli, workers, rng.randrange(KINDS), rng.choice([0, 0, 1, -1]),
        latest, latest + rng.randint(0, 9000), watts, rng.choice([1.0, rng.random()]),
        tuple(model is None or model == p for p in range(n_pools)),
    )  # fmt: skip


def kernel_world(case: Case):
    """The same world for the kernel, with the case's own curves in place of the measured ones."""
    at = lambda seconds: START + pd.to_timedelta(np.array(seconds, dtype=np.int64), unit="s")  # noqa: E731
    jobs = case.jobs
    table = pd.DataFrame(
        {
            "job_id": [f"j{i:03d}" for i in range(len(jobs))],
            "submit_time": at([j.submit_s for j in jobs]),
            "duration_s": np.array([j.duration_s for j in jobs], dtype=np.int64),
            "estimate_s": np.array([j.estimate_s for j in jobs], dtype=np.int64),
            "gpus": [j.gpu_milli / 1000 for j in jobs],
            "gpu_milli": np.array([j.gpu_milli for j in jobs], dtype=np.int64),
            "workers": np.array([j.workers for j in jobs], dtype=np.int64),
            "workload_class": [WORKLOAD_CLASSES[j.kind] for j in jobs],
            "kind": np.array([j.kind for j in jobs], dtype=np.int64),
            "priority": np.array([j.priority for j in jobs], dtype=np.int64),
            "latest_start": at([j.latest_start_s for j in jobs]),
            "deadline": at([j.deadline_s for j in jobs]),
            "max_watts": [j.max_watts for j in jobs],
            "gpu_utilization": [j.utilization for j in jobs],
            "gpu_model": pd.Series([model_of(j) for j in jobs], dtype=object),
        }
    )
    grid, width = case.grid, len(case.grid.price[0])
    times = START + pd.to_timedelta((np.arange(width) - grid.history_steps) * grid.step_s, unit="s")
    rows = pd.concat(
        pd.DataFrame(
            {
                "time": times,
                "site": site.name,
                "price_usd_per_kwh": grid.price[s],
                "carbon_g_per_kwh": grid.carbon[s],
                "renewable_fraction": 0.5,
                "temperature_c": case.temperature[s],
            }
        )
        for s, site in enumerate(case.cluster.sites)
    )
    curves = {pool.gpu_model: (np.array(case.speed[p]), np.array(case.power_w[p])) for p, pool in enumerate(case.cluster.pools)}
    with mock.patch.object(world_module, "levels_for", lambda model, fractions: curves[model]):
        world = world_module.build_world(case.cluster, [WindowTables(START, table, rows)], warm_reserve=np.array([grid.warm_reserve]))
    assert world.grid.price.shape[2] == width
    return world


def model_of(job) -> str | None:
    """All pools = no constraint; one pool = its model; no pool = a model that is nowhere."""
    if all(job.pools_allowed):
        return None
    return f"G{job.pools_allowed.index(True)}" if any(job.pools_allowed) else "elsewhere"


def pick(answers: int, index: int, allowed: list[int]) -> int:
    return random.Random(answers * 1_000_003 + index).choice(allowed)


def run_reference(case: Case):
    count = iter(range(10**9))
    options = {f.name: getattr(case.settings, f.name, f.default) for f in dataclasses.fields(ref.Settings)}
    choose = lambda job, allowed: pick(case.answers, next(count), allowed)  # noqa: E731
    simulator = ref.Simulator(case.cluster, case.speed, case.power_w, case.jobs, case.grid, ref.Settings(**options), REWARD, choose)
    return simulator.run()


def run_kernel(case: Case):
    simulator = Simulator(kernel_world(case), 1, case.settings, REWARD, event_log=True)
    simulator.reset(np.zeros(1, dtype=np.int64))
    questions = []
    while not simulator.done[0]:
        allowed = [int(a) for a in np.flatnonzero(simulator.mask[0])]
        questions.append((int(simulator.time_s[0]), int(simulator.asking[0]), tuple(allowed)))
        simulator.step(np.array([pick(case.answers, len(questions) - 1, allowed)], dtype=np.int64))
    return questions, simulator.totals()


def compare(case: Case) -> None:
    expected = run_reference(case)
    questions, totals = run_kernel(case)
    assert questions == expected.questions
    assert [tuple(int(v) for v in row[:6]) for row in totals.events[0]] == expected.events
    compare_totals(case, totals, expected)


def compare_totals(case: Case, totals, expected) -> None:
    n, outcomes = len(case.jobs), expected.outcomes
    assert int(totals.end_s[0]) == expected.end_s
    for name in ("start_s", "end_s", "pool", "level", "late_start", "missed_deadline", "rejected"):
        assert getattr(totals, f"job_{name}")[0, :n].tolist() == [getattr(o, name) for o in outcomes], name
    close = lambda kernel, reference: np.testing.assert_allclose(kernel, reference, rtol=1e-9, atol=1e-10)  # noqa: E731
    for name in ("energy_kwh", "cost_usd", "carbon_kg"):
        close(getattr(totals, name)[0], getattr(expected, f"site_{name}"))
        close(getattr(totals, f"idle_{name}")[0].sum(axis=-1), getattr(expected, f"idle_{name}"))
        close(getattr(totals, f"job_{name}")[0, :n], [getattr(o, name) for o in outcomes])
    close(totals.job_penalty_usd[0, :n], [o.penalty_usd for o in outcomes])
    close(totals.penalty_usd[0].sum(), sum(o.penalty_usd for o in outcomes))
    close(totals.busy_gpu_s[0], sum(j.gpus * (o.end_s - o.start_s) for j, o in zip(case.jobs, outcomes, strict=True) if o.end_s >= 0))


COUNTS = {"sites": st.integers(1, 2), "pools": st.integers(1, 3), "jobs": st.integers(1, 20), "seed": st.integers(0, 2**32 - 1)}
SETTINGS = st.builds(
    PolicySettings,
    node_rule=st.sampled_from(["best_fit", "least_allocated"]),
    sleep_after_s=st.sampled_from([-1, 0, 100, 900]),
    discipline=st.sampled_from(["free", "strict", "easy"]),
    queue_order=st.sampled_from(["priority", "fcfs", "sjf", "f1", "wfp3", "unicep"]),
    hold_s=st.sampled_from([60, 900]),
)


@settings(max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(chosen=SETTINGS, **COUNTS)
def test_kernel_and_reference_agree(chosen, sites, pools, jobs, seed):
    compare(draw_case(random.Random(seed), sites, pools, jobs, chosen))


@pytest.mark.parametrize("discipline", ["free", "strict", "easy"])
@pytest.mark.parametrize("seed", range(12))
def test_they_agree_under_crowding(discipline, seed):
    """Forty jobs on few GPUs: long queues, many blocked jobs, backfilling all the time."""
    chosen = PolicySettings(
        discipline=discipline, queue_order=("fcfs", "sjf", "priority", "wfp3", "unicep", "f1")[seed % 6], sleep_after_s=(-1, 100)[seed % 2]
    )
    compare(draw_case(random.Random(seed), 2, 1 + seed % 3, 40, chosen))


def test_the_random_cases_reach_every_rule():
    """The generator is worth nothing if no job is late, rejected, held, or waits for a wake."""
    events, rejected, late, missed, waited = set(), set(), 0, 0, 0
    for seed in range(60):
        chosen = PolicySettings(discipline=("free", "strict", "easy")[seed % 3], sleep_after_s=(-1, 0, 100)[seed % 3])
        result = run_reference(draw_case(random.Random(seed), 2, 2, 12, chosen))
        events |= {event[1] for event in result.events}
        rejected |= {outcome.rejected for outcome in result.outcomes}
        late += sum(outcome.late_start for outcome in result.outcomes)
        missed += sum(outcome.missed_deadline for outcome in result.outcomes)
        waited += len({event[:2] for event in result.events if event[1] == ref.WAKE_DONE})
    assert events == set(range(1, 11))
    assert rejected == {0, ref.NO_GPU_MODEL, ref.TOO_LARGE, ref.MAX_WATTS}
    assert min(late, missed, waited) > 20
