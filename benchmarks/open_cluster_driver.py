"""Compiled placement of workers that never end on the nodes of the open GPU cluster, with a cache of scores.

The score of a node for a kind of worker holds until the node changes. So each kind keeps a row of scores and its place in the log of
changed nodes, and looks only at the nodes that changed since it was last asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from envs import kernel_compile, kernel_fgd
from envs.kernel_compile import OPTIONS, compiled
from envs.kernel_fgd import (
    NO_GPU,
    WHOLE,
    added_mw,
    best_fit_score,
    fgd_score,
    fragmentation,
    holds,
    node_mw,
    pwr_score,
    tightest_gpu,
)

RULES: tuple[str, ...] = ("random", "best_fit", "fgd", "pwr_fgd")
RANDOM, BEST_FIT, FGD, PWR_FGD = range(4)
UNFIT = -1
SCORE_WEIGHTS = 1000


class Nodes(NamedTuple):
    """N nodes in the order in which ties are broken."""

    first_gpu: np.ndarray  # int64 [N + 1]
    cpu_milli: np.ndarray  # int64 [N]
    memory_mib: np.ndarray  # int64 [N]
    model: np.ndarray  # int64 [N]
    watts: np.ndarray  # int64 [N, 5], milliwatts and cores, as in envs.kernel_fgd
    largest: np.ndarray  # int64 [2], GPU and CPU thousandths of the largest node


class Pods(NamedTuple):
    """Kinds of workers and the stream of workers, each a kind."""

    kind: np.ndarray  # int64 [W]
    draw: np.ndarray  # uint64 [W, 2], for the random rule
    gpu_milli: np.ndarray  # int64 [K]
    cpu_milli: np.ndarray  # int64 [K]
    memory_mib: np.ndarray  # int64 [K]


class Scratch(NamedTuple):
    gpu_free: np.ndarray  # int16 [G]
    cpu_free: np.ndarray  # int64 [N]
    memory_free: np.ndarray  # int64 [N]
    parts: np.ndarray  # int64 [N], fragmentation; -1 = to be computed
    score: np.ndarray  # int16 [K, N]
    added: np.ndarray  # int64 [K, N], milliwatts
    gpu: np.ndarray  # int8 [K, N], GPU that a share would take
    computed: np.ndarray  # int64 [K, N], length of the log at that time
    changed: np.ndarray  # int64 [N], likewise
    log: np.ndarray  # int64 [W]
    read: np.ndarray  # int64 [K], how much of the log the kind has seen; -1 = never asked for


def scratch(nodes: Nodes, pods: Pods) -> Scratch:
    """The state of empty nodes."""
    kinds, count = len(pods.gpu_milli), len(nodes.cpu_milli)
    return Scratch(
        gpu_free=np.full(nodes.first_gpu[-1], WHOLE, dtype=np.int16),
        cpu_free=nodes.cpu_milli.copy(),
        memory_free=nodes.memory_mib.copy(),
        parts=np.full(count, -1, dtype=np.int64),
        score=np.full((kinds, count), UNFIT, dtype=np.int16),
        added=np.zeros((kinds, count), dtype=np.int64),
        gpu=np.full((kinds, count), -1, dtype=np.int8),
        computed=np.full((kinds, count), -1, dtype=np.int64),
        changed=np.zeros(count, dtype=np.int64),
        log=np.zeros(len(pods.kind), dtype=np.int64),
        read=np.full(kinds, -1, dtype=np.int64),
    )


@compiled
def _score_node(table, nodes, pods, state, rule, kind, node):
    gpus = state.gpu_free[nodes.first_gpu[node] : nodes.first_gpu[node + 1]]
    gpu_milli, cpu_milli = pods.gpu_milli[kind], pods.cpu_milli[kind]
    free = state.cpu_free[node]
    score = UNFIT
    if holds(gpus, free, state.memory_free[node], gpu_milli, cpu_milli, pods.memory_mib[kind]):
        score = 0
        if rule == BEST_FIT:
            score = best_fit_score(gpus, free, gpu_milli, cpu_milli, nodes.largest[0], nodes.largest[1])
        elif rule != RANDOM:
            if state.parts[node] < 0:
                state.parts[node] = fragmentation(table, gpus, free, nodes.model[node], NO_GPU, 0, 0)
            score, gpu = fgd_score(table, gpus, free, nodes.model[node], state.parts[node], gpu_milli, cpu_milli)
            state.gpu[kind, node] = gpu
            if rule == PWR_FGD:
                state.added[kind, node] = added_mw(nodes.watts[node], gpus, free, nodes.cpu_milli[node], gpu_milli, cpu_milli)
    state.score[kind, node] = score


@compiled
def _refresh(table, nodes, pods, state, rule, kind, logged):
    """Bring the kind's row of scores up to date."""
    first = state.read[kind] < 0
    begin, end = (0, len(nodes.cpu_milli)) if first else (state.read[kind], logged)
    for entry in range(begin, end):
        node = entry if first else state.log[entry]
        if first or state.computed[kind, node] < state.changed[node]:
            _score_node(table, nodes, pods, state, rule, kind, node)
            state.computed[kind, node] = logged
    state.read[kind] = logged


@compiled
def _best(row):
    """The first of the highest scores; -1 when no node fits."""
    best = np.int16(UNFIT)
    for node in range(len(row)):
        best = max(best, row[node])
    if best == UNFIT:
        return -1
    node = 0
    while row[node] != best:
        node += 1
    return node


@compiled
def _best_weighted(row, added, pwr_weight):
    """The first of the highest sums of ``pwr_weight`` thousandths of the power score and the rest of the fragmentation score."""
    least, most = np.int64(1) << 62, np.int64(-1)
    for node in range(len(row)):
        if row[node] != UNFIT:
            least, most = min(least, added[node]), max(most, added[node])
    best, chosen = np.int64(-1), -1
    for node in range(len(row)):
        if row[node] != UNFIT:
            score = pwr_weight * pwr_score(added[node], least, most) + (SCORE_WEIGHTS - pwr_weight) * row[node]
            if score > best:
                best, chosen = score, node
    return chosen


@compiled
def _nth(row, draw):
    """A fitting node, each as likely as the others."""
    fitting = np.uint64(0)
    for node in range(len(row)):
        fitting += np.uint64(row[node] != UNFIT)
    if fitting == 0:
        return -1
    wanted = draw % fitting
    for node in range(len(row)):
        if row[node] != UNFIT:
            if wanted == 0:
                return node
            wanted -= np.uint64(1)
    return -1


@compiled
def _share_gpu(state, gpus, rule, kind, node, gpu_milli, draw):
    if rule == BEST_FIT:
        return tightest_gpu(gpus, gpu_milli)
    if rule != RANDOM:
        return np.int64(state.gpu[kind, node])
    fitting = np.uint64(0)
    for g in range(len(gpus)):
        fitting += np.uint64(gpus[g] >= gpu_milli)
    wanted = draw % fitting
    for g in range(len(gpus)):
        if gpus[g] >= gpu_milli:
            if wanted == 0:
                return g
            wanted -= np.uint64(1)
    return NO_GPU


@compiled
def _take(nodes, pods, state, rule, kind, node, draw):
    """Put a worker on the node; the milliwatts that it adds."""
    gpus = state.gpu_free[nodes.first_gpu[node] : nodes.first_gpu[node + 1]]
    gpu_milli, cpu_milli = pods.gpu_milli[kind], pods.cpu_milli[kind]
    before = node_mw(nodes.watts[node], gpus, state.cpu_free[node], nodes.cpu_milli[node])
    if 0 < gpu_milli < WHOLE:
        gpus[_share_gpu(state, gpus, rule, kind, node, gpu_milli, draw)] -= gpu_milli
    else:
        wanted = gpu_milli // WHOLE
        for g in range(len(gpus)):
            if wanted > 0 and gpus[g] == WHOLE:
                gpus[g] = 0
                wanted -= 1
    state.cpu_free[node] -= cpu_milli
    state.memory_free[node] -= pods.memory_mib[kind]
    state.parts[node] = -1
    return node_mw(nodes.watts[node], gpus, state.cpu_free[node], nodes.cpu_milli[node]) - before


def _entry(function: Callable) -> Callable:
    """Compile an entry point, cached on disk under a digest of all sources: numba itself looks only at this file."""
    sources = (Path(str(module)).read_bytes() for module in (__file__, kernel_compile.__file__, kernel_fgd.__file__))
    function.__qualname__ = f"{function.__name__}_{hashlib.sha256(b''.join(sources)).hexdigest()[:16]}"
    return njit(cache=True, **OPTIONS)(function)


@_entry
def place_all(table, nodes, pods, state, rule, pwr_weight, placed_on, total_mw):
    """Offer the workers one by one; those that fit nowhere are dropped.

    Writes ``placed_on`` int64 [W], the node or -1, and ``total_mw`` int64 [W], the cluster's milliwatts after each worker.
    """
    milliwatts = 0
    for node in range(len(nodes.cpu_milli)):
        gpus = state.gpu_free[nodes.first_gpu[node] : nodes.first_gpu[node + 1]]
        milliwatts += node_mw(nodes.watts[node], gpus, state.cpu_free[node], nodes.cpu_milli[node])
    logged = 0
    for worker in range(len(pods.kind)):
        kind = pods.kind[worker]
        _refresh(table, nodes, pods, state, rule, kind, logged)
        if rule == RANDOM:
            node = _nth(state.score[kind], pods.draw[worker, 0])
        elif rule == PWR_FGD:
            node = _best_weighted(state.score[kind], state.added[kind], pwr_weight)
        else:
            node = _best(state.score[kind])
        if node >= 0:
            milliwatts += _take(nodes, pods, state, rule, kind, node, pods.draw[worker, 1])
            state.log[logged] = node
            logged += 1
            state.changed[node] = logged
        placed_on[worker] = node
        total_mw[worker] = milliwatts
