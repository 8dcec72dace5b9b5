"""Ways in which each job of a window may be run, as columns of the linear program of :mod:`envs.bound`.

A *point* is a start at one second; any start between two neighbouring points of a pool and level is a mean of the two, as energy,
penalty and the seconds in each slot are linear (or lie above the line) between them. A *range* stands for all starts in it. A *part* is
work done within one slot, for jobs that may be interrupted. Proofs: docs/bound.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from envs.bound_rates import WS_PER_KWH, JobFacts, Prices, dynamic_watts
from envs.reward import RewardSpec
from envs.world import World

NO_POOL = -1
NEAR_S = 6 * 3600.0  # of late starts that are told apart by points
FAR_S = 36 * 3600.0
RANGE_SLOTS = 2  # long slots of a range up to FAR_S, and of one after it
FAR_RANGE_SLOTS = 4


@dataclass(frozen=True)
class Columns:
    """X columns; all arrays ``[X]``. Times are float64 seconds.

    Attributes:
        job, pool: places in :class:`~envs.bound_rates.JobFacts`; pool -1 = holds nothing.
        begin_s, end_s: in which the job certainly runs (times ``x``).
        usd: cost of the whole column: dynamic energy, data and penalty.
        weight: share of the job that a whole column does.
        most: greatest value of the column.
        from_s, to_s: from the first decision to the last start that the column may stand for.
        waits_s: until when the job may have waited.
        late_s: until when the job has certainly waited without a free choice, where ``late``.
    """

    job: np.ndarray
    pool: np.ndarray
    begin_s: np.ndarray
    end_s: np.ndarray
    usd: np.ndarray
    weight: np.ndarray
    most: np.ndarray
    from_s: np.ndarray
    to_s: np.ndarray
    waits_s: np.ndarray
    late_s: np.ndarray
    late: np.ndarray

    @property
    def size(self) -> int:
        return len(self.job)


def joined(parts: list[Columns]) -> Columns:
    """All columns, in order."""
    return Columns(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Columns)))


def _columns(job: int, pool: int, begin: np.ndarray, end: np.ndarray, usd: np.ndarray, **more: np.ndarray | float) -> Columns:
    size = len(begin)
    default = {"weight": 1.0, "most": 1.0, "from_s": 0.0, "to_s": 0.0, "waits_s": 0.0, "late_s": 0.0, "late": False} | more
    filled = {name: np.broadcast_to(np.asarray(value), (size,)) for name, value in default.items()}
    return Columns(np.full(size, job), np.full(size, pool), begin, end, usd, **filled)


class ColumnMaker:
    """Columns of one window's jobs.

    Args:
        edges_s, late_edges_s: of the slots, and of the long ones that lateness is told in.
        late_s: seconds after a job's last free choice in which starts are told apart; later ones are one column.
    """

    def __init__(
        self,
        world: World,
        m: int,
        facts: JobFacts,
        prices: Prices,
        reward: RewardSpec,
        edges_s: np.ndarray,
        late_edges_s: np.ndarray,
        late_s: float,
    ) -> None:
        self.world, self.m, self.facts, self.prices, self.reward = world, m, facts, prices, reward
        self.edges, self.late_edges, self.late_s = edges_s, late_edges_s, late_s
        self.site = world.static.pool_site
        self.price_edges = prices.edges_s[:-1]
        kwh = world.jobs.data_gib[m, facts.index] * world.cluster.transfer_kwh_per_gib
        self._lease: tuple[int, np.ndarray] = (-1, np.zeros(0))
        self.sent_usd = facts.sends * kwh[:, None] * self._least_sent()

    def _least_sent(self) -> np.ndarray:
        """Least price of sending data from a job's arrival on, USD per kWh ``[J, P]``."""
        values = np.minimum.accumulate(self.prices.sent_usd_per_kwh[:, ::-1], axis=1)[:, ::-1]
        first = np.searchsorted(self.prices.edges_s, self.facts.submit_s, side="right") - 1
        return values[self.site][:, np.minimum(first, values.shape[1] - 1)].T

    def penalty_usd(self, j: int, late_s: np.ndarray) -> np.ndarray:
        """Weighted penalty of one missed objective; nothing where not late."""
        hours = np.minimum(late_s / 3600.0, self.reward.late_cap_hours)
        usd = self.facts.gpus[j] * (self.reward.miss_usd_per_gpu + self.reward.late_usd_per_gpu_hour * hours)
        return np.where(late_s > 0, self.reward.w_sla * usd, 0.0)

    def penalties_usd(self, j: int, start_s: np.ndarray, run_s: float) -> np.ndarray:
        """Of a job that starts at the times and runs undisturbed."""
        usd = self.penalty_usd(j, start_s + run_s - self.facts.deadline_s[j])
        if self.facts.start_bound[j]:
            usd = usd + self.penalty_usd(j, start_s - self.facts.latest_start_s[j])
        return usd

    # ---------------------------------------------------------------- whole runs

    def whole(self, j: int) -> Columns:
        """All ways of running a job once, without interruption."""
        parts = []
        for p, level in np.argwhere(self.facts.allowed[j]).tolist():
            parts += [self._points(j, p, level), self._ranges(j, p, level)]
        return joined([*parts, self._tail(j)])

    def _energy(self, j: int, p: int, level: int, start: np.ndarray) -> np.ndarray:
        end, site = start + self.facts.run_s[j, p, level], int(self.site[p])
        return self.facts.dynamic_w[j, p, level] * (self.prices.until(site, end) - self.prices.until(site, start)) + self.sent_usd[j, p]

    def _between(self, first: float, last: float, run_s: float, *edges: np.ndarray) -> np.ndarray:
        """Edges at a run's start or end, for starts from ``first`` to ``last``; with both, sorted."""
        times = np.concatenate([part for edge in edges for part in (edge, edge - run_s)])
        return np.unique(np.concatenate([[first, last], times[(times > first) & (times < last)]]))

    def _points(self, j: int, p: int, level: int) -> Columns:
        """Starts at the times between which everything is linear, from the first possible one on."""
        facts, run, delay = self.facts, float(self.facts.run_s[j, p, level]), float(self.facts.delay_s[j, p])
        first, free = float(facts.submit_s[j] + facts.sent_s[j, p]), float(facts.latest_s[j]) + delay
        last = free + min(NEAR_S, self.late_s)
        late_kinks = self.late_edges[self.late_edges > facts.latest_s[j]] + delay
        kinks = np.concatenate([[facts.latest_start_s[j], facts.deadline_s[j] - run, free], late_kinks])
        point = np.unique(np.concatenate([self._between(first, last, run, self.edges), kinks[(kinks > first) & (kinks < last)]]))
        fine = self._between(first, last, run, self.price_edges)
        usd = self._energy(j, p, level, point)
        usd = usd + _below(point, usd, fine, self._energy(j, p, level, fine)) + self.penalties_usd(j, point, run)
        before, after = np.concatenate([point[:1], point[:-1]]), np.concatenate([point[1:], point[-1:]])
        more = {"from_s": before - delay, "to_s": after, "waits_s": point, "late_s": point - delay, "late": point > free}
        return _columns(j, p, point, point + run, usd, **more)

    def _ranges(self, j: int, p: int, level: int) -> Columns:
        """Starts that are later still, some hours at a time: what every start of a range holds, at the least cost of any."""
        facts, run, delay = self.facts, float(self.facts.run_s[j, p, level]), float(self.facts.delay_s[j, p])
        near, last = (float(facts.latest_s[j]) + seconds for seconds in (min(NEAR_S, self.late_s), self.late_s))
        inside = self.late_edges[(self.late_edges > near) & (self.late_edges < last)]
        far = inside > facts.latest_s[j] + FAR_S
        inside = np.concatenate([inside[~far][::RANGE_SLOTS], inside[far][::FAR_RANGE_SLOTS]])
        cut = np.unique(np.concatenate([[near], inside, [last]])) + delay
        low, high = cut[:-1], cut[1:]
        if not len(low):
            return self.nothing()
        fine = np.unique(np.concatenate([cut, self._between(cut[0], cut[-1], run, self.price_edges)]))
        usd, at = self._energy(j, p, level, fine), np.searchsorted(fine, cut)
        least = np.minimum(np.minimum.reduceat(usd, at[:-1]), usd[at[1:]]) + self.penalties_usd(j, low + 1.0, run)
        more = {"from_s": low - delay, "to_s": high, "waits_s": high, "late_s": low - delay, "late": True}
        return _columns(j, p, high, np.maximum(high, low + run), least, **more)

    def _tail(self, j: int) -> Columns:
        """Any later start, anywhere, which then holds nothing."""
        facts, best = self.facts, np.inf
        for p, level in np.argwhere(facts.allowed[j]).tolist():
            run, low = float(facts.run_s[j, p, level]), float(facts.latest_s[j] + facts.delay_s[j, p] + self.late_s)
            times = self._between(low, max(low, float(self.price_edges[-1])), run, self.price_edges)
            usd = self._energy(j, p, level, times).min() + float(self.penalties_usd(j, np.array([low + 1.0]), run)[0])
            best = min(best, usd)
        never = np.array([np.inf])
        end = np.array([facts.latest_s[j] + self.late_s])
        return _columns(j, NO_POOL, end, end, np.array([best]), from_s=end, to_s=never, waits_s=never, late_s=end, late=True)

    def dropped(self, j: int) -> Columns:
        """A job that no budget lets run costs nothing in the end."""
        never = np.array([np.inf])
        return _columns(j, NO_POOL, np.zeros(1), np.zeros(1), np.zeros(1), from_s=np.zeros(1), to_s=never, waits_s=never)

    def nothing(self) -> Columns:
        """No column at all."""
        none = np.zeros(0)
        return _columns(0, NO_POOL, none, none, none)

    # ---------------------------------------------------------------- leases

    def lease(self, j: int) -> Columns:
        """A replica that starts at some second before ``until`` and then stays, or never starts."""
        facts = self.facts
        until = float(facts.until_s[j])
        missed = self.penalty_usd(j, np.array([max(1e-9, until - facts.latest_start_s[j])])) if facts.start_bound[j] else np.zeros(1)
        parts = [_columns(j, NO_POOL, np.array([until]), np.array([until]), missed)]
        for p, level in np.argwhere(facts.allowed[j]).tolist():
            first = float(facts.submit_s[j] + facts.sent_s[j, p])
            if first >= until:
                continue
            kinks = np.array([facts.latest_start_s[j]])
            point = self._between(first, until, 0.0, self.edges, kinks)
            fine = self._between(first, until, 0.0, self.price_edges)
            usd = self._lease_usd(j, p, level, point, until)
            usd = usd + _below(point, usd, fine, self._lease_usd(j, p, level, fine, until)) + self.sent_usd[j, p]
            if facts.start_bound[j]:
                usd = usd + self.penalty_usd(j, point - facts.latest_start_s[j])
            parts.append(_columns(j, p, point, np.full(len(point), until), usd))
        return joined(parts)

    def _lease_rates(self, j: int) -> np.ndarray:
        """USD per second of a replica's dynamic watts in each price step, ``[P, L, G]``."""
        if self._lease[0] != j:
            world, m = self.world, self.m
            job = int(self.facts.index[j])
            load = world.grid.load[m, int(world.jobs.service[m, job]), int(world.grid.history_steps[m]) :]
            use = np.minimum(1.0, load[:, None, None] / world.static.speed[:, :, int(world.jobs.curve[m, job])])
            watts = dynamic_watts(world, m, np.full(len(use), job), use).transpose(1, 2, 0)
            self._lease = (j, watts * self.prices.usd_per_kwh[self.site][:, None, :] / WS_PER_KWH)
        return self._lease[1]

    def _lease_usd(self, j: int, p: int, level: int, start: np.ndarray, until: float) -> np.ndarray:
        rate = self._lease_rates(j)[p, level]
        sums = np.concatenate([[0.0], np.cumsum(rate * np.diff(self.prices.edges_s))])
        return np.interp(until, self.prices.edges_s, sums) - np.interp(start, self.prices.edges_s, sums)

    def lease_at_best_usd(self, j: int) -> float:
        """What a replica that comes and goes costs at least: running only while that earns something."""
        facts = self.facts
        seconds = np.clip(np.minimum(self.prices.edges_s[1:], facts.until_s[j]) - np.maximum(self.price_edges, facts.submit_s[j]), 0, None)
        rates = self._lease_rates(j)[facts.allowed[j]]
        return float((np.minimum(rates, 0.0).min(axis=0) * seconds).sum())

    # ---------------------------------------------------------------- work in parts

    def parts(self, j: int, speed: np.ndarray) -> Columns:
        """Work in any slots, pools and levels; ``speed`` ``[P, L]`` of the job."""
        facts = self.facts
        work = float(self.world.jobs.duration_s[self.m, facts.index[j]])
        at_least = self.penalty_usd(j, np.array([facts.submit_s[j] + facts.shortest_s[j] - facts.deadline_s[j]]))
        slot = np.flatnonzero(self.edges[1:] > facts.submit_s[j])
        begin, end = self.edges[slot], self.edges[slot + 1]
        length = end - begin
        late = begin - facts.deadline_s[j]
        penalty = np.maximum(self.penalty_usd(j, np.where(late >= 0, np.maximum(late, 1e-9), 0.0)), at_least)
        found = []
        for p, level in np.argwhere(facts.allowed[j]).tolist():
            open_s = np.clip(end - np.maximum(begin, facts.submit_s[j] + facts.sent_s[j, p]), 0.0, None)
            least = self.prices.least(self.edges, self.prices.usd_per_kwh[self.site[p]])[slot]
            usd = facts.dynamic_w[j, p, level] * least * length / WS_PER_KWH
            weight = speed[p, level] * length / work
            most = open_s / length
            found.append(_columns(j, p, begin, end, usd + weight * (penalty + self.sent_usd[j, p]), weight=weight, most=most))
            if (usd < 0).any():
                found.append(_columns(j, p, begin, end, np.minimum(usd, 0.0), weight=0.0, most=most))
        return joined([*found, self._parts_tail(j, speed, work, float(at_least[0]))])

    def _parts_tail(self, j: int, speed: np.ndarray, work: float, at_least: float) -> Columns:
        """Work after the last slot."""
        facts, after, best = self.facts, float(self.edges[-1]), np.inf
        first = min(int(np.searchsorted(self.prices.edges_s, after, side="right")) - 1, len(self.price_edges) - 1)
        penalty = float(self.penalty_usd(j, np.array([after + 1.0 - facts.deadline_s[j]]))[0])
        for p, level in np.argwhere(facts.allowed[j]).tolist():
            least = float(self.prices.usd_per_kwh[self.site[p], first:].min())
            usd = facts.dynamic_w[j, p, level] * least * work / speed[p, level] / WS_PER_KWH + self.sent_usd[j, p]
            best = min(best, usd)
        end = np.array([after])
        return _columns(j, NO_POOL, end, end, np.array([best + max(penalty, at_least)]))


def _below(point: np.ndarray, value: np.ndarray, fine: np.ndarray, fine_value: np.ndarray) -> np.ndarray:
    """What to add at points so that the line between them lies nowhere above the values at ``fine``; at most 0, ``[points]``."""
    if len(point) < 2:
        return np.zeros(len(point))
    gap = np.minimum(fine_value - np.interp(fine, point, value), 0.0)
    gap = np.where(gap > -1e-15, 0.0, gap)
    piece = np.clip(np.searchsorted(point, fine, side="right") - 1, 0, len(point) - 2)
    least = np.zeros(len(point) - 1)
    np.minimum.at(least, piece, gap)
    return np.minimum(np.concatenate([[0.0], least]), np.concatenate([least, [0.0]]))
