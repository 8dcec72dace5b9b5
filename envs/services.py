"""Services: streams of requests, the autoscaler that wants replicas for them, and its wishes as leases for the simulator.

The autoscaler sees no future. At the begin of every step of the request rate it wants the fewest replicas that would keep the objective
under the rate of the step before, by the M/M/c queue (:mod:`envs.queueing`), and the warm ones beside. With a scale-down delay it keeps the
most that it wanted within that time, as the stabilisation window of Kubernetes' horizontal autoscaler does. Each replica is a *lease*
(docs/simulator.md, Services): a job wanted from ``submit_time`` to ``until``. What is wanted first is released last.

What replicas then had to do with the requests is in :mod:`envs.service_report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.job_table import prepare_jobs
from envs.queueing import mean_response_s, response_beyond, wait_beyond, waits
from envs.windows import WindowTables
from envs.world_grid import DEFAULT_STEP_S
from telemetry.errors import InputError
from telemetry.times import utc_column

RATE_COLUMNS: tuple[str, ...] = ("time", "service", "requests_per_s")
MEAN_RESPONSE, P95_RESPONSE, P95_WAIT = "mean_response", "p95_response", "p95_wait"
OBJECTIVES: tuple[str, ...] = (MEAN_RESPONSE, P95_RESPONSE, P95_WAIT)
TAIL = 0.05
MOST_REPLICAS = 10_000
# Grid steps are not cut finer than this for the sake of a rate.
SHORTEST_STEP_S = 30


@dataclass(frozen=True)
class ServiceSpec:
    """A service.

    Attributes:
        objective, objective_s: ``mean_response``, ``p95_response`` or ``p95_wait`` (of waiting alone) within so many seconds.
        mean_service_s: mean time that one replica works at a request, on the reference GPU at full power; or ``tokens_per_request`` and
            ``tokens_per_s``, whose quotient it is.
        series, rate_factor: series of the rate table (default: the service's name), and what its rates are multiplied by.
        gpus, cpus, memory_gib, gpu_model: of one replica.
        planned_speed: the autoscaler counts on replicas of this speed (1 = reference GPU at full power); slower levels are not offered.
        warm_replicas: kept beside what the rate asks for; max_replicas: never more.
        scale_down_delay_s: replicas are released only when they have not been wanted for so long.
        admit_utilization: requests beyond this share of the running replicas' capacity are shed.
        priority: of the leases in the queue.
    """

    name: str
    objective_s: float
    objective: str = P95_RESPONSE
    mean_service_s: float = 0.0
    tokens_per_request: float = 0.0
    tokens_per_s: float = 0.0
    series: str = ""
    rate_factor: float = 1.0
    gpus: float = 1.0
    cpus: float = 0.0
    memory_gib: float = 0.0
    gpu_model: str = ""
    planned_speed: float = 1.0
    warm_replicas: int = 0
    max_replicas: int = 64
    scale_down_delay_s: int = 0
    admit_utilization: float = 0.95
    priority: int = 0

    def __post_init__(self) -> None:
        where = f"service '{self.name}'"
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective '{self.objective}'", where=where, allowed=", ".join(OBJECTIVES))
        by_tokens = self.tokens_per_request > 0 and self.tokens_per_s > 0
        if (self.mean_service_s > 0) == by_tokens:
            raise InputError(
                f"mean_service_s {self.mean_service_s:g}, tokens {self.tokens_per_request:g} per request and {self.tokens_per_s:g} per s",
                where=where,
                allowed="mean_service_s above 0, or both tokens_per_request and tokens_per_s",
            )
        for name in ("objective_s", "rate_factor", "planned_speed", "gpus"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} {getattr(self, name)}", where=where, allowed="a finite number above 0")
        if not 0 < self.admit_utilization < 1:
            raise InputError(f"admit_utilization {self.admit_utilization}", where=where, allowed="above 0, below 1")
        if not 0 <= self.warm_replicas <= self.max_replicas <= MOST_REPLICAS or self.max_replicas < 1:
            raise InputError(
                f"warm_replicas {self.warm_replicas}, max_replicas {self.max_replicas}",
                where=where,
                allowed=f"0 <= warm_replicas <= max_replicas, which is 1 to {MOST_REPLICAS}",
            )
        if self.scale_down_delay_s < 0:
            raise InputError(f"scale_down_delay_s {self.scale_down_delay_s}", where=where, allowed="0 or more")
        if not self.is_met(np.array([1]), np.array([0.0]), np.array([0.0]))[0]:
            raise InputError(
                f"{self.objective} within {self.objective_s:g} s",
                where=where,
                allowed=f"what a replica without any queue keeps: a request takes {1 / self.rate(self.planned_speed):.3g} s on average"
                + (
                    f" and {np.log(1 / TAIL) / self.rate(self.planned_speed):.3g} s at the 95th percentile"
                    if "p95" in self.objective
                    else ""
                ),
                remedy="a longer objective, or a shorter service time",
            )

    @property
    def service_s(self) -> float:
        """Mean seconds of work for a request on the reference GPU at full power."""
        return self.mean_service_s if self.mean_service_s > 0 else self.tokens_per_request / self.tokens_per_s

    def rate(self, speed: float) -> float:
        """Requests per second that a busy replica of ``speed`` serves (numbers or arrays)."""
        return speed / self.service_s

    def is_met(self, servers: np.ndarray, arrivals: np.ndarray, blocked: np.ndarray) -> np.ndarray:
        """Whether replicas of the planned speed keep the objective; ``blocked`` is their Erlang B."""
        service = self.rate(self.planned_speed)
        waiting = waits(servers, arrivals / service, blocked)
        queue = (servers, arrivals, service, waiting)
        if self.objective == MEAN_RESPONSE:
            return mean_response_s(*queue) <= self.objective_s
        tail = response_beyond if self.objective == P95_RESPONSE else wait_beyond
        return (arrivals < servers * service) & (tail(*queue, self.objective_s) <= TAIL)


@dataclass(frozen=True)
class ServicePlan:
    """What the autoscaler wanted over the whole series.

    Attributes:
        times: int64 ``[T]``, UTC seconds since 1970 at which steps begin.
        rates: float64 ``[T]``, requests per second in each step.
        replicas: int64 ``[T]``, wanted in each step; known from the rates of earlier steps alone.
    """

    spec: ServiceSpec
    step_s: int
    times: np.ndarray
    rates: np.ndarray
    replicas: np.ndarray

    @property
    def load(self) -> np.ndarray:
        """Erlangs that each step asks of one wanted replica of reference speed, float64 ``[T]``; 0 where none is wanted."""
        return np.where(self.replicas > 0, self.rates * self.spec.service_s / np.maximum(self.replicas, 1), 0.0)

    def steps(self, begin_s: int, end_s: int) -> slice:
        """The steps that touch ``[begin_s, end_s)``.

        Raises:
            InputError: the series does not cover that time.
        """
        first, stop = int(self.times[0]), int(self.times[-1]) + self.step_s
        if begin_s < first or end_s > stop:
            span = [pd.Timestamp(second, unit="s", tz="UTC").isoformat() for second in (begin_s, end_s, first, stop)]
            raise InputError(
                f"window from {span[0]} to {span[1]}",
                where=f"service '{self.spec.name}', request rates",
                allowed=f"within the series: {span[2]} to {span[3]}",
                remedy="rates of the jobs' time (start= of a trace), or shorter windows",
            )
        return slice((begin_s - first) // self.step_s, -((first - end_s) // self.step_s))


def check_rates(table: pd.DataFrame, where: str = "request rates") -> pd.DataFrame:
    """A table of request rates with times in UTC, sorted by service and time; each service has one constant step and no gap.

    ``time`` is the begin of the step in which requests come at ``requests_per_s``.

    Raises:
        InputError: a missing column or value, a negative rate, or times that are repeated or irregular.
    """
    missing = [name for name in RATE_COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=where, allowed=", ".join(RATE_COLUMNS))
    rates = pd.to_numeric(table["requests_per_s"], errors="coerce").astype(float)
    checked = pd.DataFrame(
        {"time": utc_column(table["time"], where=where), "service": table["service"].astype(str), "requests_per_s": rates}
    )
    bad = ~np.isfinite(rates) | (rates < 0)
    if bad.any():
        raise InputError(
            f"requests_per_s {table.loc[bad.idxmax(), 'requests_per_s']}, row {bad.idxmax()}", where=where, allowed="0 or more"
        )
    checked = checked.sort_values(["service", "time"], kind="stable", ignore_index=True)
    for name, rows in checked.groupby("service"):
        steps = rows["time"].diff().dropna().unique()
        if len(steps) != 1 or steps[0] <= pd.Timedelta(0) or steps[0] % pd.Timedelta(seconds=1) != pd.Timedelta(0):
            raise InputError(
                f"{len(rows)} rows with {len(steps)} different steps",
                where=f"{where}, service '{name}'",
                allowed="at least two rows and one constant step of whole seconds",
                remedy="fill gaps with the rate that was known then, or cut the series there",
            )
    return checked


def repeated(rates: pd.DataFrame, begin: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Each series said again and again, forth and back, as often as ``[begin, end)`` takes; ``rates`` as :func:`check_rates` returns it."""
    parts = []
    for _, rows in rates.groupby("service", sort=False):
        period = rows["time"].iloc[-1] + (rows["time"].iloc[1] - rows["time"].iloc[0]) - rows["time"].iloc[0]
        first = min(math.floor((begin - rows["time"].iloc[0]) / period), 0)
        last = max(math.ceil((end - rows["time"].iloc[0]) / period), 1)
        parts += [rows.assign(time=rows["time"] + turn * period) for turn in range(first, last)]
    return pd.concat(parts, ignore_index=True)


def fewest_replicas(spec: ServiceSpec, rates: np.ndarray) -> np.ndarray:
    """Fewest replicas of the planned speed that keep the objective under each rate, int64; ``max_replicas`` where that is not enough."""
    load = rates / spec.rate(spec.planned_speed)
    found = np.where(rates > 0, spec.max_replicas, 0).astype(np.int64)
    open_ = rates > 0
    blocked = np.ones(len(rates))
    for count in range(1, spec.max_replicas + 1):
        if not open_.any():
            break
        blocked = load * blocked / (count + load * blocked)
        met = open_ & spec.is_met(np.full(len(rates), count), rates, blocked)
        found[met] = count
        open_ &= ~met
    return found


def wanted_replicas(spec: ServiceSpec, rates: np.ndarray, step_s: int) -> np.ndarray:
    """Replicas that the autoscaler wants in each step, int64 ``[T]``: by the rate of the step before; only the warm ones in the first."""
    known = np.concatenate([[0.0], rates[:-1]])
    distinct, place = np.unique(known, return_inverse=True)
    wanted = np.minimum(fewest_replicas(spec, distinct)[place] + spec.warm_replicas, spec.max_replicas)
    steps = -(-spec.scale_down_delay_s // step_s)
    kept = wanted.copy()
    for back in range(1, min(steps, len(wanted) - 1) + 1):
        kept[back:] = np.maximum(kept[back:], wanted[:-back])
    return kept


def plan_services(specs: Sequence[ServiceSpec], rates: pd.DataFrame, where: str = "request rates") -> tuple[ServicePlan, ...]:
    """The autoscaler's wishes for each service; ``rates`` as :func:`check_rates` takes it.

    Raises:
        InputError: no service, two of one name, or one without a series.
    """
    if not specs:
        raise InputError("no services", where=where, allowed="at least one")
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise InputError(f"duplicate names in {names}", where="services")
    table = check_rates(rates, where)
    series: Mapping[str, pd.DataFrame] = {str(name): rows for name, rows in table.groupby("service")}
    plans = []
    for spec in specs:
        rows = series.get(spec.series or spec.name)
        if rows is None:
            raise InputError(
                f"no series '{spec.series or spec.name}'",
                where=f"{where}, service '{spec.name}'",
                allowed=", ".join(series),
                remedy="name one by series:",
            )
        times = (rows["time"].astype("int64") // 10**9).to_numpy()
        values = rows["requests_per_s"].to_numpy() * spec.rate_factor
        step_s = int(times[1] - times[0])
        plans.append(ServicePlan(spec, step_s, times, values, wanted_replicas(spec, values, step_s)))
    return tuple(plans)


def leases_of(plan: ServicePlan, begin_s: int, end_s: int) -> pd.DataFrame:
    """Leases of one service within ``[begin_s, end_s)``: ``begin_s, until_s`` (UTC seconds), in the order in which they are wanted.

    Replicas wanted already at ``begin_s`` are wanted from there on; all are released at ``end_s`` at the latest.
    """
    steps = plan.steps(begin_s, end_s)
    edges = np.maximum(plan.times[steps], begin_s)
    held: list[int] = []
    begins: list[int] = []
    untils: list[int] = []
    for at, wanted in zip(edges.tolist(), plan.replicas[steps].tolist(), strict=True):
        while len(held) > wanted:
            untils[held.pop()] = at
        for _ in range(wanted - len(held)):
            held.append(len(begins))
            begins.append(at)
            untils.append(end_s)
    return pd.DataFrame({"begin_s": begins, "until_s": untils}, dtype=np.int64)


def add_services(window: WindowTables, plans: Sequence[ServicePlan], cluster: ClusterSpec) -> WindowTables:
    """The window with the leases of all services among its jobs, their load, and a grid whose steps are no longer than those of the rates.

    Services begin with the window and end ``length_s`` later; jobs may run on after that.

    Raises:
        InputError: a series that does not cover the window, or a job that has the id of a lease.
    """
    begin_s = int(window.start.timestamp())
    end_s = begin_s + max(window.length_s, 1)
    grid = _cut_grid(window.grid, min(plan.step_s for plan in plans), window.start, end_s)
    times = np.sort(grid["time"].unique())
    columns = (pd.DatetimeIndex(times).astype("int64") // 10**9).to_numpy()
    rows, loads = [], []
    for plan in plans:
        leases = leases_of(plan, begin_s, end_s)
        rows.append(_lease_rows(plan.spec, leases))
        loads.append(pd.DataFrame({"time": times, "service": plan.spec.name, "load": _mean_load(plan, columns)}))
    table = pd.concat([part for part in rows if len(part)] or rows[:1], ignore_index=True)
    jobs = window.jobs if table.empty else _joined(window, prepare_jobs(table, cluster))
    return replace(window, jobs=jobs, grid=grid, services=pd.concat(loads, ignore_index=True))


def _lease_rows(spec: ServiceSpec, leases: pd.DataFrame) -> pd.DataFrame:
    """Canonical job rows of leases."""
    begin, until = (pd.to_datetime(leases[name], unit="s", utc=True) for name in ("begin_s", "until_s"))
    return pd.DataFrame(
        {
            "job_id": [f"replica-{spec.name}-{number:05d}" for number in range(len(leases))],
            "submit_time": begin,
            "duration_s": leases["until_s"] - leases["begin_s"],
            "gpus": spec.gpus,
            "workers": 1,
            "workload_class": "realtime_inference",
            "gpu_model": spec.gpu_model,
            "cpus": spec.cpus,
            "memory_gib": spec.memory_gib,
            "priority": spec.priority,
            "until": until,
            "service": spec.name,
            "peak_load": spec.planned_speed,
        }
    )


def _joined(window: WindowTables, leases: pd.DataFrame) -> pd.DataFrame:
    """Jobs and leases in the order of submission; columns that only jobs have are empty in leases."""
    jobs = window.jobs
    both = set(jobs["job_id"]) & set(leases["job_id"])
    if both:
        raise InputError(f"job_id '{min(both)}'", where="jobs table", allowed="ids that no replica has (replica-SERVICE-NUMBER)")
    if "archive_submit_s" in jobs:
        # Seconds from the first job of the archive, which the order F1 reads.
        first = (jobs["submit_time"].iloc[0] - window.start).total_seconds() if len(jobs) else 0.0
        zero = float(jobs["archive_submit_s"].iloc[0]) - first if len(jobs) else 0.0
        leases = leases.assign(archive_submit_s=zero + (leases["submit_time"] - window.start).dt.total_seconds())
    count = len(jobs) + len(leases)
    columns = {}
    for name in jobs.columns:
        column = jobs[name].reset_index(drop=True).reindex(range(count))
        if name in leases:
            values = leases[name].set_axis(range(len(jobs), count)).astype(jobs[name].dtype)
            column = pd.concat([jobs[name].reset_index(drop=True), values]) if len(jobs) else values
        columns[name] = column
    return pd.DataFrame(columns).sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)


def _cut_grid(grid: pd.DataFrame, step_s: int, start: pd.Timestamp, end_s: int) -> pd.DataFrame:
    """The grid with its steps cut into parts of at most ``step_s``, its last values held until ``end_s``."""
    times = pd.DatetimeIndex(grid["time"].unique()).sort_values()
    given_s = int((times[1] - times[0]).total_seconds()) if len(times) > 1 else DEFAULT_STEP_S
    most = max(1, given_s // SHORTEST_STEP_S)
    parts = next((n for n in range(-(-given_s // step_s), most + 1) if given_s % n == 0), 1)
    missing = int((pd.Timestamp(end_s, unit="s", tz="UTC") - times[-1]).total_seconds()) - 1
    table = grid
    if missing >= given_s:
        last = grid[grid["time"] == times[-1]]
        later = [last.assign(time=times[-1] + pd.Timedelta(seconds=given_s * n)) for n in range(1, missing // given_s + 1)]
        table = pd.concat([grid, *later], ignore_index=True)
    if parts > 1:
        shift = np.tile(np.arange(parts) * (given_s // parts), len(table))
        table = table.loc[table.index.repeat(parts)].reset_index(drop=True)
        table["time"] = table["time"] + pd.to_timedelta(shift, unit="s")
    return table.sort_values(["time", "site"], kind="stable", ignore_index=True)


def _mean_load(plan: ServicePlan, columns: np.ndarray) -> np.ndarray:
    """Mean load of a replica over each grid column, float64 ``[C]``; columns are UTC seconds of equal distance."""
    width = int(columns[1] - columns[0]) if len(columns) > 1 else DEFAULT_STEP_S
    edges = np.append(plan.times, plan.times[-1] + plan.step_s)
    area = np.concatenate([[0.0], np.cumsum(plan.load * plan.step_s)])
    return (np.interp(columns + width, edges, area) - np.interp(columns, edges, area)) / width
