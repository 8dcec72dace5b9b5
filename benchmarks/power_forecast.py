"""Power forecasts of every level: direct, conditional on load, blended and reconciled, against persistence and the better naive.

python -m benchmarks.power_forecast [--traces DIR] [--sets philly helios mlperf] [--member lightgbm] [--out FILE.json]

set      what its watts are
philly   REPLAYED: jobs of four Philly virtual clusters in our simulator, measured V100 curves; GPU, host, node, pool, site
helios   REPLAYED: running GPUs of eight Helios virtual clusters through the measured V100 curve; pool, site
mlperf   MEASURED: node meters of MLPerf training runs, 10 s; node, site (the sum of a run's nodes); see benchmarks.power_mlperf

Columns: WQL, SQL, share within [q10, q90]; peak and ramp error of the median path (``models.metrics``); with *, of the median of the
window's own peak and ramp distribution (``models.peaks``), the WQL of that peak; Brier scores of the probability that a step, and (*) any
step of the window, passes a cap: just below the 0.9 quantile of the series before the first calibration origin, and for mlperf the middle
between idle and active watts of earlier runs, times nodes. ``climate`` says the share that was seen every time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.forecast_data import traces_root
from benchmarks.power_mlperf import mlperf_case
from benchmarks.power_reconcilers import WAYS, Case
from benchmarks.power_scores import Q, levels_in, lines_of, ratios_by_level, score_levels
from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from models.backtest_scores import BacktestResult
from models.hierarchy import Hierarchy
from models.metrics import coverage80, wql
from models.power import PowerCurve, PowerModel, level_of
from pipelines.stages.real_traces import HELIOS, replayed_power, replayed_power_curves, replayed_power_parents
from pipelines.stages.replayed_levels import replayed_bounds, replayed_curves, replayed_levels
from telemetry.readers.public_traces import read_helios_demand

FREQ, HORIZON = "10min", 18
CONFIG = BacktestConfig(horizon=HORIZON, origins=24, calibration_origins=12, season_length=144)
CAP_QUANTILE = 0.9
CAP_BELOW = 0.005  # of the range: replayed watts take few values, and a cap that is one of them is passed by a rounding


def replayed_case(root: Path, name: str, member: str) -> dict[str, Any]:
    """Scores on a replayed trace."""
    if name == "philly":
        levels, load = replayed_levels(root, FREQ)
        power, parents, curves, bounds = levels.frame, levels.parents, replayed_curves(levels), replayed_bounds(levels)
    else:
        power, load = replayed_power(root / HELIOS, FREQ), read_helios_demand(root / HELIOS, freq=FREQ)[0]
        parents, (curves, bounds) = replayed_power_parents(power), replayed_power_curves(root / HELIOS)
    span = max(power["ds"].min(), load["ds"].min()), min(power["ds"].max(), load["ds"].max())
    power, load = (frame[frame["ds"].between(*span)] for frame in (power, load))
    options = {"bounds": {uid: list(pair) for uid, pair in bounds.items()}}
    own = {"threads": 1} if member == "lightgbm" else {}
    members = {member: {**options, **own}, "empirical_persistence": {**options, "condition": "none"}}
    direct = run_backtest(power, FREQ, members, CONFIG)
    loads = run_backtest(load, FREQ, {member: own}, CONFIG)
    return evaluate(direct, loads.scores[member].forecasts, power, load, member, parents, curves, bounds)


def evaluate(
    direct: BacktestResult,
    loads: pd.DataFrame,
    power: pd.DataFrame,
    load: pd.DataFrame,
    member: str,
    parents: dict[str, str],
    curves: dict[str, PowerCurve],
    bounds: dict[str, tuple[float, float]],
) -> dict[str, Any]:
    """Scores of all forecasts by level, and of ways to reconcile them; what is learned is learned on calibration origins."""
    frames = {name: scored.forecasts for name, scored in {**direct.reference_scores, **direct.scores}.items()}
    past, test = (frames[member][frames[member]["part"] == part].reset_index(drop=True) for part in ("calibration", "test"))
    begun = time.perf_counter()
    model = PowerModel.fit(past, loads, power, load, curves=curves, parents=parents, bounds=bounds, horizon=HORIZON)
    fitted = time.perf_counter()
    final = model.apply(test, loads, power, load)
    seconds = {"fit_s": fitted - begun, "apply_s": time.perf_counter() - fitted, "apply_rows": len(test)}
    variants = {name: (f[f["part"] == "calibration"], f[f["part"] == "test"]) for name, f in frames.items()}
    given = {part: model.conditional(frame, loads, power, load) for part, frame in (("past", past), ("test", test))}
    variants["conditional"] = (_filled(past, given["past"]), _filled(test, given["test"]))
    variants["blended"] = (model.blend(past, given["past"]), model.blend(test, given["test"]))
    variants["reconciled"] = (model.reconciler.apply(variants["blended"][0]), final)
    before = power[power["ds"] <= past["issued_at"].min()]
    seen = before.groupby("unique_id")["y"]
    caps = (seen.quantile(CAP_QUANTILE) - CAP_BELOW * (seen.max() - seen.min())).to_dict()
    settings = {"scales": direct.scales, "caps": caps, "bounds": bounds, "horizon": HORIZON}
    naive = variants[direct.reference][1]
    hierarchy = Hierarchy.of(parents, list(test["unique_id"].unique()))
    return {
        "reference": direct.reference,
        "origins": direct.n_origins,
        "series": len(hierarchy.ids),
        "seconds": seconds,
        "shares": {level: share.tolist() for level, share in model.shares.items()},
        "scores": {name: score_levels(*pair, **settings) for name, pair in variants.items()},
        "ratio_to_reference": {name: ratios_by_level(variants[name][1], naive) for name in (member, "blended", "reconciled")},
        "reconcilers": _reconcilers(*variants["blended"], final, hierarchy),
    }


def _filled(direct: pd.DataFrame, conditional: Any) -> pd.DataFrame:
    """Conditional quantiles, direct ones where there are none."""
    known = ~pd.isna(conditional).any(axis=1)
    out = direct.copy()
    out.loc[known, Q] = conditional[known]
    return out


def _reconcilers(past: pd.DataFrame, test: pd.DataFrame, final: pd.DataFrame, hierarchy: Hierarchy) -> dict[str, Any]:
    """WQL and coverage by level, and the largest incoherence of medians in W, for every way to reconcile."""
    cases = [Case(frame.dropna(subset=["y"]), hierarchy) for frame in (past, test)]
    results = {}
    for name, way in {**WAYS, "ours": None}.items():
        begun = time.perf_counter()
        try:
            frame = final if way is None else cases[1].with_quantiles(way(*cases))
        except Exception as error:  # a way that cannot be used here is a result too
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
            continue
        medians = Case(frame.dropna(subset=["y"]), hierarchy).quantiles[..., 4]
        by_level = {level: frame[frame["unique_id"].map(level_of) == level] for level in levels_in(frame)}
        results[name] = {
            "wql": {level: wql(own["y"].to_numpy(), own[Q].to_numpy()) for level, own in by_level.items()},
            "coverage80": {level: coverage80(own["y"].to_numpy(), own[Q].to_numpy()) for level, own in by_level.items()},
            "median_incoherence_w": float(abs(hierarchy.incoherence(medians)).max()),
            "seconds": time.perf_counter() - begun,
        }
    return results


def print_case(name: str, result: dict[str, Any]) -> None:
    """One set's tables."""
    what = "MEASURED" if name == "mlperf" else "REPLAYED"
    print(f"\n== {name} ({what}): {result['series']} series, {result['origins']} test origins; better naive: {result['reference']}")
    print("\n".join(lines_of(result["scores"])))
    for forecast, ratios in result["ratio_to_reference"].items():
        told = ", ".join(f"{level} {r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}]" for level, r in ratios.items())
        print(f"WQL against {result['reference']}: {forecast}: {told}")
    for level, share in result["shares"].items():
        print(f"share of the conditional forecast, {level}: " + ", ".join(f"{value:.2f}" for value in share) + " (near, middle, far)")
    for way, row in result.get("reconcilers", {}).items():
        if "failed" in row:
            print(f"{way:24s}{row['failed'][:100]}")
            continue
        told = "".join(f"  {level} {row['wql'][level]:.4f} ({row['coverage80'][level]:.2f})" for level in row["wql"])
        print(f"{way:24s}{told}  medians off by up to {row['median_incoherence_w']:.2g} W; {row['seconds']:.1f} s")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value.item() if hasattr(value, "item") else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=traces_root(), help="trace folder")
    parser.add_argument("--sets", nargs="+", default=["philly", "helios", "mlperf"], choices=["philly", "helios", "mlperf"])
    parser.add_argument("--member", default="lightgbm", help="forecaster of the direct power and of the load")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/power_forecast.json"), help="JSON file for the results")
    options = parser.parse_args()
    results = {}
    for name in options.sets:
        results[name] = (
            mlperf_case(options.traces, options.member) if name == "mlperf" else replayed_case(options.traces, name, options.member)
        )
        print_case(name, results[name])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(_plain(results), indent=1) + "\n")
    os.replace(temporary, options.out)
    print(f"\nwritten: {options.out}")


if __name__ == "__main__":
    main()
