"""Whole-node power logs of training runs: cleaning, integration, and the node power that they fit.

A log holds what a node's meter read; a run holds the logs of its nodes and when its timed training began and ended. Times are seconds of
one clock, watts are of a whole node (CPUs, memory, GPUs, power supplies), not of a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

import numpy as np
import pandas as pd

from envs.cluster import PoolSpec
from envs.power.curves import COLUMNS
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

JOULES_PER_KWH = 3.6e6
# An awake 8-GPU server idles above 2 kW; what a meter says below this is a fault of the meter (-1 = missing, noise around 0 = dropped out).
LOWEST_AWAKE_W = 100.0


@dataclass(frozen=True)
class NodeLog:
    """Cleaned readings of one node.

    Attributes:
        time_s: float64 ``[N]``, strictly rising.
        watts: float64 ``[N]``, at least ``LOWEST_AWAKE_W``.
        dropped: readings taken out: missing, or below what an awake node can draw.
        merged: readings that shared a time with another and were averaged.
        copy_of: the node whose log this one repeats byte for byte; empty when it is a measurement of its own.
    """

    node: str
    time_s: np.ndarray
    watts: np.ndarray
    dropped: int = 0
    merged: int = 0
    copy_of: str = ""


@dataclass(frozen=True)
class RunLog:
    """One training run on identical nodes, with its timed part from ``run_start_s`` to ``run_stop_s`` and its start-up before that.

    ``allocation`` names the batch of runs that were made together on the same nodes.
    """

    system: str
    benchmark: str
    run: str
    allocation: str
    nodes: tuple[NodeLog, ...]
    init_start_s: float
    run_start_s: float
    run_stop_s: float
    evals_s: tuple[tuple[float, float], ...] = ()

    @property
    def span_s(self) -> tuple[float, float]:
        """From the latest first to the earliest last reading: nothing outside is extrapolated."""
        return max(log.time_s[0] for log in self.nodes), min(log.time_s[-1] for log in self.nodes)

    @property
    def timed_s(self) -> tuple[float, float]:
        """The timed part as far as readings cover it."""
        begin, end = self.span_s
        return max(begin, self.run_start_s), min(end, self.run_stop_s)

    @property
    def window_s(self) -> tuple[float, float]:
        """The measured window: the span, cut so that it is whole seconds long and the timed part begins on one of them."""
        begin, end = self.span_s
        start = self.timed_s[0] - floor(self.timed_s[0] - begin)
        return start, start + floor(end - start)

    def longest_gaps_s(self) -> np.ndarray:
        """Per node, the longest time between two of its readings within the timed part; float64 ``[nodes]``."""
        begin, end = self.timed_s
        inside = (log.time_s[(log.time_s > begin) & (log.time_s < end)] for log in self.nodes)
        return np.array([np.diff(np.concatenate([[begin], times, [end]])).max() for times in inside])


def clean_log(
    node: str, time_s: np.ndarray, watts: np.ndarray, *, lowest_w: float = LOWEST_AWAKE_W, copy_of: str = "", where: str = ""
) -> NodeLog:
    """Readings in order of time, without those that no awake node can give.

    Args:
        time_s: ``[N]`` in any order, repeats allowed: readings of one time are averaged.
        watts: ``[N]``; NaN and whatever is below ``lowest_w`` (so -1 and the noise of a dead sensor) is taken out and counted.
        where: for messages, what the log belongs to.

    Raises:
        InputError: unequal lengths, a time that is not finite, or fewer than two readings left.
    """
    times, values = np.asarray(time_s, dtype=np.float64), np.asarray(watts, dtype=np.float64)
    place = f"{where}, {node}" if where else node
    if times.shape != values.shape or times.ndim != 1:
        raise InputError(f"{times.shape} times for {values.shape} readings", where=place, allowed="one time per reading")
    if not np.isfinite(times).all():
        raise InputError("a time that is not a number", where=place, allowed="seconds")
    good = np.isfinite(values) & (values >= lowest_w)
    order = np.argsort(times[good], kind="stable")
    unique, group = np.unique(times[good][order], return_inverse=True)
    if len(unique) < 2:
        raise InputError(f"{len(unique)} usable of {len(times)} readings", where=place, allowed=f"at least 2 of {lowest_w:g} W or more")
    mean = np.bincount(group, weights=values[good][order]) / np.bincount(group)
    return NodeLog(node, unique, mean, int((~good).sum()), int(good.sum()) - len(unique), copy_of)


def energy_kwh(log: NodeLog, begin_s: float, end_s: float) -> float:
    """Energy between two times by the trapezoid rule; before the first and after the last reading the nearest one holds."""
    if end_s < begin_s:
        raise InputError(f"end {end_s:g} before begin {begin_s:g}", where=log.node, allowed="begin <= end")
    inside = (log.time_s > begin_s) & (log.time_s < end_s)
    times = np.concatenate([[begin_s], log.time_s[inside], [end_s]])
    return float(np.trapezoid(np.interp(times, log.time_s, log.watts), times) / JOULES_PER_KWH)


def measured_kwh(run: RunLog, begin_s: float, end_s: float) -> float:
    """Energy of all nodes of a run between two times; a copied log counts for the node that it was filed under."""
    return sum(energy_kwh(log, begin_s, end_s) for log in run.nodes)


def mean_node_w(run: RunLog, begin_s: float, end_s: float) -> float:
    """Average watts of a node of the run between two times."""
    return measured_kwh(run, begin_s, end_s) * JOULES_PER_KWH / (end_s - begin_s) / len(run.nodes)


def startup_s(run: RunLog) -> tuple[float, float]:
    """The start-up (initialisation to the timed part) as far as the measured window covers it; equal times when it does not."""
    timed = run.timed_s[0]
    return min(max(run.init_start_s, run.window_s[0]), timed), timed


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True)
class NodePower:
    """What the simulator needs to know of a node for one kind of work.

    Attributes:
        idle_w: node watts without work, GPUs included.
        active_w: average node watts while the work runs on all its GPUs.
        startup_w: average node watts while it starts up; None when no run shows it.
        source: what it was fitted on.
    """

    idle_w: float
    active_w: float
    gpus_per_node: int = 8
    startup_w: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if not (0 < self.idle_w <= self.active_w):
            raise InputError(f"idle {self.idle_w:g} W, active {self.active_w:g} W", where="node power", allowed="0 < idle <= active")

    @property
    def startup_utilization(self) -> float:
        """Share of the active power above idle that start-up draws, 0 to 1."""
        if self.startup_w is None or self.active_w == self.idle_w:
            return 0.0
        return float(np.clip((self.startup_w - self.idle_w) / (self.active_w - self.idle_w), 0.0, 1.0))

    def pool(self, name: str, site: str, gpu_model: str, nodes: int, gpu_idle_w: float) -> PoolSpec:
        """A pool of such nodes.

        A node log cannot tell an idle GPU from the rest of an idle node: ``gpu_idle_w`` is the caller's, and the node's part is what
        remains. The energy of work on whole nodes does not depend on that split. The CPUs' share of the load is in the GPUs' power.
        """
        rest_w = self.idle_w - self.gpus_per_node * gpu_idle_w
        if gpu_idle_w < 0 or rest_w < 0:
            raise InputError(
                f"gpu_idle_w {gpu_idle_w:g}",
                where=f"pool '{name}'",
                allowed=f"0 to {self.idle_w / self.gpus_per_node:.0f} W of the idle node",
            )
        return PoolSpec(name, site, gpu_model, nodes, self.gpus_per_node, node_idle_w=rest_w, gpu_idle_w=gpu_idle_w, cpu_w_per_gpu=0.0)

    def curves(self, gpu_model: str, gpu_idle_w: float) -> pd.DataFrame:
        """Rows of a curve table (``envs.power.curves``): full power only, speed 1, the same for every workload class."""
        power_w = gpu_idle_w + (self.active_w - self.idle_w) / self.gpus_per_node
        return pd.DataFrame([(gpu_model, kind, 1.0, 1.0, power_w, self.source) for kind in WORKLOAD_CLASSES], columns=list(COLUMNS))


def mean_active_w(runs: Sequence[RunLog]) -> float:
    """Average node watts of the timed part; every run counts the same within its benchmark, every benchmark the same."""
    if not runs:
        raise InputError("no runs", where="active power", allowed="at least one run to fit on")
    by_benchmark: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        by_benchmark.setdefault((run.system, run.benchmark), []).append(mean_node_w(run, *run.timed_s))
    return float(np.mean([np.mean(values) for values in by_benchmark.values()]))


def idle_node_w(runs: Sequence[RunLog], *, without_startup: bool = False) -> float:
    """Average node watts outside the timed part, over all node seconds of ``runs``; ``without_startup`` leaves the start-up out too."""
    energy_j = node_s = 0.0
    for run in runs:
        (begin, end), (start, stop) = run.window_s, run.timed_s
        before = startup_s(run)[0] if without_startup else start
        for left, right in ((begin, before), (stop, end)):
            if right > left:
                energy_j += measured_kwh(run, left, right) * JOULES_PER_KWH
                node_s += (right - left) * len(run.nodes)
    if node_s == 0.0:
        raise InputError("no reading outside a timed part", where="idle power", remedy="add a run whose log begins before or ends after it")
    return energy_j / node_s


def mean_startup_w(runs: Sequence[RunLog]) -> float | None:
    """Average node watts of start-up, every run the same; None when no log covers at least 5 s of it."""
    spans = [(run, *startup_s(run)) for run in runs]
    values = [mean_node_w(run, begin, end) for run, begin, end in spans if end - begin >= 5.0]
    return float(np.mean(values)) if values else None
