"""Signals that need more than forecasts: residual of the power model, realised against simulated cost; and the set of series itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.drift.blocks import Training
from models.power import PowerCurve
from pipelines.watching.settings import SeriesRules
from telemetry.errors import InputError
from telemetry.times import utc_times

OUTCOMES = ("realised_usd", "simulated_usd", "realised_missed", "simulated_missed", "jobs")


@dataclass(frozen=True)
class Seen:
    """A finding about the set of series: which rule, how bad, one line, and the series."""

    rule: str
    severity: str
    reason: str
    series: tuple[str, ...]


def block_of(times: pd.Series, block_ns: int) -> np.ndarray:
    """Number of the block that a value at its end belongs to: a block is (begin, end]."""
    return (times.to_numpy().astype("datetime64[ns]").astype(np.int64) - 1) // block_ns


def power_residual(observed: pd.DataFrame, loads: pd.DataFrame, curves: Mapping[str, PowerCurve], block_ns: int) -> pd.Series:
    """ln of measured over modelled watts by block, over all power series whose curve and load are known.

    Args:
        observed, loads: ``unique_id, ds, y``.
    """
    parts = []
    for uid, curve in curves.items():
        measured = observed[observed["unique_id"] == uid][["ds", "y"]]
        load = loads[loads["unique_id"] == curve.load_id][["ds", "y"]]
        both = measured.merge(load, on="ds", suffixes=("", "_load"))
        parts.append(
            pd.DataFrame({"block": block_of(both["ds"], block_ns), "w": both["y"], "drawn": curve.watts(both["y_load"].to_numpy())})
        )
    joined = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"block": [], "w": [], "drawn": []})
    sums = joined.groupby("block")[["w", "drawn"]].sum()
    sums = sums[(sums["w"] > 0) & (sums["drawn"] > 0)]
    return np.log(sums["w"] / sums["drawn"])


def policy_outcomes(file: Path, block_ns: int) -> pd.DataFrame:
    """``policy_cost`` (ln of realised over simulated USD) and ``policy_sla`` (missed jobs realised minus simulated, a job) by block.

    Args:
        file: Parquet or CSV with ``time`` and ``OUTCOMES``, a row per job or per any stretch of time.

    Raises:
        InputError: not readable, a column is missing, or a time is none.
    """
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {str(error).splitlines()[0]}", where=str(file)) from error
    if missing := [name for name in ("time", *OUTCOMES) if name not in table]:
        raise InputError(f"no column {', '.join(missing)}", where=str(file), allowed=", ".join(("time", *OUTCOMES)))
    times, wrong = utc_times(table["time"].astype(str))
    if wrong.any() or times.isna().any():
        row = int(np.argmax((wrong | times.isna()).to_numpy()))
        raise InputError(f"{table['time'].iloc[row]!r}", where=f"{file}, row {row + 1}, column time", allowed="UTC times")
    numbers = table[list(OUTCOMES)].apply(pd.to_numeric, errors="coerce")
    if numbers.isna().to_numpy().any():
        row = int(np.argmax(numbers.isna().any(axis=1).to_numpy()))
        raise InputError("a value that is no number", where=f"{file}, row {row + 1}", allowed=", ".join(OUTCOMES))
    sums = numbers.groupby(block_of(times.dt.tz_localize(None), block_ns)).sum()
    sums = sums[(sums[["realised_usd", "simulated_usd"]] > 0).all(axis=1) & (sums["jobs"] > 0)]
    cost = np.log(sums["realised_usd"] / sums["simulated_usd"])
    return pd.DataFrame({"policy_cost": cost, "policy_sla": (sums["realised_missed"] - sums["simulated_missed"]) / sums["jobs"]})


def look_at_series(observed: pd.DataFrame, known: set[str], training: Mapping[str, Training], rules: SeriesRules) -> list[Seen]:
    """New tenants and dead meters.

    Args:
        observed: ``unique_id, ds, y`` of late.
        known: series of the champion's training.
        training: what they were like.
    """
    day = observed[observed["ds"] > observed["ds"].max() - pd.Timedelta(days=1)]
    load = day["y"].abs().groupby(day["unique_id"]).sum()
    new = load[~load.index.isin(sorted(known))]
    share = float(new.sum() / load.sum()) if load.sum() > 0 else 0.0
    found = []
    if len(new) and share >= rules.new_share:
        names = ", ".join(map(str, new.index[:3])) + (f" and {len(new) - 3} more" if len(new) > 3 else "")
        reason = f"{len(new)} series that training did not know have {share:.0%} of the last day's load ({names})"
        found.append(Seen("new_series", rules.new_severity, reason, tuple(map(str, new.index))))
    tails = observed.sort_values("ds").groupby("unique_id")["y"]
    dead = [
        str(uid)
        for uid, values in tails
        if len(values) >= rules.dead_steps
        and np.ptp(values.to_numpy()[-rules.dead_steps :]) == 0
        and (one := training.get(str(uid))) is not None
        and one.deviation > 0
    ]
    if dead:
        names = ", ".join(dead[:3]) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
        reason = f"{len(dead)} series that moved in training have not changed for {rules.dead_steps} steps ({names})"
        found.append(Seen("dead_series", rules.dead_severity, reason, tuple(dead)))
    return found
