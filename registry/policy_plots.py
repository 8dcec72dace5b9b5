"""Figures of what policies do: cost against service, a day's schedule, and where the power goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from registry.plots import INK, MUTED, PALETTE, colours, need, new_figure, styled, time_axis
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

CLASS_COLOURS: dict[str, str] = dict(zip(WORKLOAD_CLASSES, PALETTE, strict=False))
LEVEL_ALPHA = (1.0, 0.62, 0.36, 0.22)
END, START = 1, 3


@styled
def pareto(results: pd.DataFrame, *, highlight: str = "champion", x: str = "cost_usd", label: str = "cost per window, USD") -> Figure:
    """Every policy as a point of cost and SLA violations; the frontier joins those that no other beats in both.

    Args:
        results: ``policy, <x>, sla_violation_rate``, optionally more rows per policy (windows, seeds), which are averaged.
        highlight: policy drawn as a star.
    """
    need(results, ("policy", x, "sla_violation_rate"), "results")
    means = results.groupby("policy", sort=False)[[x, "sla_violation_rate"]].mean()
    figure, grid = new_figure(8.2, 4.8)
    axes = grid[0, 0]
    front = means[[_undominated(row, means) for row in means.to_numpy()]].sort_values(x)
    axes.plot(front[x], front["sla_violation_rate"], color=MUTED, lw=1, ls="--", zorder=1, label="best trade-offs")
    for name, colour in colours(list(means.index)).items():
        cost, violations = means.loc[name]
        star = name == highlight
        axes.scatter(cost, violations, color=colour, s=190 if star else 55, marker="*" if star else "o", zorder=3, label=name)
    axes.margins(0.14)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    axes.set(xlabel=label, ylabel="jobs that miss their objective", title="Cost against service (lower left is better)")
    _name_points(axes, means)
    return figure


@styled
def reserve_trade(means: pd.DataFrame, *, highlight: str = "champion", bounds: Sequence[str] = ()) -> Figure:
    """What each forecaster's warm reserve costs in kWh, against the jobs that miss their objective and the time that GPUs are waited for.

    Args:
        means: a row a forecaster: ``policy, energy_kwh, sla_violation_rate, waited_gpu_hours``.
        highlight: forecaster drawn as a star.
        bounds: names that are no forecasters, drawn as crosses.
    """
    sides = {"sla_violation_rate": "jobs that miss their objective", "waited_gpu_hours": "GPU-hours waited per window"}
    need(means, ("policy", "energy_kwh", *sides), "reserves")
    figure, grid = new_figure(13.0, 4.8, ncols=2)
    table = means.set_index("policy")
    for axes, (column, label) in zip(grid[0], sides.items(), strict=True):
        for name, colour in colours(list(table.index)).items():
            star, cross = name == highlight, name in bounds
            marker, size = ("*", 190) if star else ("X", 70) if cross else ("o", 55)
            axes.scatter(
                table.loc[name, "energy_kwh"], table.loc[name, column], color=INK if cross else colour, s=size, marker=marker, zorder=3
            )
        axes.margins(0.2, 0.25)
        axes.set(xlabel="energy per window, kWh", ylabel=label, title=f"kWh against {label.split(' per ')[0]}")
        _name_points(axes, table[["energy_kwh", column]])
    if np.ptp(table["sla_violation_rate"]) == 0:  # matplotlib would enlarge the nothing between equal rates
        grid[0, 0].set_ylim(0.0, max(2.0 * float(table["sla_violation_rate"].iloc[0]), 0.01))
    grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=2))
    return figure


def _undominated(row: np.ndarray, means: pd.DataFrame) -> bool:
    values = means.to_numpy()
    return not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()


def _name_points(axes: Axes, means: pd.DataFrame) -> None:
    """Names beside the points, each where it covers neither a point nor another name."""
    axes.figure.canvas.draw()
    points = axes.transData.transform(means.to_numpy())  # [N, 2], pixels
    dpi = axes.figure.dpi
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    for (x, y), name in zip(points, means.index, strict=True):
        width, height = 0.085 * dpi * len(str(name)), 0.16 * dpi
        spots = [(12, 0), (-12 - width, 0)] + [(-width / 2, side * step * height) for step in (1.2, 2.2, 3.2, 4.2) for side in (1, -1)]
        boxes = [(x + dx, y + dy - height / 2, x + dx + width, y + dy + height / 2) for dx, dy in spots]
        choice = next((index for index, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)), 0)
        taken.append(boxes[choice])
        line = {"arrowstyle": "-", "color": MUTED, "lw": 0.7} if choice > 3 else None
        offset = (spots[choice][0] * 72 / dpi, spots[choice][1] * 72 / dpi)
        axes.annotate(str(name), means.loc[name], xytext=offset, textcoords="offset points", va="center", fontsize=9, arrowprops=line)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@styled
def gantt(
    events: pd.DataFrame, job_classes: Mapping[int, str], *, prices: pd.DataFrame | None = None, title: str = "What ran where, and when"
) -> Figure:
    """A day's schedule: a bar a job, a section a pool, colour by class, paler at lower power levels; the price under it.

    Args:
        events: log with ``time, type, job, pool, level`` (3 = start, 1 = end, see ``envs/events.py``) and optional ``pool_name``. A job
            that has not ended is drawn to the last event.
        job_classes: workload class of each job.
        prices: ``time, price_usd_per_kwh`` and optional ``site``.
    """
    need(events, ("time", "type", "job", "pool", "level"), "events")
    bars = _bars(events)
    if bars.empty:
        raise InputError("no job starts", where="table of events")
    pools = sorted(bars["pool"].unique())
    names = events.drop_duplicates("pool").set_index("pool")["pool_name"] if "pool_name" in events else {}
    lanes = {pool: _lanes(bars[bars["pool"] == pool]) for pool in pools}
    heights = [max(max(lane) + 1, 2) for lane in lanes.values()] + ([max(3, sum(max(lane) + 1 for lane in lanes.values()) * 0.3)])
    rows = len(pools) + (prices is not None)
    ratios = heights[:rows]
    figure, grid = new_figure(10.5, min(11.0, 1.6 + 0.16 * sum(ratios)), nrows=rows, sharex=True, gridspec_kw={"height_ratios": ratios})
    for axes, pool in zip(grid[:, 0], pools, strict=False):
        _draw_bars(axes, bars[bars["pool"] == pool], lanes[pool], job_classes)
        axes.set_ylabel(str(names.get(pool, f"pool {pool}")), rotation=0, ha="right", va="center")
    if prices is not None:
        _price_strip(grid[-1, 0], prices, bars["start"].min(), bars["end"].max())
    grid[0, 0].set_title(title)
    time_axis(grid[-1, 0])
    used = [name for name in WORKLOAD_CLASSES if name in {job_classes.get(int(job)) for job in bars["job"]}]
    handles = [Patch(color=CLASS_COLOURS[name], label=name.replace("_", " ")) for name in used]
    levels = sorted(int(level) for level in bars["level"].unique())
    handles += [Patch(color=INK, alpha=_alpha(level), label="full power" if level == 0 else f"power level {level}") for level in levels]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _bars(events: pd.DataFrame) -> pd.DataFrame:
    starts = events[events["type"] == START].drop_duplicates("job")[["job", "pool", "level", "time"]].rename(columns={"time": "start"})
    ends = events[events["type"] == END].drop_duplicates("job")[["job", "time"]].rename(columns={"time": "end"})
    bars = starts.merge(ends, on="job", how="left")
    bars["end"] = bars["end"].fillna(events["time"].max())
    return bars.sort_values(["start", "job"]).reset_index(drop=True)


def _lanes(bars: pd.DataFrame) -> list[int]:
    """The first lane free at each bar's start, in order."""
    free_at: list[pd.Timestamp] = []
    lanes = []
    for start, end in zip(bars["start"], bars["end"], strict=True):
        lane = next((index for index, moment in enumerate(free_at) if moment <= start), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _alpha(level: int) -> float:
    return LEVEL_ALPHA[min(level, len(LEVEL_ALPHA) - 1)]


def _draw_bars(axes: Axes, bars: pd.DataFrame, lanes: list[int], job_classes: Mapping[int, str]) -> None:
    tints = [CLASS_COLOURS.get(job_classes.get(int(job), ""), MUTED) for job in bars["job"]]
    containers = axes.barh(lanes, bars["end"] - bars["start"], left=bars["start"], height=0.82, color=tints, lw=0)
    for bar, level in zip(containers, bars["level"], strict=True):
        bar.set_alpha(_alpha(int(level)))
    axes.set_ylim(-0.8, max(lanes) + 0.8)
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")


def _price_strip(axes: Axes, prices: pd.DataFrame, start: pd.Timestamp, end: pd.Timestamp) -> None:
    need(prices, ("time", "price_usd_per_kwh"), "prices")
    sites = prices.groupby("site", sort=False) if "site" in prices else [("price", prices)]
    for (name, rows), colour in zip(sites, (INK, PALETTE[1], PALETTE[2], PALETTE[0]), strict=False):
        shown = rows[(rows["time"] >= start - pd.Timedelta(hours=1)) & (rows["time"] <= end + pd.Timedelta(hours=1))].sort_values("time")
        axes.step(shown["time"], shown["price_usd_per_kwh"], where="post", color=colour, lw=1.3, label=str(name))
    axes.set_ylabel("USD/kWh", rotation=0, ha="right", va="center")
    if "site" in prices:
        axes.legend(loc="center left", bbox_to_anchor=(1.005, 0.5))
    axes.set_xlim(start, end)


@styled
def power_stack(power: pd.DataFrame, *, title: str = "Where the power goes", budget_kw: float | None = None) -> Figure:
    """Watts over time as stacked areas. ``power``: ``time`` and one column of watts a part (pools, or ``running``, ``idle``, ...)."""
    need(power, ("time",), "power")
    parts = [column for column in power.columns if column != "time"]
    if not parts:
        raise InputError("no parts", where="table of power", allowed="time and at least one column of watts")
    figure, grid = new_figure(10.0, 4.2)
    axes = grid[0, 0]
    table = power.sort_values("time")
    axes.stackplot(
        table["time"],
        [table[part] / 1000.0 for part in parts],
        labels=[part.removesuffix("_w").replace("_", " ") for part in parts],
        colors=[PALETTE[index % len(PALETTE)] for index in range(len(parts))],
        alpha=0.85,
        lw=0,
    )
    if budget_kw is not None:
        axes.axhline(budget_kw, color=INK, lw=1.2, ls="--", label="budget")
    axes.set(ylabel="kW", title=title)
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    time_axis(axes)
    axes.legend(*[list(reversed(entries)) for entries in axes.get_legend_handles_labels()], loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
