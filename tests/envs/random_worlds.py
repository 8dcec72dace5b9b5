"""Random small worlds with every feature of docs/simulator.md, in the dialects of the reference and of the compiled simulator.

Every world has its own random set of features; one in four has them all. Times are often multiples of 100 or 300 s, so that many things
happen at one instant.
"""

import dataclasses
import importlib.util
import random
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd

from envs import world as world_module
from envs.cluster import ClassObjective, ClusterSpec, PoolSpec, SiteSpec
from envs.power import networks as networks_module
from envs.reserve import with_reserve
from envs.reward import RewardSpec
from envs.windows import WindowTables
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES


def load_reference():
    """The package ``tests/reference`` by path: another distribution installs a top-level package named tests."""
    if "joulewise_reference" not in sys.modules:
        path = Path(__file__).parents[1] / "reference" / "__init__.py"
        spec = importlib.util.spec_from_file_location("joulewise_reference", path, submodule_search_locations=[str(path.parent)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["joulewise_reference"] = module
        spec.loader.exec_module(module)
    return sys.modules["joulewise_reference"]


ref = load_reference()
START = pd.Timestamp("2026-03-02T07:00:00Z")
REWARD = RewardSpec(late_cap_hours=1.0)
KINDS = len(WORKLOAD_CLASSES)
FEATURES = (
    "cpus", "gpuless", "slices", "context", "outages", "checkpoints", "reviews", "data", "rack_budget", "pool_budget", "site_budget",
    "leases", "one_model", "networks", "keep_awake",
)  # fmt: skip
NETWORKS = ("n0", "n1")
STAY_SHARE = 0.7
MOST_QUESTIONS = 6000


@dataclasses.dataclass
class Case:
    """One window of a random cluster; ``answers`` seeds the answers to its questions."""

    cluster: ClusterSpec
    speed: list
    power_w: list
    jobs: list
    grid: object
    temperature: list
    settings: object
    answers: int
    outages: list
    features: frozenset
    network_speed: dict = dataclasses.field(default_factory=dict)  # (network, GPU model) -> speed at full power, where it is known


# ---------------------------------------------------------------- drawing


def draw_settings(rng: random.Random):
    return ref.Settings(
        node_rule=rng.choice(["best_fit", "least_allocated", "best_fit", "least_allocated", "fgd", "pwr_fgd"]),
        sleep_after_s=rng.choice([-1, 0, 100, 900]),
        discipline=rng.choice(["free", "strict", "easy", "easy"]),
        queue_order=rng.choice(["priority", "fcfs", "sjf", "f1", "wfp3", "unicep"]),
        hold_s=rng.choice([60, 900]),
        review_s=rng.choice([0, 0, 0, 300, 700, 1800]),
        pwr_weight=rng.choice([0.0, 0.1, 0.5, 1.0]),
        ces_buffer=rng.choice([-1, -1, -1, 0, 1]),
        ces_trend=rng.choice([0.0, 0.25, 0.5]),
        ces_keep_s=rng.choice([0, 1500, 7200]),
    )


def draw_case(rng: random.Random, n_sites: int, n_pools: int, n_jobs: int, settings) -> Case:
    return draw_cases(rng, n_sites, n_pools, n_jobs, settings, 1)[0]


def draw_cases(
    rng: random.Random, n_sites: int, n_pools: int, n_jobs: int, settings, windows: int, wanted: frozenset = frozenset()
) -> list[Case]:
    """Windows of one cluster, with ``n_jobs`` jobs in the first and between half of that and all in the others.

    Jobs may be preempted where the settings have reviews, and in one world of four in any case; ``wanted`` features are added.
    """
    every = rng.random() < 0.25
    features = frozenset(name for name in FEATURES if every or (name != "reviews" and rng.random() < 0.4)) | wanted
    if settings.review_s > 0:
        features |= {"reviews"}
    elif "reviews" in features:
        settings = dataclasses.replace(settings, review_s=700)
    levels = rng.choice([(1.0,), (1.0, 0.6), (1.0, 0.75, 0.5)])
    cluster = _draw_cluster(rng, n_sites, n_pools, levels, features)
    curves: dict[str, tuple[list, list]] = {}
    for pool in cluster.pools:
        if pool.gpu_model not in curves:
            top = [(rng.choice([1.0, rng.uniform(0.3, 3.0)]), rng.uniform(80, 400)) for _ in range(KINDS)]
            curves[pool.gpu_model] = (
                [[top[k][0] * fraction**0.4 for k in range(KINDS)] for fraction in levels],
                [[top[k][1] * fraction for k in range(KINDS)] for fraction in levels],
            )
    known = {(network, model): rng.choice([None, rng.uniform(0.2, 3.0)]) for network in NETWORKS for model in curves}
    curves = {model: _with_networks(*sides, [known[network, model] for network in NETWORKS]) for model, sides in curves.items()}
    speed, power = ([curves[pool.gpu_model][side] for pool in cluster.pools] for side in (0, 1))
    step_s, columns, crowded = rng.choice([600, 900, 3600]), rng.randint(1, 12), rng.random() < 0.35
    cases = []
    for window in range(windows):
        count = n_jobs if window == 0 else rng.randint((n_jobs + 1) // 2, n_jobs)
        grid, temperature = _draw_grid(rng, cluster, step_s, columns, features)
        span, unit = rng.choice([0, 200, 3000] if crowded else [0, 200, 3000, 12000]), rng.choice([1, 1, 100, 300])
        submits = sorted(_whole(rng.randint(0, span), unit) for _ in range(count))
        jobs = [_draw_job(rng, submit, cluster, unit, len(grid.load), features, crowded) for submit in submits]
        if "networks" in features:
            jobs = [_draw_network(rng, job) for job in jobs]
        outages = _draw_outages(rng, cluster, submits, unit) if "outages" in features else []
        cases.append(Case(cluster, speed, power, jobs, grid, temperature, settings, rng.randrange(2**32), outages, features, known))
    return cases


def _with_networks(speed: list, power: list, known: list) -> tuple[list, list]:
    """Curves of every (kind, network) after those of the kinds: as measured at full power, as much slower at a level as the kind is."""
    slower = [[value / top for value, top in zip(row, speed[0], strict=True)] for row in speed]
    return (
        [row + [row[k] if v is None else v * slower[level][k] for k in range(KINDS) for v in known] for level, row in enumerate(speed)],
        [row + [row[k] for k in range(KINDS) for _ in known] for row in power],
    )


def _draw_network(rng: random.Random, job):
    place = rng.randrange(-1, len(NETWORKS))
    return job if place < 0 else dataclasses.replace(job, curve=KINDS + job.kind * len(NETWORKS) + place)


def _whole(seconds: int, unit: int) -> int:
    return seconds // unit * unit


def _draw_cluster(rng: random.Random, n_sites: int, n_pools: int, levels: tuple[float, ...], features: frozenset) -> ClusterSpec:
    one_model = "one_model" in features and n_pools > 1
    pools = []
    for i in range(n_pools):
        nodes, gpus, idle_w, gpu_idle_w = rng.randint(1, 4), rng.randint(1, 4), rng.uniform(50, 400), rng.uniform(5, 60)
        more: dict = {}
        if "cpus" in features:
            more |= {"cpus_per_node": rng.choice([0.0, 4.0, 16.0, 31.5]), "memory_gib_per_node": rng.choice([0.0, 16.0, 64.25])}
            more["cpu_w_per_cpu"] = rng.choice([0.0, rng.uniform(1, 10)])
        if "slices" in features:
            more["mig_slices"] = rng.choice([0, 2, 3, 4, 7, 7])
        if "context" in features:
            more["gpu_context_w"] = rng.choice([0.0, 25.0, rng.uniform(0, 90), 500.0])
        full_w = idle_w + gpus * rng.uniform(100, 350)
        if "rack_budget" in features:
            more["nodes_per_rack"] = rng.randint(0, nodes)
            more["rack_budget_w"] = more["nodes_per_rack"] * full_w * rng.uniform(0.5, 1.2)
        if "pool_budget" in features:
            more["budget_w"] = rng.choice([0.0, nodes * full_w * rng.uniform(0.4, 1.1)])
        name = "G0" if one_model and i < 2 else f"G{i}"
        site = f"s{i if i < n_sites else rng.randrange(n_sites)}"
        wakes = {
            "node_sleep_w": rng.uniform(0, 30),
            "wake_latency_s": rng.choice([1, 30, 60, 180, 600]),
            "wake_power_w": rng.uniform(100, 900),
        }
        watts = {"node_idle_w": idle_w, "gpu_idle_w": gpu_idle_w, "cpu_w_per_gpu": rng.uniform(0, 40)}
        pools.append(PoolSpec(f"p{i}", site, name, nodes, gpus, **watts, **wakes, **more))
    sites = []
    for i in range(n_sites):
        here = sum(pool.nodes * (pool.node_idle_w + 200 * pool.gpus_per_node) for pool in pools if pool.site == f"s{i}")
        budget_w = rng.choice([0.0, here * rng.uniform(0.5, 1.1)]) if "site_budget" in features else 0.0
        sites.append(SiteSpec(f"s{i}", rng.uniform(1.0, 1.4), rng.uniform(0, 0.02), rng.uniform(5, 20), budget_w))
    objectives = {name: ClassObjective(0, 1.0, rng.random() < 0.6, rng.random() < 0.5) for name in WORKLOAD_CLASSES}
    gbps, kwh = rng.choice([1.0, 10.0, 40.0]), rng.choice([0.0, 0.004, 0.06])
    return ClusterSpec("random", tuple(sites), tuple(pools), levels, objectives, transfer_gbps=gbps, transfer_kwh_per_gib=kwh)


def _draw_grid(rng: random.Random, cluster: ClusterSpec, step_s: int, columns: int, features: frozenset):
    history = 86400 // step_s

    def series(count: int, low: float, high: float) -> list[list[float]]:
        return [[rng.uniform(low, high) for _ in range(history + columns)] for _ in range(count)]

    sites = len(cluster.sites)
    temperature = series(sites, -5, 40)
    pue = [
        [site.pue_base + site.pue_per_c * max(0.0, t - site.pue_free_cooling_c) for t in row]
        for site, row in zip(cluster.sites, temperature, strict=True)
    ]
    reserve = [[rng.choice([0, 0, 0, 1, 2]) for _ in range(history + columns)] for _ in cluster.pools]
    load = series(2, 0.0, 2.5) if "leases" in features else []
    awake = []
    if "keep_awake" in features:
        awake = [[0] * history + [rng.randint(0, pool.nodes + 1) for _ in range(columns)] for pool in cluster.pools]
    grid = ref.Grid(step_s, history, series(sites, -0.05, 0.4), series(sites, 20, 700), pue, reserve, load, awake)
    return grid, temperature


def _draw_job(rng: random.Random, submit: int, cluster: ClusterSpec, unit: int, services: int, features: frozenset, crowded: bool):
    if services and rng.random() < 0.3:
        return _draw_lease(rng, submit, cluster, unit, services)
    longest = 20000 if "reviews" in features and rng.random() < 0.5 else 6000
    duration = max(1, _whole(rng.choice([rng.randint(500, 3000) if crowded else 1, rng.randint(1, 300), rng.randint(1, longest)]), unit))
    estimate = rng.choice([duration, max(1, _whole(rng.randint(1, 6000), unit))])
    gpu_milli = rng.choice([1000, 1000, 1000, 2000, 2000, rng.choice([3000, 4000, 5000]), 500, 250, 333, rng.randint(1, 999)])
    workers = rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 7])
    more: dict = {}
    if "cpus" in features and rng.random() < 0.8:
        more = {
            "cpu_milli": rng.choice([0, 500, 1000, 3000, rng.randint(1, 5000)]),
            "memory_mib": rng.choice([0, 512, 8192, rng.randint(1, 9000)]),
        }
    if "gpuless" in features and rng.random() < 0.2:
        gpu_milli = 0
        more["cpu_milli"] = more.get("cpu_milli") or rng.choice([500, 2000, 7000])
    if "reviews" in features:
        more["preemptible"] = rng.random() < 0.7
    if "checkpoints" in features:
        more |= {"checkpoint_s": rng.choice([0, 60, 100, 700]), "restart_s": rng.choice([0, 7, 100, 400, 1500])}
    if "data" in features and rng.random() < 0.7:
        more["data_gib"] = rng.choice([0.0, rng.uniform(0.01, 5), rng.uniform(1, 1500)])
        more["data_site"] = rng.randrange(-1, len(cluster.sites))
    watts = gpu_milli * workers / 1000 * rng.uniform(40, 420) if gpu_milli and rng.random() < 0.3 else float("inf")
    latest = submit + _whole(rng.choice([0, rng.randint(0, 5000)]), unit)
    return ref.Job(
        submit, duration, estimate, gpu_milli, workers, rng.randrange(KINDS), rng.choice([0, 0, 1, -1]), latest,
        latest + rng.randint(0, 9000), watts, rng.choice([1.0, rng.random()]), _draw_allowed(rng, cluster), **more,
    )  # fmt: skip


def _draw_lease(rng: random.Random, submit: int, cluster: ClusterSpec, unit: int, services: int):
    length = max(1, _whole(rng.choice([rng.randint(1, 300), rng.randint(300, 7000)]), unit))
    latest = submit + _whole(rng.choice([0, rng.randint(0, 1500)]), unit)
    return ref.Job(
        submit, length, length, rng.choice([1000, 1000, 2000, 500, 250]), rng.choice([1, 1, 2]), CLASS_INDEX["realtime_inference"],
        rng.choice([0, 1]), latest, latest + rng.randint(0, 3000), pools_allowed=_draw_allowed(rng, cluster), until_s=submit + length,
        service=rng.randrange(services), peak_load=rng.choice([0.0, rng.uniform(0.2, 3.0)]),
    )  # fmt: skip


def _draw_allowed(rng: random.Random, cluster: ClusterSpec) -> tuple[bool, ...]:
    """Any pool, those of one model, or, rarely, those of a model that is nowhere."""
    if rng.random() < 0.75:
        return tuple(True for _ in cluster.pools)
    model = rng.choice([pool.gpu_model for pool in cluster.pools] + ["elsewhere"])
    return tuple(pool.gpu_model == model for pool in cluster.pools)


def _draw_outages(rng: random.Random, cluster: ClusterSpec, submits: list[int], unit: int) -> list[tuple[int, int, int]]:
    """Some overlap or touch, some begin before the window or soon after an arrival, some take several nodes at one instant."""
    nodes = sum(pool.nodes for pool in cluster.pools)
    outages = []
    for _ in range(rng.randint(1, 6)):
        begin = _whole(rng.choice([rng.randint(-600, submits[-1] + 6000), rng.choice(submits) + rng.randint(1, 600)]), unit)
        end = begin + max(1, _whole(rng.choice([rng.randint(1, 400), rng.randint(1, 6000)]), unit))
        for node in rng.sample(range(nodes), rng.choice([1, 1, min(2, nodes), nodes])):
            outages.append((node, begin, end))
            if rng.random() < 0.2:
                outages.append((node, end, end + max(1, _whole(rng.randint(1, 900), unit))))
    return outages


# ---------------------------------------------------------------- the reference


def run_reference(case: Case):
    """The reference's result, its answers, and for each question the action that changes nothing (-1 where it is no review).

    Answers are random, but most reviews change nothing, so that windows end.
    """
    answers: list[int] = []
    stays: list[int] = []

    def choose(job: int, allowed: list[int]) -> int:
        assert len(answers) < MOST_QUESTIONS, f"{MOST_QUESTIONS} questions and no end: job {job} is asked about for ever"
        generator = random.Random(case.answers * 1_000_003 + len(answers))
        run = simulator.runs.get(job)
        stays.append(1 + run.pool * len(case.cluster.level_fractions) + run.level if run else -1)
        action = generator.choice(allowed)
        answers.append(stays[-1] if run and generator.random() < STAY_SHARE else action)
        return answers[-1]

    simulator = ref.Simulator(case.cluster, case.speed, case.power_w, case.jobs, case.grid, case.settings, REWARD, choose, case.outages)
    return simulator.run(), answers, stays


# ---------------------------------------------------------------- the compiled simulator


def kernel_world(cases: list[Case]):
    """Windows of one cluster as one world, with the cases' own curves in place of the measured ones."""
    cluster = cases[0].cluster
    assert all(case.cluster is cluster for case in cases)
    tables = []
    for index, case in enumerate(cases):
        start = START + pd.Timedelta(days=index)
        more = {"outages": _outage_table(case, start), "services": _service_table(case, start)}
        tables.append(WindowTables(start, _job_table(case, start), _grid_table(case, start), **more))
    tops = (cases[0].speed, cases[0].power_w)
    curves = {pool.gpu_model: tuple(np.array(side[p])[:, :KINDS] for side in tops) for p, pool in enumerate(cluster.pools)}
    reserve = np.array([case.grid.warm_reserve for case in cases])
    with (
        mock.patch.object(world_module, "levels_for", lambda model, fractions, own: curves[model]),
        mock.patch.object(networks_module, "network_speed", lambda *pair: cases[0].network_speed[pair]),
    ):
        world = world_module.build_world(cluster, tables, warm_reserve=reserve)
    assert world.grid.price.shape[2] == len(cases[0].grid.price[0])
    return with_reserve(world, [_reserve_table(case, start) for case, start in zip(cases, world.window_start, strict=True)])


def _at(start: pd.Timestamp, seconds: list[int]) -> pd.DatetimeIndex:
    return start + pd.to_timedelta(np.array(seconds, dtype=np.int64), unit="s")


def _job_table(case: Case, start: pd.Timestamp) -> pd.DataFrame:
    jobs, sites = case.jobs, [site.name for site in case.cluster.sites]

    def whole(name: str) -> np.ndarray:
        return np.array([getattr(job, name) for job in jobs], dtype=np.int64)

    def texts(values: list[str | None]) -> pd.Series:
        return pd.Series(values, dtype=object)

    until = [start + pd.Timedelta(seconds=job.until_s) if job.lease else pd.NaT for job in jobs]
    return pd.DataFrame(
        {
            "job_id": [f"j{i:03d}" for i in range(len(jobs))],
            "submit_time": _at(start, [job.submit_s for job in jobs]),
            "gpus": [job.gpu_milli / 1000 for job in jobs],
            "workload_class": [WORKLOAD_CLASSES[job.kind] for job in jobs],
            "latest_start": _at(start, [job.latest_start_s for job in jobs]),
            "deadline": _at(start, [job.deadline_s for job in jobs]),
            "max_watts": [job.max_watts for job in jobs],
            "gpu_utilization": [job.utilization for job in jobs],
            "gpu_model": texts([_model_of(case.cluster, job) for job in jobs]),
            "preemptible": np.array([job.preemptible for job in jobs], dtype=bool),
            "data_gib": [job.data_gib for job in jobs],
            "data_site": texts([sites[job.data_site] if job.data_site >= 0 else None for job in jobs]),
            "until": pd.Series(until, dtype=pd.DatetimeTZDtype("ns", "UTC")),
            "service": texts([f"r{job.service}" if job.lease else None for job in jobs]),
            "peak_load": [job.peak_load for job in jobs],
            "workload": texts([NETWORKS[(job.curve - KINDS) % len(NETWORKS)] if job.curve >= 0 else None for job in jobs]),
        }
        | {name: whole(name) for name in ("duration_s", "estimate_s", "gpu_milli", "workers", "kind", "priority")}
        | {name: whole(name) for name in ("cpu_milli", "memory_mib", "checkpoint_s", "restart_s")}
    )


def _model_of(cluster: ClusterSpec, job) -> str | None:
    """All pools = no constraint; else the model of the pools allowed, or one that is nowhere."""
    if all(job.pools_allowed):
        return None
    return cluster.pools[job.pools_allowed.index(True)].gpu_model if any(job.pools_allowed) else "elsewhere"


def _grid_times(case: Case, start: pd.Timestamp) -> pd.DatetimeIndex:
    grid = case.grid
    return _at(start, [(column - grid.history_steps) * grid.step_s for column in range(grid.last_column + 1)])


def _grid_table(case: Case, start: pd.Timestamp) -> pd.DataFrame:
    times, grid = _grid_times(case, start), case.grid
    columns = {"price_usd_per_kwh": grid.price, "carbon_g_per_kwh": grid.carbon, "temperature_c": case.temperature}
    sites = enumerate(case.cluster.sites)
    rows = [{"time": times, "site": site.name, "renewable_fraction": 0.5} | {n: v[s] for n, v in columns.items()} for s, site in sites]
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)


def _service_table(case: Case, start: pd.Timestamp) -> pd.DataFrame | None:
    times, load = _grid_times(case, start), case.grid.load
    rows = [pd.DataFrame({"time": times, "service": f"r{k}", "load": load[k]}) for k in range(len(load))]
    return pd.concat(rows, ignore_index=True) if rows else None


def _reserve_table(case: Case, start: pd.Timestamp) -> pd.DataFrame | None:
    times, pools = _grid_times(case, start), case.cluster.pools
    rows = [
        pd.DataFrame({"time": times, "pool": pool.name, "nodes": nodes}) for pool, nodes in zip(pools, case.grid.keep_awake, strict=False)
    ]
    return pd.concat(rows, ignore_index=True) if rows else None


def _outage_table(case: Case, start: pd.Timestamp) -> pd.DataFrame | None:
    if not case.outages:
        return None
    nodes, begins, ends = zip(*case.outages, strict=True)
    names = case.cluster.node_names
    return pd.DataFrame({"node": [names[node] for node in nodes], "begin": _at(start, begins), "end": _at(start, ends)})
