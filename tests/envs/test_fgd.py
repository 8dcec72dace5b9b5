"""Fragmentation and power scores against plain Python, and the published figures of the open GPU cluster."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from benchmarks import open_cluster
from benchmarks.open_cluster_driver import BEST_FIT, FGD, PWR_FGD, RANDOM, Nodes, Pods, place_all, scratch
from envs import kernel_fgd as kernel
from envs.fragmentation import fragment_table, fragmentation_milli, typical_kinds
from envs.kernel_compile import OPTIONS
from telemetry.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TRACES = Path(os.environ.get("JOULEWISE_TRACES", ROOT.parent / "shared" / "traces"))
WATTS_MW = (30_000, 150_000, 15_000, 120_000, 16)
LARGEST_GPU_MILLI, LARGEST_CPU_MILLI = 8000, 128_000


class Kind(NamedTuple):
    """A typical worker."""

    cpu_milli: int
    gpu_milli: int
    count: int
    models: int


class Node(NamedTuple):
    gpu_free: tuple[int, ...]
    cpu_free: int
    memory_free: int
    cpu_milli: int
    model: int


class Worker(NamedTuple):
    gpu_milli: int
    cpu_milli: int
    memory_mib: int


# ---------------------------------------------------------------- the definition in plain Python


def unusable(free: tuple[int, ...], cpu_free: int, model: int, kind: Kind) -> int:
    """Thousandths of the node's free GPUs that a worker of this kind cannot use."""
    each, wanted = min(kind.gpu_milli, 1000), max(kind.gpu_milli // 1000, 1)
    fitting = [f for f in free if f >= each]
    allowed = kind.models == -1 or model in {m for m in range(63) if kind.models & (1 << m)}
    if kind.gpu_milli == 0 or not allowed or kind.cpu_milli > cpu_free or len(fitting) < wanted:
        return sum(free)
    return sum(free) - sum(fitting)


def expected_fragment(free: tuple[int, ...], cpu_free: int, model: int, kinds: list[Kind]) -> Fraction:
    total = sum(kind.count for kind in kinds)
    return sum((Fraction(kind.count, total) * unusable(free, cpu_free, model, kind) for kind in kinds), Fraction(0))


def fits(node: Node, worker: Worker) -> bool:
    each, wanted = min(worker.gpu_milli, 1000), max(worker.gpu_milli // 1000, 1)
    gpus = worker.gpu_milli == 0 or sum(f >= each for f in node.gpu_free) >= wanted
    return gpus and worker.cpu_milli <= node.cpu_free and worker.memory_mib <= node.memory_free


def ways(node: Node, worker: Worker) -> list[tuple[int, tuple[int, ...]]]:
    """(GPU that a share takes or -1, what is free afterwards) for every way to put the worker on the node."""
    free = list(node.gpu_free)
    if 0 < worker.gpu_milli < 1000:
        takes = [g for g, f in enumerate(free) if f >= worker.gpu_milli]
        return [(g, (*free[:g], free[g] - worker.gpu_milli, *free[g + 1 :])) for g in takes]
    for g in [g for g, f in enumerate(free) if f == 1000][: worker.gpu_milli // 1000]:
        free[g] = 0
    return [(-1, tuple(free))]


def sigmoid_score(fall_milli: Fraction) -> int:
    value = 100.0 / (1.0 + math.exp(-float(fall_milli) / 1000.0))
    # Only a fall of exactly 0 gives a whole number; nothing else may depend on the last bit.
    assert fall_milli == 0 or abs(value - round(value)) > 1e-9
    return int(value)


def fgd(node: Node, worker: Worker, kinds: list[Kind]) -> tuple[int, int]:
    before = expected_fragment(node.gpu_free, node.cpu_free, node.model, kinds)
    best = (-1, -1)
    for gpu, free in ways(node, worker):
        score = sigmoid_score(before - expected_fragment(free, node.cpu_free - worker.cpu_milli, node.model, kinds))
        if score > best[0]:
            best = (score, gpu)
    return best


def watts_mw(free: tuple[int, ...], cpu_free: int, cpu_milli: int) -> int:
    idle, full, socket_idle, socket_full, cores = WATTS_MW
    busy = math.ceil(cpu_milli / 1000 / 2) - math.floor(cpu_free / 1000 / 2)
    sockets, active = math.ceil(math.ceil(cpu_milli / 1000 / 2) / cores), math.ceil(busy / cores)
    return sum(idle if f == 1000 else full for f in free) + active * socket_full + (sockets - active) * socket_idle


def least_added_mw(node: Node, worker: Worker) -> int:
    before = watts_mw(node.gpu_free, node.cpu_free, node.cpu_milli)
    return min(watts_mw(free, node.cpu_free - worker.cpu_milli, node.cpu_milli) for _, free in ways(node, worker)) - before


def best_fit(node: Node, worker: Worker) -> int:
    left_gpu, left_cpu = sum(node.gpu_free) - worker.gpu_milli, node.cpu_free - worker.cpu_milli
    return math.floor(100 * (1 - Fraction(left_gpu, 2 * LARGEST_GPU_MILLI) - Fraction(left_cpu, 2 * LARGEST_CPU_MILLI)))


# ---------------------------------------------------------------- instances

GPU_ASKS = st.one_of(st.just(0), st.integers(1, 999), st.sampled_from((200, 500, 1000, 2000, 4000, 8000)))
CPU_ASKS = st.sampled_from((0, 1000, 4000, 9810, 16_000, 33_000))
MODELS = st.one_of(st.just(-1), st.integers(0, 7))
KINDS = st.lists(st.builds(Kind, CPU_ASKS, GPU_ASKS, st.integers(1, 2000), MODELS), min_size=1, max_size=12)
WORKERS = st.builds(Worker, GPU_ASKS, CPU_ASKS, st.sampled_from((0, 1024, 40_000)))


@st.composite
def nodes(draw) -> Node:
    free = draw(st.lists(st.one_of(st.sampled_from((0, 500, 1000)), st.integers(0, 1000)), min_size=1, max_size=8))
    cpu_milli = draw(st.sampled_from((8000, 16_000, 64_000, 96_000, 104_000)))
    return Node(tuple(free), draw(st.integers(0, cpu_milli)), draw(st.integers(0, 65_536)), cpu_milli, draw(st.integers(0, 2)))


@njit(**OPTIONS)
def probe(table, gpu_free, cpu_free, memory_free, cpu_capacity, model, gpu_milli, cpu_milli, memory_mib, watts, largest, out):
    """All scores of one node for one worker."""
    out[0] = kernel.holds(gpu_free, cpu_free, memory_free, gpu_milli, cpu_milli, memory_mib)
    before = kernel.fragmentation(table, gpu_free, cpu_free, model, -1, 0, 0)
    out[1] = before
    out[2] = kernel.node_mw(watts, gpu_free, cpu_free, cpu_capacity)
    if out[0]:
        out[3], out[4] = kernel.fgd_score(table, gpu_free, cpu_free, model, before, gpu_milli, cpu_milli)
        out[5] = kernel.added_mw(watts, gpu_free, cpu_free, cpu_capacity, gpu_milli, cpu_milli)
        out[6] = kernel.best_fit_score(gpu_free, cpu_free, gpu_milli, cpu_milli, largest[0], largest[1])


def table_of(kinds: list[Kind]):
    columns = np.array(kinds, dtype=np.int64).T
    return fragment_table(columns[0], columns[1], columns[2], columns[3])


@settings(max_examples=400, deadline=None)
@given(node=nodes(), worker=WORKERS, kinds=KINDS)
def test_scores_of_a_node_are_those_of_the_definition(node, worker, kinds):
    table = table_of(kinds)
    out = np.full(7, -9, dtype=np.int64)
    gpu_free = np.array(node.gpu_free, dtype=np.int16)
    largest = np.array([LARGEST_GPU_MILLI, LARGEST_CPU_MILLI])
    state = (gpu_free, node.cpu_free, node.memory_free, node.cpu_milli, node.model)
    probe(table, *state, worker.gpu_milli, worker.cpu_milli, worker.memory_mib, np.array(WATTS_MW), largest, out)
    assert tuple(gpu_free) == node.gpu_free
    expected = expected_fragment(node.gpu_free, node.cpu_free, node.model, kinds)
    assert Fraction(int(out[1]), sum(kind.count for kind in kinds)) == expected
    assert fragmentation_milli(table, out[1]) == pytest.approx(float(expected))
    assert out[2] == watts_mw(node.gpu_free, node.cpu_free, node.cpu_milli)
    assert bool(out[0]) == fits(node, worker)
    if out[0]:
        assert (out[3], out[4]) == fgd(node, worker, kinds)
        assert out[5] == least_added_mw(node, worker)
        assert out[6] == best_fit(node, worker)


def test_fragmentation_of_a_node_worked_by_hand():
    # Free: a whole GPU, half of one, a fifth of one. The share of 300 cannot use the fifth; the worker with two GPUs nothing; the one with
    # many CPUs nothing; the one without GPUs nothing.
    kinds = [Kind(1000, 300, 5, -1), Kind(1000, 2000, 2, -1), Kind(50_000, 100, 2, -1), Kind(1000, 0, 1, -1)]
    node = Node((1000, 500, 200), 8000, 0, 64_000, 0)
    assert expected_fragment(node.gpu_free, node.cpu_free, 0, kinds) == Fraction(5 * 200 + 5 * 1700, 10)
    out = np.full(7, -9, dtype=np.int64)
    arrays = (np.array(WATTS_MW), np.array([LARGEST_GPU_MILLI, LARGEST_CPU_MILLI]), out)
    probe(table_of(kinds), np.array(node.gpu_free, dtype=np.int16), 8000, 0, 64_000, 0, 500, 1000, 0, *arrays)
    assert out[1] == 5 * 200 + 5 * 1700
    # The half GPU taken whole leaves 5 x 200 + 5 x 1200 (a fall of 250); half of the whole GPU leaves the same: the lower index is taken.
    assert (out[3], out[4]) == (int(100 / (1 + math.exp(-0.25))), 0)


# ---------------------------------------------------------------- typical workers


def test_typical_kinds_are_the_fewest_most_frequent_that_make_up_the_share():
    rows = np.repeat(np.array([[1000, 500, -1], [2000, 1000, -1], [4000, 0, -1], [8000, 0, -1]]), (60, 30, 5, 5), axis=0)
    kept, count = typical_kinds(rows)
    assert kept.tolist() == [[1000, 500, -1], [2000, 1000, -1], [8000, 0, -1]]
    assert count.tolist() == [60, 30, 5]
    assert len(typical_kinds(rows, share=1.0)[0]) == 4
    assert len(typical_kinds(rows, share=0.6)[0]) == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: typical_kinds(np.zeros((0, 3), dtype=np.int64)), "no workers"),
        (lambda: typical_kinds(np.ones((3, 3), dtype=np.int64), share=0.0), "0 < share <= 1"),
        (lambda: fragment_table(np.array([1000]), np.array([1500]), np.array([1])), "multiple of 1000"),
        (lambda: fragment_table(np.array([1000]), np.array([500]), np.array([0])), "counts from 1"),
        (lambda: fragment_table(np.array([]), np.array([]), np.array([])), "no workers"),
        (lambda: open_cluster.load(Path("no-such-folder")), "no such file"),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(InputError, match=match):
        call()


# ---------------------------------------------------------------- placement with a cache of scores


class Case(NamedTuple):
    gpus: list[int]
    nodes: list[Node]
    kinds: list[Kind]
    asks: list[Worker]
    stream: list[int]
    draws: np.ndarray


def place_plainly(case: Case, rule: int, pwr_weight: int) -> list[int]:
    """Every score computed anew for every worker."""
    state, placed = list(case.nodes), []
    for at, worker in enumerate(case.asks[kind] for kind in case.stream):
        open_nodes = [n for n, node in enumerate(state) if fits(node, worker)]
        if not open_nodes:
            placed.append(-1)
            continue
        if rule == RANDOM:
            chosen = open_nodes[int(case.draws[at, 0]) % len(open_nodes)]
        else:
            scores = {n: best_fit(state[n], worker) if rule == BEST_FIT else fgd(state[n], worker, case.kinds)[0] for n in open_nodes}
            if rule == PWR_FGD:
                added = {n: least_added_mw(state[n], worker) for n in open_nodes}
                least, most = min(added.values()), max(added.values())
                power = {n: 100 if least == most else (most - added[n]) * 100 // (most - least) for n in open_nodes}
                scores = {n: pwr_weight * power[n] + (1000 - pwr_weight) * scores[n] for n in open_nodes}
            chosen = max(open_nodes, key=lambda n: (scores[n], -n))
        node, options = state[chosen], dict(ways(state[chosen], worker))
        if len(options) == 1 and -1 in options:
            gpu = -1
        elif rule == RANDOM:
            gpu = list(options)[int(case.draws[at, 1]) % len(options)]
        elif rule == BEST_FIT:
            gpu = min(options, key=lambda g: (node.gpu_free[g], g))
        else:
            gpu = fgd(node, worker, case.kinds)[1]
        left = (node.cpu_free - worker.cpu_milli, node.memory_free - worker.memory_mib)
        state[chosen] = Node(options[gpu], *left, node.cpu_milli, node.model)
        placed.append(chosen)
    return placed


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    gpus = [int(g) for g in rng.choice((1, 2, 4), 6)]
    capacity = rng.choice((16_000, 40_000), 6)
    nodes = [Node((1000,) * g, int(cpu), 60_000, int(cpu), int(rng.integers(2))) for g, cpu in zip(gpus, capacity, strict=True)]
    asks = [Worker(int(g), int(c), 2048) for g, c in zip((0, 250, 400, 700, 1000, 2000), rng.choice((1000, 3000, 9000), 6), strict=True)]
    kinds = [Kind(a.cpu_milli, a.gpu_milli, int(rng.integers(1, 50)), int(rng.choice((-1, 1, 2)))) for a in asks]
    return Case(gpus, nodes, kinds, asks, rng.integers(0, 6, 60).tolist(), rng.integers(0, 1 << 63, (60, 2), dtype=np.uint64))


@pytest.mark.parametrize("rule", [RANDOM, BEST_FIT, FGD, PWR_FGD])
@pytest.mark.parametrize("seed", range(6))
def test_the_cache_of_scores_changes_nothing(rule, seed):
    case = random_case(seed)
    asks = np.array(case.asks, dtype=np.int64)
    packed = Nodes(
        first_gpu=np.append(0, np.cumsum(case.gpus)).astype(np.int64),
        cpu_milli=np.array([node.cpu_milli for node in case.nodes], dtype=np.int64),
        memory_mib=np.array([node.memory_free for node in case.nodes], dtype=np.int64),
        model=np.array([node.model for node in case.nodes], dtype=np.int64),
        watts=np.tile(np.array(WATTS_MW, dtype=np.int64), (len(case.nodes), 1)),
        largest=np.array([LARGEST_GPU_MILLI, LARGEST_CPU_MILLI], dtype=np.int64),
    )
    columns = [np.ascontiguousarray(asks[:, column]) for column in range(3)]
    pods = Pods(np.array(case.stream, dtype=np.int64), case.draws, *columns)
    state = scratch(packed, pods)
    placed, total_mw = np.empty(60, dtype=np.int64), np.empty(60, dtype=np.int64)
    place_all(table_of(case.kinds), packed, pods, state, rule, 300, placed, total_mw)
    assert placed.tolist() == place_plainly(case, rule, 300)
    assert -1 in placed.tolist()
    free = [tuple(state.gpu_free[a:b]) for a, b in zip(packed.first_gpu[:-1], packed.first_gpu[1:], strict=True)]
    left = zip(free, state.cpu_free, case.nodes, strict=True)
    assert total_mw[-1] == sum(watts_mw(gpus, int(cpu), node.cpu_milli) for gpus, cpu, node in left)


@pytest.mark.skipif(not (TRACES / "a_jobs" / open_cluster.POD_FILE).is_file(), reason="the traces are not there (JOULEWISE_TRACES)")
@pytest.mark.parametrize("name", ["random", "best_fit", "fgd"])
def test_the_open_cluster_fills_as_published(name):
    trace = open_cluster.load(TRACES)
    seeds = range(3) if name == "random" else range(1)
    allocated = [open_cluster.run(trace, open_cluster.RULES.index(name), seed).allocated_at(open_cluster.READ_PERCENT) for seed in seeds]
    assert np.mean(allocated) == pytest.approx(open_cluster.PUBLISHED[name][0], abs=0.5)
