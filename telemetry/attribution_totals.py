"""Cost and carbon of attributed energy, at the price and intensity of the time, and totals by team, project, class, job and node."""

from __future__ import annotations

import numpy as np
import pandas as pd

from telemetry.energy import NS_PER_S, Grid, cut, usual_step_ns

J_PER_KWH = 3.6e6
TOTAL_COLUMNS = ("by", "name", "kwh", "share_percent", "cost_usd", "carbon_kg")
BY: tuple[str, ...] = ("kind", "site", "team", "project", "workload_class", "node")


def interval_rates(table: pd.DataFrame, grid: Grid, column: str) -> dict[str, np.ndarray]:
    """Mean of a grid column in every interval, float64 ``[T]`` by site; NaN where the table has nothing.

    Args:
        table: canonical grid rows; a value holds from its time to the next row, the last one for one usual step.
    """
    found = {}
    for site, rows in table.groupby("site", observed=True):
        rows = rows.dropna(subset=[column]).sort_values("time")
        begin = rows["time"].dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
        if not len(begin):
            continue
        value = rows[column].to_numpy(dtype=np.float64)
        step = int(usual_step_ns(np.zeros(len(begin), dtype=np.int64), begin, 1)[0]) or int(3600 * NS_PER_S)
        pieces = cut(grid, begin, np.append(begin[1:], begin[-1] + step), value, value)
        weighed, seconds = (np.bincount(pieces.interval, a, minlength=len(grid)) for a in (pieces.integral, pieces.seconds))
        whole = seconds >= 0.999 * grid.seconds
        found[str(site)] = np.divide(weighed, seconds, out=np.full(len(grid), np.nan), where=whole)
    return found


def with_costs(rows: pd.DataFrame, table: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """``rows`` of an attribution with ``cost_usd`` and ``carbon_kg``: NaN where the grid table says nothing of the site at the time."""
    t = grid.starts.get_indexer(pd.DatetimeIndex(rows["interval_start"]))
    site = rows["site"].astype(str).to_numpy()
    kwh = rows["energy_j"].to_numpy() / J_PER_KWH
    added = {}
    for name, column, scale in (("cost_usd", "price_usd_per_kwh", 1.0), ("carbon_kg", "carbon_g_per_kwh", 1e-3)):
        rate = np.full(len(rows), np.nan)
        for place, values in interval_rates(table, grid, column).items():
            here = site == place
            rate[here] = values[t[here]]
        added[name] = kwh * rate * scale
    return rows.assign(**added)


def totals(rows: pd.DataFrame, by: tuple[str, ...] = BY) -> pd.DataFrame:
    """kWh, USD and kg by each column of ``by``: ``TOTAL_COLUMNS``, largest first within a column.

    Energy that belongs to no job has the name of its kind in brackets: ``[idle]``; a job that lacks the label, ``[no team]``. So the
    names of each column sum to the whole. USD and kg are of the rows that have a price; NaN where none has.
    """
    whole = rows["energy_j"].sum()
    parts = [_by(rows, column, whole) for column in by]
    return pd.concat(parts, ignore_index=True)[list(TOTAL_COLUMNS)]


def _by(rows: pd.DataFrame, column: str, whole: float) -> pd.DataFrame:
    name = rows[column].astype(str)
    if column not in ("kind", "site", "node"):
        kind = rows["kind"].astype(str)
        name = name.where(kind == "job", "[" + kind + "]")
        name = name.where(name != "", f"[no {column.replace('_', ' ')}]")
    sums = rows[["energy_j", "cost_usd", "carbon_kg"]].groupby(name.to_numpy()).sum(min_count=1)
    sums = sums.sort_values("energy_j", ascending=False)
    return pd.DataFrame(
        {
            "by": column,
            "name": sums.index,
            "kwh": sums["energy_j"].to_numpy() / J_PER_KWH,
            "share_percent": 100 * sums["energy_j"].to_numpy() / whole if whole > 0 else 0.0,
            "cost_usd": sums["cost_usd"].to_numpy(),
            "carbon_kg": sums["carbon_kg"].to_numpy(),
        }
    )


def job_totals(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per job (or pod without one): ``job_id, pod_uid, team, project, workload_class, kwh, cost_usd, carbon_kg``, largest first.

    ``pod_uid`` is blank where no pod, or more than one, is known.
    """
    jobs = rows[(rows["kind"] == "job").to_numpy()]
    key = jobs["job_id"].astype(str).where(jobs["job_id"].astype(str) != "", "pod " + jobs["pod_uid"].astype(str)).to_numpy()
    text = jobs[["job_id", "pod_uid", "team", "project", "workload_class"]].astype(str)
    first = text.groupby(key).first()
    pods = text["pod_uid"].where(text["pod_uid"] != "").groupby(key)
    first["pod_uid"] = pods.first().fillna("").where(pods.first() == pods.last(), "")
    sums = jobs[["energy_j", "cost_usd", "carbon_kg"]].groupby(key).sum(min_count=1)
    table = first.assign(kwh=sums["energy_j"] / J_PER_KWH, cost_usd=sums["cost_usd"], carbon_kg=sums["carbon_kg"])
    return table.sort_values("kwh", ascending=False, kind="stable").reset_index(drop=True)
