"""Power across levels in the main job: what belongs to what, the curves, and the step that makes the champion's forecasts agree.

Stage ``features`` writes the facts (``power.json``: parents and curves), stage ``forecasters`` learns a ``models.power.PowerModel`` on the
calibration origins of its own backtest and scores it on the test origins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.cluster import ClusterSpec
from envs.power.curves import levels_for
from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig, OriginPlan, plan_origins
from models.base import QUANTILE_COLUMNS
from models.distribution import MIDDLE, exceedance_probability
from models.hierarchy import Hierarchy, parents_of_places
from models.metrics import coverage80, peak_error, ramp_error, wql
from models.peaks import Paths, brier_score, reliability, window_scores, window_table
from models.power import PowerCurve, PowerModel, level_of
from models.series import default_season_length
from models.series_store import SeriesStore, frame_batches, read_store
from pipelines.config import PowerConfig
from pipelines.workspace import read_json, write_json
from registry.power_plots import power_levels_figure
from registry.tracking import Run

FACTS_FILE, PARTS_FILE = "power.json", "series_power_parts.parquet"
PART_MEMBER = "empirical_persistence"
FOLDER = "levels"
CAPPED_LEVELS = ("pool", "site")
Q = list(QUANTILE_COLUMNS)


# ---------------------------------------------------------------- stage features


def cluster_curves(cluster: ClusterSpec, parents: Mapping[str, str], ids: Sequence[str]) -> dict[str, PowerCurve]:
    """Curve of each pool of the cluster on its ``gpu_demand``, and of each of its nodes as an equal share of the pool.

    An active GPU is taken at the mean of the workload classes at full power; what the mix of a site draws instead is in the gain that is
    learned (``models.power``).
    """
    curves: dict[str, PowerCurve] = {}
    for pool in cluster.pools:
        uid, load = f"power/pool/{pool.name}", f"gpu_demand/{pool.name}"
        active_w = float(levels_for(pool.gpu_model, (1.0,), cluster.curve_table)[1].mean())
        idle_w = pool.node_idle_w + pool.gpus_per_node * pool.gpu_idle_w
        per_gpu_w, gpus = active_w - pool.gpu_idle_w + pool.cpu_w_per_gpu, float(pool.nodes * pool.gpus_per_node)
        of_node = PowerCurve(load, idle_w, per_gpu_w / pool.nodes, gpus)
        curves[uid] = PowerCurve(load, pool.nodes * idle_w, per_gpu_w, gpus)
        curves |= {child: of_node for child, parent in parents.items() if parent == uid}
    return {uid: curve for uid, curve in curves.items() if uid in set(ids)}


def write_power_facts(out: Path, parents: Mapping[str, str], curves: Mapping[str, PowerCurve]) -> None:
    """What stage ``forecasters`` needs to know of power series beside their bounds."""
    write_json(out / FACTS_FILE, {"parents": dict(parents), "curves": {uid: asdict(curve) for uid, curve in curves.items()}})


def lake_power_facts(samples: pd.DataFrame, cluster: ClusterSpec, series: pd.DataFrame) -> tuple[dict[str, str], dict[str, PowerCurve]]:
    """Parents by the inventory that the samples carry, curves by the cluster."""
    ids = [str(uid) for uid in series["unique_id"].unique()]
    parents = parents_of_places(samples[["node", "pool", "site"]].astype(str).drop_duplicates(), ids)
    return parents, cluster_curves(cluster, parents, ids)


def part_bounds(parts: pd.DataFrame, cluster: ClusterSpec) -> dict[str, list[float | None]]:
    """Bounds in W of GPUs of the cluster's nodes (off, and the strongest class at full power) and of hosts (nothing, open)."""
    most = {pool.name: float(levels_for(pool.gpu_model, (1.0,), cluster.curve_table)[1].max()) for pool in cluster.pools}
    of_node = {f"{pool.name}-{index:04d}": most[pool.name] for pool in cluster.pools for index in range(pool.nodes)}
    ids = [str(uid) for uid in parts["unique_id"].unique()]
    return {uid: [0.0, of_node.get(uid.split("/")[2]) if uid.startswith("power/gpu/") else None] for uid in ids}


# ---------------------------------------------------------------- stage forecasters


def shared_plan(series: Mapping[str, pd.DataFrame], freq: str, config: BacktestConfig) -> OriginPlan | None:
    """Origins at the same times for all targets, so that one's forecast can be conditional on another's; None where that cannot be.

    It is the plan of the target with the shortest history, if all end at the same time.
    """
    if len(series) < 2:
        return None
    stores = [_store(frame, freq) for frame in series.values()]
    if len({int(store.ends_ns.max()) for store in stores}) > 1:
        return None
    plans = [own_plan(store, freq, config) for store in stores]
    if any(plan.align != "time" for plan in plans):
        return None
    spans = [int(store.ends_ns.max()) - int(store.starts_ns.min()) for store in stores]
    return plans[int(np.argmin(spans))]


def _store(frame: pd.DataFrame, freq: str) -> SeriesStore:
    return read_store(frame_batches(frame), freq)


def own_plan(store: SeriesStore, freq: str, config: BacktestConfig) -> OriginPlan:
    """The plan that a backtest of these series makes for itself."""
    return plan_origins(store, config, config.season_length or default_season_length(freq))


def _served(folder: Path) -> pd.DataFrame:
    """Forecasts of what was chosen to serve, at all origins."""
    forecasts = pd.read_parquet(folder / "forecasts.parquet")
    return forecasts[forecasts["model"] == read_json(folder / "champion.json")["name"]]


def caps_of(config: PowerConfig, before: pd.DataFrame) -> dict[str, float]:
    """Cap in W by series: the configured one, else a quantile of the history of each pool and site."""
    own = before[before["unique_id"].map(level_of).isin(CAPPED_LEVELS)]
    usual = own.groupby("unique_id")["y"].quantile(config.cap_quantile).to_dict()
    return {str(uid): float(cap_w) for uid, cap_w in {**usual, **config.caps_w}.items()}


def _with_parts(direct: pd.DataFrame, parts: pd.DataFrame, freq: str, backtest: BacktestConfig, plan: OriginPlan) -> pd.DataFrame:
    """Forecasts of the parts of nodes at the same origins below those of the nodes; none where their history ends at another time."""
    walked = run_backtest(parts, freq, {PART_MEMBER: {"condition": "none"}}, backtest, plan=plan).scores[PART_MEMBER].forecasts
    issues = direct.groupby("origin")["issued_at"].max()
    if walked.empty or not walked.groupby("origin")["issued_at"].max().eq(issues).all():
        return direct
    return pd.concat([direct, walked], ignore_index=True)


def reconcile_power(
    out: Path,
    features: Path,
    bounds: dict[str, list[float]],
    config: PowerConfig,
    backtest: BacktestConfig,
    freq: str,
    plan: OriginPlan | None,
) -> dict[str, Any]:
    """Learn and score the power model; writes ``model.json``, ``forecasts.parquet``, ``windows.parquet`` and ``scores.json`` to
    ``out/power/levels``, and returns the scores.

    Args:
        out: folder of stage ``forecasters`` with ``power/`` and, for conditional forecasts, ``workload/``.
        features: folder of stage ``features``.
        backtest, freq, plan: as the target ``power`` was backtested.
    """
    horizon = backtest.horizon
    facts = read_json(features / FACTS_FILE)
    power = pd.read_parquet(features / "series_power.parquet")
    direct = _served(out / "power")
    parts = pd.read_parquet(features / PARTS_FILE) if config.parts and (features / PARTS_FILE).exists() else power[:0]
    if len(parts):
        direct = _with_parts(direct, parts, freq, backtest, plan or own_plan(_store(power, freq), freq, backtest))
        power = pd.concat([power, parts], ignore_index=True)
    past, test = (direct[direct["part"] == part].reset_index(drop=True) for part in ("calibration", "test"))
    loads, load = None, None
    if config.conditional and (out / "workload").exists():
        loads, load = _served(out / "workload"), pd.read_parquet(features / "series_workload.parquet")
    model = PowerModel.fit(
        past,
        loads,
        power,
        load,
        curves={uid: PowerCurve(**curve) for uid, curve in facts["curves"].items()},
        parents=facts["parents"],
        bounds=bounds,
        horizon=horizon,
    )
    given = {"calibration": model.conditional(past, loads, power, load), "test": model.conditional(test, loads, power, load)}
    blended = model.blend(test, given["test"])
    final = model.reconciler.apply(blended)
    calibrated = model.reconciler.apply(model.blend(past, given["calibration"])) if len(past) else past
    before = power[power["ds"] <= direct["issued_at"].min()]
    limits = {uid: (-np.inf if low is None else low, np.inf if high is None else high) for uid, (low, high) in bounds.items()}
    paths = Paths.fit(calibrated, horizon)  # over all levels: a site by itself has too few past windows to learn from
    windows = window_table(final, paths, caps_of(config, before), limits)
    scores = level_scores({"direct": test, "blended": blended, "reconciled": final}, windows, facts["parents"], limits)
    scores["shares"] = {level: share.tolist() for level, share in model.shares.items()}
    folder = out / "power" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "model.json", model.to_json())
    write_json(folder / "scores.json", scores)
    final.to_parquet(folder / "forecasts.parquet")
    windows.to_parquet(folder / "windows.parquet")
    return scores


def level_scores(
    variants: Mapping[str, pd.DataFrame], windows: pd.DataFrame, parents: Mapping[str, str], limits: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """Scores by level, coherence before and after, and how well passing a cap was foretold.

    Args:
        variants: ``direct``, ``blended`` and ``reconciled`` forecasts of the same rows.
        windows: of the reconciled ones (``models.peaks.window_table``).
    """
    levels: dict[str, Any] = {}
    for level in sorted(set(variants["direct"]["unique_id"].map(level_of))):
        own = {name: frame[frame["unique_id"].map(level_of) == level] for name, frame in variants.items()}
        of_level = windows[windows["unique_id"].map(level_of) == level]
        levels[level] = {
            "wql": {name: wql(f["y"].to_numpy(), f[Q].to_numpy()) for name, f in own.items()},
            "coverage80": {name: coverage80(f["y"].to_numpy(), f[Q].to_numpy()) for name, f in own.items()},
            "peak_error": {name: peak_error(f) for name, f in own.items()},
            "ramp_error": {name: ramp_error(f) for name, f in own.items()},
            "window": window_scores(of_level),
        }
    caps = {
        str(uid): _cap_scores(rows, variants["reconciled"], limits) for uid, rows in windows.dropna(subset=["cap"]).groupby("unique_id")
    }
    known = windows.dropna(subset=["p_exceed", "exceeded"])
    return {
        "levels": levels,
        "incoherence_w": {name: _incoherence_w(variants[name], parents) for name in ("direct", "reconciled")},
        "caps": caps,
        "reliability": reliability(known["p_exceed"].to_numpy(), known["exceeded"].to_numpy(dtype=float)).to_dict("records"),
    }


def _incoherence_w(frame: pd.DataFrame, parents: Mapping[str, str]) -> dict[str, float]:
    """Mean and largest absolute difference in W between the median of a parent and the sum of those of its children."""
    hierarchy = Hierarchy.of(parents, [str(uid) for uid in frame["unique_id"].unique()])
    if not hierarchy.n_parents:
        return {"mean": 0.0, "largest": 0.0}
    table = frame.pivot_table(index=["origin", "ds"], columns="unique_id", values=Q[MIDDLE], aggfunc="first")
    gaps = np.abs(hierarchy.incoherence(table[list(hierarchy.ids)].dropna().to_numpy()))
    return {"mean": float(gaps.mean()), "largest": float(gaps.max())} if gaps.size else {"mean": 0.0, "largest": 0.0}


def _cap_scores(windows: pd.DataFrame, final: pd.DataFrame, limits: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """How well the passing of one series' cap was foretold, by step and by window; ``climate``: always saying the share that was seen."""
    uid, cap_w = str(windows["unique_id"].iloc[0]), float(windows["cap"].iloc[0])
    rows = final[final["unique_id"] == uid]
    limit = limits.get(uid, (-np.inf, np.inf))[1]
    probability, happened = exceedance_probability(rows[Q].to_numpy(), cap_w, limit=limit), rows["y"].to_numpy() > cap_w
    known = windows.dropna(subset=["exceeded"])
    seen = known["exceeded"].to_numpy(dtype=float)
    return {
        "cap_w": cap_w,
        "share_of_steps": float(happened.mean()),
        "mean_probability": float(probability.mean()),
        "brier": brier_score(probability, happened),
        "climate": float(happened.mean() * (1 - happened.mean())),
        "share_of_windows": float(seen.mean()) if len(seen) else float("nan"),
        "mean_window_probability": float(known["p_exceed"].mean()),
        "window_brier": brier_score(known["p_exceed"].to_numpy(), seen),
        "window_climate": float(seen.mean() * (1 - seen.mean())) if len(seen) else float("nan"),
    }


def log_power_levels(run: Run, folder: Path, series: pd.DataFrame) -> None:
    """Metrics and the figure of the levels on the target's run."""
    scores = read_json(folder / "scores.json")
    metrics = {f"coherence/{name}_{key}_w": v for name, row in scores["incoherence_w"].items() for key, v in row.items()}
    for level, row in scores["levels"].items():
        for metric in ("wql", "coverage80", "peak_error", "ramp_error"):
            metrics |= {f"{level}/{metric}_{name}": value for name, value in row[metric].items()}
        metrics |= {f"{level}/window_{name}": value for name, value in row["window"].items()}
    for uid, row in scores["caps"].items():
        metrics |= {f"cap/{uid.removeprefix('power/')}/{name}": value for name, value in row.items()}
    run.log_metrics(metrics)
    run.log_text((folder / "scores.json").read_text(), "power_levels.json")
    figure = power_levels_figure(series, pd.read_parquet(folder / "forecasts.parquet"), pd.read_parquet(folder / "windows.parquet"), scores)
    run.log_figure(figure, "power_levels")
