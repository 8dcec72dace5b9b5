"""How good a forecast of a new series is by the length of its history: ``python -m benchmarks.cold_start [--data ...] [--out FILE]``.

Two ways to be new:

- ``joined``: the series is held out, the forecaster is fitted on the other series' first part and follows them; at an issue time t the new
  series comes in by one ``update`` with its last L rows, as if it had begun L rows before. In ``sample_power`` whole pools are held out, so
  that a node type is new and not only a node.
- ``alone``: the forecaster is fitted at t on the last L rows of all series and nothing else, as in a cluster that has just begun.

Everything known at t is at or before t, for the other series too. Loss is compared with the better of persistence and seasonal naive on the
same rows, given the same L rows; coverage is that of q10 to q90.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.cold_start_chart import draw
from benchmarks.cold_start_data import DATA_SETS, PUBLIC, YoungData, load_data
from benchmarks.forecast_data import traces_root
from models.backtest import NAIVES
from models.backtest_plan import coprime_step
from models.base import QUANTILE_COLUMNS, Forecaster
from models.catalog import FORECASTERS, make_forecaster
from models.metrics import bootstrap_ratio, quantile_loss, score
from models.series import default_season_length, seasonal_scale
from pipelines.cli import quiet_libraries
from pipelines.workspace import write_json
from telemetry.errors import InputError

FREQ = "10min"
STEP = pd.Timedelta(FREQ)
LENGTHS = (1, 2, 6, 18, 72, 144, 432, 1008)
MODES = ("joined", "alone")
Q = list(QUANTILE_COLUMNS)


@dataclass(frozen=True)
class Plan:
    """What to run; ``folds`` is the number of parts of the series, each held out once."""

    horizon: int = 18
    issue_times: int = 8
    folds: int = 3
    lengths: tuple[int, ...] = LENGTHS
    modes: tuple[str, ...] = MODES
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def make(self, name: str) -> Forecaster:
        return make_forecaster(name, freq=FREQ, horizon=self.horizon, **self.options.get(name, {}))


def issue_times(data: YoungData, plan: Plan) -> pd.DatetimeIndex:
    """Times spread over the second half, a step apart that shares no factor with the day, and late enough for the longest history."""
    first, last = data.frame["ds"].min(), data.frame["ds"].max()
    rows = int((last - first) / STEP) + 1
    begin, end = max(rows // 2, max(plan.lengths)), rows - plan.horizon - 1
    if end <= begin:
        raise InputError(f"{rows} rows of history", where=data.name, allowed=f"more than {begin + plan.horizon} rows")
    step = coprime_step(max(1, (end - begin) // max(1, plan.issue_times - 1)), default_season_length(FREQ))
    at = end - step * np.arange(plan.issue_times)[::-1]
    return first + at[at >= begin] * STEP


def last_rows(frame: pd.DataFrame, at: pd.Timestamp, rows: int) -> pd.DataFrame:
    """The rows of the last ``rows`` grid points up to ``at``."""
    return frame[(frame["ds"] <= at) & (frame["ds"] > at - rows * STEP)]


def joined(name: str, data: YoungData, plan: Plan, times: pd.DatetimeIndex) -> Iterator[pd.DataFrame]:
    """Forecasts of held-out series that come in by ``update``."""
    for held in data.folds(plan.folds):
        new = data.frame["unique_id"].isin(held)
        others, young = data.frame[~new], data.frame[new]
        forecaster, known = plan.make(name).fit(others[others["ds"] <= times[0]]), times[0]
        for at in times:
            forecaster.update(others[(others["ds"] > known) & (others["ds"] <= at)])
            known = at
            for rows in plan.lengths:
                forecast = copy.deepcopy(forecaster).update(last_rows(young, at, rows)).predict()
                yield forecast[forecast["unique_id"].isin(held) & (forecast["issued_at"] == at)].assign(length=rows)


def alone(name: str, data: YoungData, plan: Plan, times: pd.DatetimeIndex) -> Iterator[pd.DataFrame]:
    """Forecasts of forecasters fitted on short histories."""
    for at in times[:: max(1, len(times) // 4)]:
        for rows in plan.lengths:
            forecast = plan.make(name).fit(last_rows(data.frame, at, rows)).predict()
            yield forecast[forecast["issued_at"] == at].assign(length=rows)


def forecasts_of(name: str, mode: str, data: YoungData, plan: Plan) -> pd.DataFrame:
    """All forecasts of one forecaster with what came."""
    parts = {"joined": joined, "alone": alone}[mode](name, data, plan, issue_times(data, plan))
    return pd.concat(parts, ignore_index=True).merge(data.frame[["unique_id", "ds", "y"]], on=["unique_id", "ds"])


def summary(rows: pd.DataFrame, naive: pd.DataFrame, scales: dict[str, float]) -> dict[str, float]:
    """Metrics of one forecaster at one length, and its WQL against the better naive with a 95 % bootstrap interval over issue times."""
    numbers = score(rows, scales)
    ours, theirs = (
        pd.Series(quantile_loss(r["y"].to_numpy(), r[Q].to_numpy()), index=r["issued_at"].to_numpy()).groupby(level=0).sum()
        for r in (rows, naive)
    )
    ratio, low, high = bootstrap_ratio(ours.to_numpy(), theirs.reindex(ours.index).to_numpy(), draws=1000)
    base = score(naive, scales)["sql"]
    return {**numbers, "wql_ratio": ratio, "wql_ratio_low": low, "wql_ratio_high": high, "sql_ratio": numbers["sql"] / base}


def run_data(name: str, members: list[str], plan: Plan, traces: Path, made: Path) -> dict[str, Any]:
    """Result of one data set: ``{mode: {length: {"naive": name, "forecasters": {name: metrics}}}}`` and its size."""
    data = load_data(name, traces, made)
    times = issue_times(data, plan)
    before = data.frame[data.frame["ds"] <= times[0]].groupby("unique_id")["y"]
    scales = {str(uid): seasonal_scale(y.to_numpy(), default_season_length(FREQ)) for uid, y in before}
    result: dict[str, Any] = {"series": len(scales), "rows": len(data.frame), "issue_times": len(times), "seconds": {}}
    for mode in plan.modes:
        rows = {}
        for member in tqdm([*NAIVES, *[m for m in members if m not in NAIVES]], desc=f"{name} {mode}", leave=False):
            begun = time.perf_counter()
            rows[member] = forecasts_of(member, mode, data, plan)
            result["seconds"][f"{mode}/{member}"] = round(time.perf_counter() - begun, 1)
        result[mode] = {str(length): _at_length(rows, length, scales) for length in plan.lengths}
    return result


def _at_length(rows: dict[str, pd.DataFrame], length: int, scales: dict[str, float]) -> dict[str, Any]:
    at = {member: table[table["length"] == length] for member, table in rows.items()}
    naive = min(NAIVES, key=lambda member: score(at[member], scales)["wql"])
    return {"naive": naive, "forecasters": {member: summary(table, at[naive], scales) for member, table in at.items()}}


def table_lines(results: dict[str, dict[str, Any]], plan: Plan) -> list[str]:
    """WQL against the better naive / coverage of q10 to q90, by rows of history."""
    lines = []
    for name, result in results.items():
        for mode in plan.modes:
            lines.append(f"{name}, {mode}: {result['series']} series, {result['issue_times']} issue times; WQL / better naive, coverage80")
            lines.append(f"{'rows of history':<24}" + "".join(f"{length:>13}" for length in plan.lengths))
            for member in result[mode][str(plan.lengths[0])]["forecasters"]:
                cells = [result[mode][str(length)]["forecasters"][member] for length in plan.lengths]
                lines.append(f"{member:<24}" + "".join(f"{c['wql_ratio']:>8.3f} {c['coverage80']:.2f}" for c in cells))
            lines.append("")
    return lines


def main() -> None:
    """Run, print the table, write JSON and chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help=f"comma-separated, of {', '.join(DATA_SETS)}; default all that are there")
    parser.add_argument("--forecasters", default=",".join(n for n in FORECASTERS if n not in ("arima", "prophet")))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--issue-times", type=int, default=Plan.issue_times)
    parser.add_argument("--folds", type=int, default=Plan.folds)
    parser.add_argument("--options", type=json.loads, default={}, help='JSON, as in {"lightgbm": {"n_estimators": 60}}')
    parser.add_argument("--traces", type=Path, default=traces_root())
    parser.add_argument("--out", type=Path, default=Path("outputs/cold_start.json"))
    parser.add_argument("--chart", type=Path, default=None, help="PNG; default beside --out")
    args = parser.parse_args()
    quiet_libraries()
    plan = Plan(issue_times=args.issue_times, folds=args.folds, modes=tuple(args.modes.split(",")), options=args.options)
    names = args.data.split(",") if args.data else [n for n in DATA_SETS if n not in PUBLIC or args.traces.is_dir()]
    chart = args.chart or args.out.with_suffix(".png")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for name in names:  # written after each, so that an interrupted run has shown what it did
        results[name] = run_data(name, args.forecasters.split(","), plan, args.traces, args.out.parent / "made")
        print("\n".join(table_lines({name: results[name]}, plan)), flush=True)
        write_json(args.out, {"horizon": plan.horizon, "lengths": plan.lengths, "data": results})
        draw(results, plan.lengths, plan.modes).savefig(chart, dpi=130)
    print(f"wrote {args.out} and {chart}")


if __name__ == "__main__":
    main()
