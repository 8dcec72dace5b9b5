"""The bound lies below every schedule that a search over decisions finds, below every judge, and on the optimum where it is known."""

import dataclasses
import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from envs import bound as bound_module
from envs.bound import bounds, window_bound
from envs.bound_solve import without_solver
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.kernel import Simulator, run_policy
from envs.reward import RewardSpec
from envs.state import PolicySettings
from envs.windows import cut_windows, prepare_jobs
from envs.world import build_world
from telemetry.errors import InputError
from telemetry.readers import READERS, ReadContext


def _load(name: str):
    """A module beside this file, by path: another distribution installs a top-level package named tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


rw = _load("random_worlds")
REWARD = RewardSpec(w_energy=0.5)
CHUNKS, PER_CHUNK = 8, 20
MOST_STATES = 250


def tiny_case(seed: int):
    """One window of one to four jobs, with settings that may sleep at once, review, and follow any discipline."""
    rng = random.Random(seed)
    chosen = rw.ref.Settings(
        node_rule=rng.choice(["best_fit", "least_allocated"]),
        sleep_after_s=rng.choice([0, 0, 0, 600, -1]),
        discipline=rng.choice(["free", "free", "strict", "easy"]),
        queue_order=rng.choice(["priority", "fcfs", "sjf"]),
        hold_s=rng.choice([600, 1800]),
        review_s=rng.choice([0, 0, 0, 1800]),
    )
    case = rw.draw_case(rng, rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 4), chosen)
    kept = dataclasses.replace(case.settings, review_s=chosen.review_s)
    cluster = case.cluster
    if seed % 4:  # budgets loosen the bound more than anything else
        pools = tuple(dataclasses.replace(pool, rack_budget_w=0.0, budget_w=0.0) for pool in cluster.pools)
        cluster = dataclasses.replace(cluster, pools=pools, sites=tuple(dataclasses.replace(s, budget_w=0.0) for s in cluster.sites))
    outages = case.outages if seed % 3 == 0 else []
    grid = case.grid
    if seed % 5:  # nodes that are kept awake cost what the bound does not count
        grid = dataclasses.replace(grid, warm_reserve=[[0] * len(row) for row in grid.warm_reserve], keep_awake=[])
    jobs = case.jobs
    if seed % 2:
        jobs = [job if job.lease else dataclasses.replace(job, duration_s=job.duration_s + rng.randint(0, 20_000)) for job in jobs]
    return dataclasses.replace(case, settings=kept, cluster=cluster, outages=outages, grid=grid, jobs=jobs)


def least_objective(world, settings: PolicySettings, reward: RewardSpec, rng: random.Random, most: int = MOST_STATES) -> tuple[float, bool]:
    """Least objective over decision sequences of the real simulator, depth first; whether all of them were tried."""
    simulator = Simulator(world, 1, settings, reward)
    simulator.reset([0])
    best, states, whole = np.inf, 0, True
    stack = [(simulator.copy(), None)]
    while stack:
        saved, action = stack.pop()
        simulator.restore(saved)
        if action is not None:
            simulator.step(np.array([action]))
        # Where the budget ends, random answers still reach an end, so that every search yields schedules.
        questions = 0
        while not simulator.done[0] and states >= most and questions < 400:
            simulator.step(np.array([rng.choice(np.flatnonzero(simulator.mask[0]).tolist())]))
            whole, questions = False, questions + 1
        if simulator.done[0]:
            best = min(best, float(simulator.totals().objective_usd[0]))
            if states >= 2 * most:
                return best, False
        else:
            here = simulator.copy()
            actions = np.flatnonzero(simulator.mask[0]).tolist()
            rng.shuffle(actions)
            stack += [(here, answer) for answer in actions] if questions == 0 else []
        states += 1
    return best, whole


def check_below(seed: int) -> tuple[float, float, bool]:
    case = tiny_case(seed)
    world = rw.kernel_world([case])
    settings = PolicySettings(**dataclasses.asdict(case.settings))
    free = settings.discipline == "free"
    best, whole = least_objective(world, settings, REWARD, random.Random(seed))
    found = window_bound(world, 0, REWARD, reviews=settings.review_s > 0, only_free=free)
    loose = window_bound(world, 0, REWARD)
    assert found.bound_usd <= best + 1e-9 * abs(best), f"tiny_case({seed}): bound {found.bound_usd} above a schedule of {best}"
    assert loose.bound_usd <= best + 1e-9 * abs(best), f"tiny_case({seed}): loose bound {loose.bound_usd} above a schedule of {best}"
    return found.bound_usd, best, whole


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_schedule_of_a_tiny_world_is_below(chunk):
    rows = [check_below(seed) for seed in range(chunk, CHUNKS * PER_CHUNK, CHUNKS)]
    assert sum(whole for _, _, whole in rows) >= len(rows) // 4, "too few worlds were searched to the end"
    assert sum(np.isfinite(found) for found, _, _ in rows) >= 0.8 * len(rows)


# ---------------------------------------------------------------- where the optimum is known


def one_pool(worlds, nodes=1, gpus=4, **pool):
    """One pool of V100s at full power whose nodes sleep and wake for nothing."""
    two = worlds.cluster(nodes=nodes, gpus=gpus, **({"node_sleep_w": 0.0, "wake_latency_s": 1, "wake_power_w": 0.0} | pool))
    return dataclasses.replace(two, pools=two.pools[:1], sites=two.sites[:1], level_fractions=(1.0,))


def table(worlds, price=None):
    return worlds.grid(sites=("east",), price=price)


def steep(cheap: int):
    """A day of dear hours and a cheap one."""
    price = np.full(24, 0.5)
    price[cheap] = 0.05
    return price


def known_cases(worlds) -> dict:
    """World, and settings under which a search finds its optimum."""
    now = PolicySettings(sleep_after_s=0)
    hourly = PolicySettings(sleep_after_s=0, hold_s=3600)
    one, job = one_pool(worlds), worlds.job
    deferred = {"workload_class": "batch_inference", "duration_s": 3600, "gpus": 4.0}
    late = {"duration_s": 7200, "gpus": 4.0}
    return {
        "one job": (worlds.world_of(one, [job("a", gpus=3.0)], table(worlds)), now),
        "asleep": (
            worlds.world_of(one_pool(worlds, nodes=3, node_sleep_w=90.0, wake_power_w=100.0), [job("a", gpus=4.0)], table(worlds)),
            now,
        ),
        "deferral": (worlds.world_of(one, [job("a", **deferred)], table(worlds, steep(3))), hourly),
        "packing": (worlds.world_of(one_pool(worlds, nodes=2), [job("a", gpus=2.0), job("b", gpus=2.0)], table(worlds)), now),
        "one waits": (worlds.world_of(one, [job("a", **late), job("b", **late)], table(worlds)), now),
        "shares": (worlds.world_of(one_pool(worlds, gpus=1, mig_slices=7), [job("a", gpus=0.5)], table(worlds)), now),
        "negative price": (worlds.world_of(one, [job("a", gpus=3.0)], table(worlds, np.full(24, -0.2))), PolicySettings(sleep_after_s=-1)),
    }


@pytest.mark.parametrize("name", ["one job", "asleep", "deferral", "packing", "one waits", "shares"])
def test_bound_is_the_optimum_where_it_is_known(worlds, name):
    world, settings = known_cases(worlds)[name]
    best, whole = least_objective(world, settings, REWARD, random.Random(0))
    found = window_bound(world, 0, REWARD, reviews=False, only_free=True)
    assert whole
    assert 0.99 * best <= found.bound_usd <= best


def test_one_job_by_hand(worlds):
    """An hour of a node and three of its GPUs at 0.1 USD and 0.4 kg per kWh, each kWh 0.025 USD dearer by its own weight, PUE 1.15."""
    world, _ = known_cases(worlds)["one job"]
    pool, watts = world.cluster.pools[0], float(world.static.gpu_power_w[0, 0, world.jobs.kind[0, 0]])
    it_w = pool.node_idle_w + 4 * pool.gpu_idle_w + 3 * (watts - pool.gpu_idle_w + pool.cpu_w_per_gpu)
    by_hand = it_w / 1000 * 1.15 * (0.1 + 0.1 * 0.4 + 0.5 * 0.05)
    assert window_bound(world, 0, REWARD, reviews=False).bound_usd == pytest.approx(by_hand, rel=1e-6)


BROKEN = {
    "idle watts of nodes twice": ("node_costs", lambda nodes: dataclasses.replace(nodes, on_usd=2 * nodes.on_usd), "one job"),
    "floor of nodes twice": ("node_costs", lambda nodes: dataclasses.replace(nodes, floor_usd=2 * nodes.floor_usd), "asleep"),
    "a job's watts 5 % up": ("job_facts", lambda facts: dataclasses.replace(facts, dynamic_w=1.05 * facts.dynamic_w), "one job"),
    "runs 5 % longer": ("job_facts", lambda facts: dataclasses.replace(facts, run_s=1.05 * facts.run_s), "packing"),
    "a node for each job": ("job_facts", lambda facts: dataclasses.replace(facts, share=2 * facts.share), "packing"),
    "nothing may be deferred": ("job_facts", lambda facts: dataclasses.replace(facts, latest_s=facts.submit_s), "deferral"),
    "penalties twice": ("job_facts", lambda facts: dataclasses.replace(facts, gpus=2 * facts.gpus), "one waits"),
    "no negative floor": ("node_costs", lambda nodes: dataclasses.replace(nodes, floor_usd=0.0), "negative price"),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_wrong_term_is_seen(worlds, monkeypatch, name):
    """Each mistake lifts the bound above the optimum, so that the tests above would fail."""
    part, wrong, case = BROKEN[name]
    world, settings = known_cases(worlds)[case]
    best, _ = least_objective(world, settings, REWARD, random.Random(0))
    assert window_bound(world, 0, REWARD, reviews=False, only_free=True).bound_usd <= best + 1e-9
    right = getattr(bound_module, part)
    monkeypatch.setattr(bound_module, part, lambda *given: wrong(right(*given)))
    assert window_bound(world, 0, REWARD, reviews=False, only_free=True).bound_usd > best + 1e-6


# ---------------------------------------------------------------- larger worlds


@pytest.mark.parametrize("seed", range(2))
def test_no_judge_is_below(worlds, seed):
    world = worlds.random_world(seed, count=40, nodes=3, windows=2)
    every, free = bounds(world, REWARD, reviews=False), bounds(world, REWARD, reviews=False, only_free=True)
    loose = bounds(world, REWARD)
    assert (loose["bound_usd"] <= every["bound_usd"] + 1e-6).all()
    for judge in JUDGES.values():
        objective = run_policy(world, judge, REWARD).objective_usd
        assert (every["bound_usd"] <= objective).all(), judge.name
        if judge.settings.discipline == "free":
            assert (free["bound_usd"] <= objective).all(), judge.name


def sample_world():
    """Two days of the sample's jobs on its own cluster, in windows of 24 h."""
    folder, cluster = Path(__file__).parents[2] / "data" / "sample", load_cluster("sample")
    files = {"slurm": "sacct.txt.gz", "kubernetes": "k8s_jobs.json.gz"}
    tables = [READERS[reader].read(folder / name, ReadContext(source=name)).tables["jobs"] for reader, name in files.items()]
    jobs = pd.concat(tables, ignore_index=True)
    jobs = jobs[jobs["duration_s"].notna() & (jobs["gpus"] > 0)].drop_duplicates("job_id").assign(workload=None)
    grid = READERS["grid"].read(folder / "grid.csv", ReadContext(source="grid")).tables["grid"]
    return build_world(cluster, cut_windows(prepare_jobs(jobs, cluster), grid, 24 * 3600, 2, 5))


def test_no_judge_is_below_on_the_sample():
    world = sample_world()
    found = bounds(world, REWARD, reviews=False, time_limit_s=4)["bound_usd"].to_numpy()
    objective = np.array([run_policy(world, judge, REWARD).objective_usd for judge in JUDGES.values()])
    assert (world.jobs.count > 20).all()
    assert (found <= objective).all()
    assert (found > 0).all()


def test_crowded_windows_stay_below(worlds):
    """Many jobs at once on few nodes: most of them wait long beyond their free choice."""
    rows = [worlds.job(f"j{i}", submit_s=60 * i, duration_s=20_000 + 977 * i, gpus=float(1 + i % 4)) for i in range(24)]
    world = worlds.world_of(one_pool(worlds, nodes=1), rows, table(worlds, np.linspace(0.3, 0.02, 24)))
    found = bounds(world, REWARD, reviews=False, only_free=True)["bound_usd"][0]
    for judge in JUDGES.values():
        assert found <= run_policy(world, judge, REWARD).objective_usd[0], judge.name


def crowded_world(worlds, seed):
    """Five or six jobs of hours that can be put off, on one or two small nodes, in a day of steep prices: the later ones find no room."""
    rng = np.random.default_rng(seed)
    kinds = ["batch_inference", "interactive", "fine_tuning"]
    rows = [
        worlds.job(
            f"j{index}",
            submit_s=int(rng.integers(0, 20_000)),
            duration_s=int(rng.integers(2_000, 40_000)),
            gpus=float(rng.choice([0.5, 1, 1, 2])),
            workers=int(rng.choice([1, 1, 2])),
            workload_class=str(rng.choice(kinds)),
            requested_duration_s=int(rng.integers(2_000, 20_000)),
            deadline=worlds.START + worlds.pd.Timedelta(seconds=int(rng.integers(30_000, 200_000))),
        )
        for index in range(int(rng.integers(5, 7)))
    ]
    spec = one_pool(worlds, nodes=int(rng.integers(1, 3)), gpus=2)
    return worlds.world_of(spec, rows, table(worlds, rng.choice([0.02, 0.1, 0.5], 24)))


@pytest.mark.parametrize("seed", range(40))
def test_no_schedule_of_a_crowded_world_is_below(worlds, seed):
    world = crowded_world(worlds, seed)
    rng = random.Random(seed)
    for discipline in ("free", "strict", "easy"):
        settings = PolicySettings(sleep_after_s=0, hold_s=7200, discipline=discipline, queue_order="fcfs")
        best, _ = least_objective(world, settings, REWARD, rng, most=150)
        found = window_bound(world, 0, REWARD, reviews=False, only_free=discipline == "free").bound_usd
        assert found <= best + 1e-9, f"{discipline}: {found} above a schedule of {best}"


WRONG_ROOMS = {
    "nobody may be late": lambda rooms: dataclasses.replace(rooms, possible=np.zeros_like(rooms.possible)),
    "twice as much is held": lambda rooms: dataclasses.replace(rooms, held=2 * rooms.held, gpus=2 * rooms.gpus),
}


@pytest.mark.parametrize("name", list(WRONG_ROOMS))
def test_a_wrong_rule_of_lateness_is_seen(worlds, monkeypatch, name):
    """It cuts off every schedule of a window in which somebody has to be late."""
    right, wrong = bound_module._rooms, WRONG_ROOMS[name]
    monkeypatch.setattr(bound_module, "_rooms", lambda *given: wrong(right(*given)))
    with pytest.raises(AssertionError, match="infeasible"):
        window_bound(crowded_world(worlds, 23), 0, REWARD, reviews=False, only_free=True)


def test_a_solver_without_time_leaves_a_bound(worlds):
    world = worlds.random_world(3, count=40, nodes=3)
    whole = window_bound(world, 0, REWARD, reviews=False)
    short = without_solver(bound_module._Case(world, 0, REWARD, False, False).program(bound_module.LATE_S)[0])
    assert 0 < short < whole.bound_usd


def test_windows_without_work(worlds):
    world = worlds.world_of(worlds.cluster(), [])
    assert window_bound(world, 0, REWARD).bound_usd == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("bad", [{"method": "guess"}, {"time_limit_s": 0.0}])
def test_bad_arguments_are_named(worlds, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        bounds(worlds.world_of(worlds.cluster(), []), REWARD, **bad)
