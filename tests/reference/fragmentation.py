"""Node rules ``fgd`` and ``pwr_fgd`` (docs/fragmentation.md, docs/simulator.md) in plain Python: all is counted anew at every choice."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from fractions import Fraction

from .model import AWAKE, SLEEPING, Rules, Settings

Place = tuple[list[int], float]  # free thousandths of the GPUs, free CPU thousandths


class Fragmentation:
    """Scores by the typical workers among the jobs that have arrived."""

    def __init__(self, rules: Rules, settings: Settings) -> None:
        self.rules, self.settings = rules, settings
        self.counted: collections.Counter[tuple[int, int, int]] = collections.Counter()

    def arrived(self, j: int) -> None:
        job = self.rules.jobs[j]
        pools = sum(1 << p for p in {p for p, _ in self.rules.choices(j)[1]})
        self.counted[job.cpu_milli, job.gpu_milli, pools] += job.workers

    def typical(self) -> list[tuple[tuple[int, int, int], int]]:
        """The most frequent kinds, as few as make up 95 %; equally frequent ones by the larger numbers."""
        ranked = sorted(self.counted.items(), key=lambda item: (item[1], item[0]), reverse=True)
        kept: list[tuple[tuple[int, int, int], int]] = []
        while sum(count for _, count in kept) < Fraction(95, 100) * sum(self.counted.values()):
            kept.append(ranked[len(kept)])
        return kept

    def fragment(self, p: int, free: Sequence[int], cpu_free: float) -> Fraction:
        """Expected thousandths of the node's free GPUs that a typical worker cannot use."""
        kinds, total = self.typical(), Fraction(0)
        for (cpu, gpu, pools), count in kinds:
            fitting = [milli for milli in free if milli >= min(gpu, 1000)]
            wanted = max(gpu // 1000, 1)
            usable = gpu > 0 and pools >> p & 1 and cpu <= cpu_free and len(fitting) >= wanted
            total += count * (sum(free) - sum(fitting) if usable else sum(free))
        return total / sum(count for _, count in kinds)

    def ways(self, j: int, p: int, free: Sequence[int]) -> list[tuple[int | None, list[int]]]:
        """(GPU that a share takes, what is free then) for every way to put a worker on the node."""
        held = self.rules.held(j, p)
        if 0 < held < 1000:
            return [(g, [milli - held * (k == g) for k, milli in enumerate(free)]) for g, room in enumerate(free) if room >= held]
        taken = [g for g, milli in enumerate(free) if milli == 1000][: held // 1000]
        return [(None, [0 if k in taken else milli for k, milli in enumerate(free)])]

    def score(self, j: int, p: int, place: Place) -> tuple[int, int | None]:
        free, cpu_free = place
        before = self.fragment(p, free, cpu_free)
        best: tuple[int, int | None] = (-1, None)
        for gpu, left in self.ways(j, p, free):
            fall = before - self.fragment(p, left, cpu_free - self.rules.jobs[j].cpu_milli)
            value = 50 if fall == 0 else math.floor(100 / (1 + math.exp(-float(fall) / 1000)))
            if value > best[0]:
                best = (value, gpu)
        return best

    def node_mw(self, j: int, p: int, free: Sequence[int], cpu_free: float) -> int:
        """GPUs and sockets of 16 cores of two threads, each idle or wholly in use."""
        idle_mw, full_mw = (math.floor(w * 1000 + 0.5) for w in (self.rules.pools[p].gpu_idle_w, self.rules.active_w(j, p, 0)))
        watts = sum(idle_mw if milli == 1000 else full_mw for milli in free)
        capacity = self.rules.node_cpu_milli(p)
        if math.isinf(capacity):
            return watts
        cores = math.ceil(capacity / 2000)
        sockets, busy = math.ceil(cores / 16), math.ceil((cores - math.floor(cpu_free / 2000)) / 16)
        return watts + busy * 120_000 + (sockets - busy) * 15_000

    def added_mw(self, j: int, p: int, place: Place, state: int) -> int:
        free, cpu_free = place
        cpus = cpu_free - self.rules.jobs[j].cpu_milli
        added = min(self.node_mw(j, p, left, cpus) for _, left in self.ways(j, p, free)) - self.node_mw(j, p, free, cpu_free)
        waking = (self.rules.node_nw(p, AWAKE) - self.rules.node_nw(p, SLEEPING)) // 1_000_000
        return added + (waking if state == SLEEPING else 0)

    def choose(self, j: int, p: int, places: list[Place], state: int) -> tuple[int, int | None]:
        """Which of the nodes, all in the same state, takes the next worker, and on which GPU."""
        scores = [self.score(j, p, place) for place in places]
        values = [value for value, _ in scores]
        if self.settings.node_rule == "pwr_fgd":
            weight = round(1000 * self.settings.pwr_weight)
            added = [self.added_mw(j, p, place, state) for place in places]
            most, least = max(added), min(added)
            power = [100 if most == least else (most - mw) * 100 // (most - least) for mw in added]
            values = [weight * w + (1000 - weight) * f for w, f in zip(power, values, strict=True)]
        best = max(range(len(places)), key=lambda k: (values[k], -k))
        return best, scores[best][1]
