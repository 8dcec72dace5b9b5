"""Benchmark part against the plain-Python reference of the tests: the same small worlds, the same answers, decisions per second of both."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.simulator_worlds import DAY_S, FEATURES, synthetic_world
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.reward import RewardSpec
from envs.world import World

BATCH = 64
# nodes, jobs, features; both simulators have all of docs/simulator.md
CASES: dict[str, tuple[int, int, frozenset[str]]] = {
    "16 nodes, 200 jobs": (16, 200, frozenset()),
    "16 nodes, 200 jobs, all features": (16, 200, frozenset(FEATURES)),
    "128 nodes, 2,000 jobs": (128, 2000, frozenset()),
    "128 nodes, 500 jobs, all features": (128, 500, frozenset(FEATURES)),
}


def load_reference() -> ModuleType:
    """The package ``tests/reference`` by path: another distribution installs a top-level package named tests."""
    name = "joulewise_reference"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "tests" / "reference" / "__init__.py"
        spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def reference_part() -> dict[str, Any]:
    """One window: the reference under the rule of ``k8s_default``, the kernel under its compiled judge, and the kernel stepped from Python.

    The rule is computed from either state alike; questions, starts, pools and ends must be the same, or the part fails.
    """
    return {case: _compare(*arguments) for case, arguments in CASES.items()}


def _compare(nodes: int, jobs: int, features: frozenset[str]) -> dict[str, Any]:
    world = synthetic_world(nodes, jobs, 1, length_s=DAY_S, load=0.7, by_speed=True, features=features)
    judge = JUDGES["k8s_default"]
    simulator = Simulator(world, 1, judge.settings, RewardSpec())
    kernel_s = np.inf
    for _ in range(4):
        simulator.reset([0])
        begin = time.perf_counter()
        simulator.play(judge.chooser)
        kernel_s = min(kernel_s, time.perf_counter() - begin)
    totals = simulator.totals()
    reference = _reference_of(world)
    begin = time.perf_counter()
    result = reference.run()
    reference_s = time.perf_counter() - begin
    decisions = len(result.questions)
    count = int(world.jobs.count[0])
    same = decisions == int(totals.decisions[0]) and all(
        getattr(totals, f"job_{name}")[0, :count].tolist() == [getattr(outcome, name) for outcome in result.outcomes]
        for name in ("start_s", "end_s", "pool", "level")
    )
    if not same:
        raise RuntimeError(f"kernel and reference part ways: {int(totals.decisions[0])} and {decisions} decisions")
    stepped = _stepped_speed(world)
    return {
        "decisions": decisions,
        "reference_decisions_per_s": decisions / reference_s,
        "kernel_decisions_per_s": decisions / kernel_s,
        "kernel_stepped_decisions_per_s": stepped,
        "ratio": reference_s / kernel_s,
        "ratio_stepped": stepped * reference_s / decisions,
        "kwh": float(totals.energy_kwh.sum()),
        "kwh_reference": float(sum(result.site_energy_kwh)),
    }


def _stepped_speed(world: World) -> float:
    """The kernel asked question by question from Python, with observations, in a batch on one thread."""
    judge = JUDGES["k8s_default"]
    simulator = Simulator(world, BATCH, judge.settings, RewardSpec())
    best = 0.0
    for _ in range(2):
        simulator.reset(np.zeros(BATCH, dtype=np.int64))
        simulator.observe()
        begin = time.perf_counter()
        while not simulator.done.all():
            simulator.step(judge.act(simulator.observations, simulator.layout), observe=True)
        best = max(best, float(simulator.state.decisions.sum()) / (time.perf_counter() - begin))
    return best


def _reference_of(world: World) -> Any:
    """The reference on window 0 of a world, answering as ``k8s_default`` does: the allowed run in the pool with most free GPUs."""
    ref = load_reference()
    static, jobs, grid = world.static, world.jobs, world.grid
    settings = JUDGES["k8s_default"].settings

    def job(j: int) -> Any:
        names = {"peak_load"}
        values = {name: getattr(jobs, name)[0, j] for name in ref.Job.__dataclass_fields__ if hasattr(jobs, name) and name not in names}
        values = {name: value.item() for name, value in values.items()}
        allowed = tuple(bool(x) for x in jobs.pool_mask[0, j])
        peak = 0.5 if values["until_s"] >= 0 else 0.0
        return ref.Job(**values, pools_allowed=allowed, peak_load=peak)

    by_pool = (grid.warm_reserve[0].tolist(), grid.load[0].tolist(), grid.keep_awake[0].tolist())
    carbon_g = (grid.carbon[0] * 1000.0).tolist()
    table = ref.Grid(int(grid.step_s[0]), int(grid.history_steps[0]), grid.price[0].tolist(), carbon_g, grid.pue[0].tolist(), *by_pool)
    outages = [(int(node), int(at), int(end)) for at, begins, node, end in world.outages[0] if begins]
    levels = len(world.cluster.level_fractions)

    def choose(job_index: int, allowed: list[int]) -> int:
        floor, pools = simulator.floor, {}
        for action in allowed:
            if action:
                pools.setdefault((action - 1) // levels, action)
        best, most = -1, np.float32(-1.0)
        for pool, action in pools.items():
            free = sum(sum(node.gpu_free) for node in floor.pool_nodes[pool] if node.state != ref.model.DOWN)
            value = np.float32(min(math.log1p(free / 1000.0), 10.0))
            if value > most:
                best, most = action, value
        return best

    chosen = ref.Settings(
        settings.node_rule, settings.sleep_after_s, settings.discipline, settings.queue_order, settings.hold_s, settings.review_s
    )
    cases = [job(j) for j in range(int(jobs.count[0]))]
    simulator = ref.Simulator(
        world.cluster, static.speed.tolist(), static.gpu_power_w.tolist(), cases, table, chosen, RewardSpec(), choose, outages
    )
    return simulator
