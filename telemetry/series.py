"""Series for the forecasters, cut from the canonical tables: ``unique_id, ds, y`` on a regular grid.

``ds`` is the END of a bin, tz-naive UTC: the bin of ``ds`` is ``(ds - freq, ds]``, so ``y`` is known at ``ds``. Nothing later than ``ds``
enters a row: no backward fill, no centred window, no statistic over the whole series.

============== ======================================= =========================================================================
target         unique_id                               y
============== ======================================= =========================================================================
gpu_demand     ``gpu_demand/<pool>``                   GPUs held by running plus asked for by waiting jobs at ``ds``: the sum of
                                                       gpus x workers over jobs with submit_time <= ds < end_time (or no end)
request_rate   ``request_rate/<service>``              mean requests per second in the bin, from the counters' rates
power          ``power/node/<node>``,                  mean watts in the bin: the node's own meter (IPMI); for a node that has none
               ``power/pool/<pool>``,                  in the whole table, the sum of its GPUs' watts. Pool and site are sums of
               ``power/site/<site>``                   their nodes' rows, defined where all of them are
============== ======================================= =========================================================================

A bin without a sample takes the last value for at most ``max_fill_steps`` bins; a longer gap stays out of the frame. Both are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from telemetry.errors import InputError

FAMILIES: dict[str, tuple[str, ...]] = {"workload": ("gpu_demand", "request_rate"), "power": ("power",)}
TARGETS: tuple[str, ...] = tuple(target for targets in FAMILIES.values() for target in targets)
METRICS_NEEDED: dict[str, str] = {"request_rate": "http.server.request.rate", "power": "hw.power"}
SEPARATOR = "\x1f"  # joins node and device; pandas cuts a string at a NUL when it hashes it
GPU_BOARD = r"gpu[^/]+"  # not its MIG instances, nor processors, supplies and PDUs, whose watts lie within or above a node's
COUNT_COLUMNS = ("unique_id", "rows", "filled", "missing", "measure")


@dataclass(frozen=True)
class SeriesConfig:
    """How series are cut: width of a bin, and how many empty bins in a row take the last value."""

    freq: str = "10min"
    max_fill_steps: int = 6

    def __post_init__(self) -> None:
        if self.max_fill_steps < 0:
            raise InputError(f"{self.max_fill_steps}", where="max_fill_steps", allowed="0 or more")
        try:
            step = pd.Timedelta(self.freq)
        except ValueError as error:
            raise InputError(f"{self.freq!r}", where="freq", allowed="a width such as 1min, 10min, 1h") from error
        if not step > pd.Timedelta(0) or pd.Timedelta(days=1) % step != pd.Timedelta(0):
            raise InputError(f"{self.freq!r}", where="freq", allowed="a width that divides a day")

    @property
    def step(self) -> pd.Timedelta:
        return pd.Timedelta(self.freq)


@dataclass(frozen=True)
class SeriesResult:
    """Series, and what was done about empty bins.

    Attributes:
        frame: ``unique_id`` (str), ``ds`` (datetime64[ns], UTC without zone), ``y`` (float), sorted, without NaN.
        counts: per ``unique_id``: ``rows``, ``filled`` and ``missing`` bins, and ``measure`` (what y was measured by).
    """

    frame: pd.DataFrame
    counts: pd.DataFrame


def targets_of(names: Sequence[str]) -> tuple[str, ...]:
    """Targets of families (``workload``, ``power``) and targets.

    Raises:
        InputError: an unknown name.
    """
    chosen: list[str] = []
    for name in names:
        if name not in FAMILIES and name not in TARGETS:
            raise InputError(f"unknown target '{name}'", where="target", allowed=", ".join((*FAMILIES, *TARGETS)))
        chosen += [t for t in FAMILIES.get(name, (name,)) if t not in chosen]
    return tuple(chosen)


def cut_series(
    names: Sequence[str], samples: pd.DataFrame | None, jobs: pd.DataFrame | None, config: SeriesConfig | None = None
) -> SeriesResult:
    """Series of targets or families.

    Args:
        samples: canonical samples; needed by ``request_rate`` and ``power``.
        jobs: canonical jobs; needed by ``gpu_demand``.

    Raises:
        InputError: an unknown target, or no data at all for the targets asked for.
    """
    config = config or SeriesConfig()
    parts: list[SeriesResult] = []
    for target in targets_of(names):
        if target == "gpu_demand":
            parts.append(gpu_demand(jobs, config) if jobs is not None and len(jobs) else _nothing())
        else:
            metric = METRICS_NEEDED[target]
            own = samples[samples["metric"] == metric] if samples is not None and len(samples) else None
            cut = {"request_rate": request_rate, "power": power}[target]
            parts.append(cut(own, config) if own is not None and len(own) else _nothing())
    result = _joined(parts)
    if result.frame.empty:
        raise InputError(
            f"nothing to cut {', '.join(names)} from",
            where="lake",
            allowed="jobs for gpu_demand; request counters for request_rate; hw.power for power",
            remedy="ingest an export that holds it",
        )
    return result


def gpu_demand(
    jobs: pd.DataFrame, config: SeriesConfig, *, start: pd.Timestamp | None = None, end: pd.Timestamp | None = None
) -> SeriesResult:
    """GPUs wanted per pool; see the module. Jobs without a pool are together in ``gpu_demand/all``.

    Args:
        start, end: first and last ``ds``; by default the first bin that begins after the first submission, and the last that ends at or
            before the last submission of all jobs: beyond it the export knows no arrivals, and demand would seem to fade.
    """
    step = config.step
    submit = _naive(jobs["submit_time"])
    first = submit.min().floor(step) + step if start is None else _naive_time(start)
    last = submit.max().floor(step) if end is None else _naive_time(end)
    if last < first:
        return _nothing()
    grid = pd.date_range(first, last, freq=step)
    edges = grid.to_numpy()
    wanted = (jobs["gpus"] * jobs["workers"]).to_numpy(dtype=float)
    # The first ds at or after submission counts the job; the first ds at or after its end no longer does.
    enter = np.searchsorted(edges, submit.to_numpy(), side="left")
    leave = np.where(jobs["end_time"].isna(), len(edges), np.searchsorted(edges, _naive(jobs["end_time"]).to_numpy(), side="left"))
    pools = jobs["pool"].astype(object).where(jobs["pool"].notna(), "all").to_numpy()
    parts = []
    for pool in sorted(set(pools)):
        own = pools == pool
        change = np.zeros(len(edges) + 1)
        np.add.at(change, np.minimum(enter[own], len(edges)), wanted[own])
        np.add.at(change, np.minimum(leave[own], len(edges)), -wanted[own])
        # Sums of shares of a GPU: rounding keeps 0.1 + 0.2 - 0.3 at 0.
        values = pd.Series(np.round(np.cumsum(change)[:-1], 6), index=grid)
        parts.append(_long(f"gpu_demand/{pool}", values, 0, 0, "jobs"))
    return _joined(parts)


def request_rate(samples: pd.DataFrame, config: SeriesConfig) -> SeriesResult:
    """Requests per second and service; see the module."""
    binned = _bins(samples, samples["service"].astype(str), config)
    return _joined([_filled(f"request_rate/{name}", binned[name], config, "counter") for name in binned])


def power(samples: pd.DataFrame, config: SeriesConfig) -> SeriesResult:
    """Watts per node, pool and site; see the module."""
    node = samples["node"].astype(str)
    meter = (samples["device"] == "").to_numpy()
    metered = set(node[meter].unique())
    by_gpu = _of_gpu(samples) & ~node.isin(metered).to_numpy()
    wide: dict[str, pd.Series] = {}
    parts: list[SeriesResult] = []
    if meter.any():
        binned = _bins(samples[meter], node[meter], config)
        wide |= {name: binned[name] for name in binned}
    if by_gpu.any():
        device = node[by_gpu] + SEPARATOR + samples.loc[by_gpu, "device"].astype(str)
        binned = _bins(samples[by_gpu], device, config)
        for name in sorted(set(node[by_gpu])):
            own = [column for column in binned if column.startswith(name + SEPARATOR)]
            wide[name] = binned[own].sum(axis=1, min_count=len(own))
    nodes: dict[str, pd.Series] = {}
    for name in sorted(wide):
        measure = "node_meter" if name in metered else "gpu_sum"
        parts.append(_filled(f"power/node/{name}", wide[name], config, measure))
        nodes[name] = parts[-1].frame.set_index("ds")["y"]
    if not nodes:
        return _nothing()
    frame = pd.DataFrame(nodes)
    frame = frame.reindex(pd.date_range(frame.index.min(), frame.index.max(), freq=config.step))
    places = samples[["node", "pool", "site"]].astype(str).drop_duplicates()
    for level in ("pool", "site"):
        for place, rows in places[places[level] != ""].groupby(level, sort=True):
            own = [name for name in frame if name in set(rows["node"])]
            total = frame[own].sum(axis=1, min_count=len(own))
            known = total.loc[total.first_valid_index() : total.last_valid_index()]
            parts.append(_long(f"power/{level}/{place}", known.dropna(), 0, int(known.isna().sum()), "sum_of_nodes"))
    return _joined(parts)


def power_parts(samples: pd.DataFrame, power_frame: pd.DataFrame, config: SeriesConfig) -> SeriesResult:
    """What nodes are made of: ``power/gpu/<node>/<device>``, and ``power/host/<node>``, what a node's meter reads beyond its GPUs.

    A node is the sum of its parts wherever all of them are known. A node that has no meter is the sum of its GPUs and has no host.

    Args:
        samples: ``hw.power`` samples.
        power_frame: the series that :func:`power` cut from them.
    """
    of_device = samples[_of_gpu(samples)]
    if of_device.empty:
        return _nothing()
    node = of_device["node"].astype(str)
    binned = _bins(of_device, node + SEPARATOR + of_device["device"].astype(str), config)
    whole = power_frame.set_index("ds").groupby("unique_id")["y"]
    metered = set(samples.loc[(samples["device"] == "").to_numpy(), "node"].astype(str))
    parts: list[SeriesResult] = []
    for name in sorted(set(node)):
        columns = [column for column in binned if column.startswith(name + SEPARATOR)]
        gpus = [_filled(f"power/gpu/{column.replace(SEPARATOR, '/')}", binned[column], config, "gpu") for column in columns]
        parts += gpus
        if name in metered:
            total = pd.concat([gpu.frame.set_index("ds")["y"] for gpu in gpus], axis=1).sum(axis=1, min_count=len(gpus))
            host = (whole.get_group(f"power/node/{name}") - total).dropna()
            parts.append(_long(f"power/host/{name}", host, 0, 0, "node_meter_less_gpus"))
    return _joined(parts)


def _of_gpu(samples: pd.DataFrame) -> np.ndarray:
    """Which rows are a GPU board's, bool [R]."""
    return samples["device"].astype(str).str.fullmatch(GPU_BOARD).to_numpy(dtype=bool)


def _bins(samples: pd.DataFrame, names: pd.Series, config: SeriesConfig) -> pd.DataFrame:
    """Mean per bin: index = bin ends from the first to the last sample, one column per name, NaN where empty."""
    ends = _naive(samples["time"]).dt.ceil(config.freq)
    points = pd.DataFrame({"ds": ends, "name": names, "value": samples["value"]})
    table = points.pivot_table(index="ds", columns="name", values="value", aggfunc="mean")
    return table.reindex(pd.date_range(table.index[0], table.index[-1], freq=config.step))


def _fill(values: pd.Series, config: SeriesConfig) -> pd.Series:
    """Last value carried forward over gaps of at most ``max_fill_steps`` bins; of a longer gap, its first bins."""
    return values.ffill(limit=config.max_fill_steps) if config.max_fill_steps else values


def _filled(unique_id: str, values: pd.Series, config: SeriesConfig, measure: str) -> SeriesResult:
    own = values.loc[values.first_valid_index() : values.last_valid_index()]
    full = _fill(own, config)
    missing = int(full.isna().sum())
    return _long(unique_id, full.dropna(), int(own.isna().sum()) - missing, missing, measure)


def _long(unique_id: str, values: pd.Series, filled: int, missing: int, measure: str) -> SeriesResult:
    frame = pd.DataFrame({"unique_id": unique_id, "ds": values.index.to_numpy(), "y": values.to_numpy(dtype=float)})
    counts = pd.DataFrame([(unique_id, len(frame), filled, missing, measure)], columns=list(COUNT_COLUMNS))
    return SeriesResult(frame, counts)


def _joined(parts: Sequence[SeriesResult]) -> SeriesResult:
    parts = [part for part in parts if len(part.counts)]
    if not parts:
        return _nothing()
    frame = pd.concat([part.frame for part in parts], ignore_index=True).sort_values(["unique_id", "ds"], kind="stable", ignore_index=True)
    frame["ds"] = frame["ds"].astype("datetime64[ns]")
    return SeriesResult(frame, pd.concat([part.counts for part in parts], ignore_index=True))


def _nothing() -> SeriesResult:
    frame = pd.DataFrame({"unique_id": pd.Series(dtype=object), "ds": pd.Series(dtype="datetime64[ns]"), "y": pd.Series(dtype=float)})
    return SeriesResult(frame, pd.DataFrame(columns=list(COUNT_COLUMNS)))


def _naive(times: pd.Series) -> pd.Series:
    return times.dt.tz_convert("UTC").dt.tz_localize(None)


def _naive_time(time: pd.Timestamp) -> pd.Timestamp:
    return time.tz_convert("UTC").tz_localize(None) if time.tzinfo else time
