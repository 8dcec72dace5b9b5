"""``python -m pipelines.fit_power``: power curves of GPUs and nodes from the lake's telemetry."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from envs.power.boards import load_boards
from envs.power.curves import load_curves, points_of
from envs.power.fit import LEVELS, U_BINS, DeviceFit, fit_models
from envs.power.fitted_curves import class_ratios, fitted_rows, level_rows
from envs.power.node_fit import NodeFit, fit_nodes
from envs.power.readings import IDLE_U, Board, step_minutes
from pipelines.cli import hydra_command
from pipelines.fit_power_plot import curve_figure
from pipelines.ingest import LakeConfig
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.ingest import load_inventory
from telemetry.inventory import Inventory
from telemetry.lake import Lake
from telemetry.power_pairs import POWER, Pairs, node_pairs, pair_samples

GRID = np.linspace(0.0, 1.0, 21)
LEAST_READINGS = 30
SAMPLE_COLUMNS = ["time", "metric", "value", "node", "device", "pod_uid"]


@dataclass(frozen=True)
class FitPowerConfig:
    """The command's keys; see ``--help``."""

    lake: LakeConfig
    inventory: str
    out: str
    boards: str | None = None
    curves: str | None = None
    like: Mapping[str, str] = field(default_factory=dict)
    start: str | None = None
    end: str | None = None
    min_minutes: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_minutes < float("inf"):
            raise InputError(f"{self.min_minutes}", where="min_minutes", allowed="0 or more minutes")


@dataclass(frozen=True)
class PowerFits:
    """What was fitted: models, nodes by pool, the curve table, and models that were refused with the reason."""

    devices: dict[str, DeviceFit]
    nodes: dict[str, NodeFit]
    curves: pd.DataFrame
    refused: dict[str, str]
    pairs: Pairs


def fit_power(config: FitPowerConfig) -> PowerFits:
    """Fit all models that have enough readings.

    Raises:
        InputError: nothing to fit, a model whose board or speeds are not known, or bad files.
    """
    lake, inventory = Lake(config.lake.root), load_inventory(Path(config.inventory))
    known, boards = load_curves(config.curves), load_boards(config.boards)
    samples = lake.table("samples", config.start, config.end, SAMPLE_COLUMNS)
    if not (samples["metric"].astype(str) == POWER).any():
        raise InputError(f"no {POWER} samples", where=config.lake.root, remedy="python -m pipelines.ingest stores them")
    jobs = lake.table("jobs", columns=["job_id", "workload_class", "pool", "duration_s", "gpus", "workers"])
    models = {name: node.gpu_model for name, node in inventory.nodes.items()}
    pairs = pair_samples(samples, models, jobs)
    tables = {str(model): rows.reset_index(drop=True) for model, rows in pairs.table.groupby("model", sort=True)}
    refused = {model: why for model, rows in tables.items() if (why := _too_little(rows, config.min_minutes))}
    unpaired = f"no reading has both watts and utilisation; {config.min_minutes:g} device minutes in use are needed"
    refused |= dict.fromkeys(sorted(set(models.values()) - {""} - set(tables)), unpaired)
    tables = {model: rows for model, rows in tables.items() if model not in refused}
    if not tables:
        told = "; ".join(f"{model}: {why}" for model, why in refused.items()) or "the inventory names no GPU model"
        raise InputError(told, where=config.lake.root, remedy="ingest more, or lower min_minutes")
    for model in sorted(set(tables) - set(boards)):
        remedy = "give boards=FILE with the limit of its data sheet"
        raise InputError(f"no limit of GPU model '{model}'", where="boards", allowed=", ".join(boards), remedy=remedy)
    likes = {model: str(config.like.get(model, model)) for model in tables}
    ratios = {model: _ratios(known, likes[model], boards, jobs, inventory, model) for model in tables}
    fits = fit_models(tables, boards, ratios, config.seed)
    source = lake.data_hash()[:12]
    curves = pd.concat([fitted_rows(fit, known, likes[model], f"lake {source}") for model, fit in fits.items()], ignore_index=True)
    points_of(curves, "fitted curves")
    return PowerFits(fits, _nodes(samples, fits, inventory), curves, refused, pairs)


def _too_little(rows: pd.DataFrame, least_minutes: float) -> str:
    """Why a model is refused, or ''."""
    used = rows[rows["utilization"] > IDLE_U]
    minutes = len(used) * step_minutes(rows)
    need = max(least_minutes, LEAST_READINGS * step_minutes(rows))
    if minutes < need:
        return f"{minutes:.0f} device minutes in use, {need:.0f} needed: {need - minutes:.0f} more"
    return ""


def _ratios(
    known: pd.DataFrame, like: str, boards: Mapping[str, Board], jobs: pd.DataFrame, inventory: Inventory, model: str
) -> dict[str, float]:
    level_rows(known, like, WORKLOAD_CLASSES[0])  # says which models have speeds
    pools = {node.pool for node in inventory.nodes.values() if node.gpu_model == model}
    own = jobs[jobs["pool"].isin(pools)]
    own = own if len(own) else jobs
    hours = (own["duration_s"] * own["gpus"] * own["workers"] / 3600.0).groupby(own["workload_class"].astype(str)).sum()
    return class_ratios(known, like, boards.get(like, boards[model]), {str(kind): float(value) for kind, value in hours.items()})


def _nodes(samples: pd.DataFrame, fits: Mapping[str, DeviceFit], inventory: Inventory) -> dict[str, NodeFit]:
    """Node fits by pool, of pools whose GPU model was fitted and whose nodes have a meter."""
    pools: dict[str, list[str]] = {}
    for name, info in inventory.nodes.items():
        if info.gpu_model in fits:
            pools.setdefault(info.pool, []).append(name)
    found = {}
    for pool, names in sorted(pools.items()):
        table = node_pairs(samples[samples["node"].astype(str).isin(names)])
        fit = fit_nodes(table, fits[inventory.nodes[names[0]].gpu_model].base_w)
        if fit is not None:
            found[pool] = fit
    return found


def report(fits: PowerFits) -> dict[str, Any]:
    """Everything that was fitted, as plain types."""
    devices = {}
    for model, fit in fits.devices.items():
        low, high = fit.curve_band(GRID)
        classes = {}
        for kind in WORKLOAD_CLASSES:
            band = fit.curve_band(np.ones(1), np.inf, kind)[:, 0]
            classes[kind] = {"watts": float(fit.watts(1.0, kind=kind)), "band": band.tolist(), "readings": fit.class_rows.get(kind, 0)}
        devices[model] = {
            "limit_w": fit.board.limit_w, "idle_w": fit.idle_w, "context_w": fit.context_w, "lag_readings": fit.lag_steps,
            "cap": asdict(fit.cap), "readings": fit.rows, "device_minutes": fit.minutes, "devices": fit.devices,
            "utilization": GRID.tolist(), "watts": fit.watts(GRID).tolist(), "watts_low": low.tolist(), "watts_high": high.tolist(),
            "shape_weights": {"mix": list(fit.mix.shape.weights), "classes": list(fit.classes.shape.weights)},
            "full_use": classes,
            "reading_error": {"levels": list(LEVELS), "utilization_bins": U_BINS.tolist(), "relative": fit.rest.tolist()},
        }  # fmt: skip
    nodes = {pool: asdict(node) for pool, node in fits.nodes.items()}
    return {"devices": devices, "pools": nodes, "refused": fits.refused, "left_out_readings": dict(fits.pairs.dropped)}


def summary(fits: PowerFits) -> str:
    """The figures as text."""
    head = f"{'model':<10}{'readings':>9}{'minutes':>9}{'idle W':>8}{'context':>8}{'at 50 %':>9}{'at 100 %':>9}  {'curve 5-95 %':<16}"
    lines = [f"{head}reading 5-95 %"]
    for model, fit in fits.devices.items():
        low, high = fit.curve_band(np.ones(1))[:, 0]
        least, most = fit.quantiles(np.ones(1))[0, [0, -1]]
        lines.append(
            f"{model:<10}{fit.rows:>9,}{fit.minutes:>9,.0f}{fit.idle_w:>8.1f}{fit.context_w:>8.1f}{float(fit.watts(0.5)):>9.1f}"
            f"{float(fit.watts(1.0)):>9.1f}  {f'{low:.1f} .. {high:.1f}':<16}{least:.0f} .. {most:.0f}"
        )
    for pool, node in fits.nodes.items():
        lines.append(
            f"pool {pool}: node idle {node.node_idle_w:.1f} W, {node.cpu_w_per_gpu:.1f} W per GPU in use, loss {node.loss:.3f}, "
            f"error {node.mape:.2f} % on left-out blocks"
        )
    lines += [f"refused: {model}: {why}" for model, why in fits.refused.items()]
    lines += [f"left out: {count:,} readings, {why}" for why, count in fits.pairs.dropped.items()]
    return "\n".join(lines)


def write_fits(fits: PowerFits, out: Path) -> list[Path]:
    """``curves.csv``, ``report.json`` and a picture of each model, each written whole."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "curves.csv", out / "report.json"]
    _replace(files[0], fits.curves.to_csv(index=False).encode())
    _replace(files[1], (json.dumps(report(fits), indent=1) + "\n").encode())
    for model, fit in fits.devices.items():
        figure = curve_figure(fit, fits.pairs.table[fits.pairs.table["model"] == model])
        path = out / f"power_{re.sub(r'[^A-Za-z0-9._-]', '_', model)}.png"
        fresh = path.with_name(f".{path.name}.new")
        figure.savefig(fresh, dpi=110, format="png")
        os.replace(fresh, path)
        files.append(path)
    return files


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    os.replace(fresh, path)


def config_of(cfg: DictConfig | Mapping[str, Any]) -> FitPowerConfig:
    """The typed configuration. Raises `InputError`."""
    raw: Any = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
    like = raw["like"] or {}
    if not isinstance(like, Mapping):
        raise InputError(f"{like!r}", where="like", allowed="{MODEL: KNOWN}")
    for key, kind in (("min_minutes", (int, float)), ("seed", int)):
        if isinstance(raw[key], bool) or not isinstance(raw[key], kind):
            raise InputError(f"{raw[key]!r}", where=key, allowed="a number")
    text = {key: None if raw[key] is None else str(raw[key]) for key in ("boards", "curves", "start", "end")}
    if raw["inventory"] is None:
        raise InputError("no file", where="inventory", allowed="a JSON file that says which GPU model a node has")
    return FitPowerConfig(
        lake=LakeConfig(str(raw["lake"]["root"])), inventory=str(raw["inventory"]), out=str(raw["out"]),
        like={str(k): str(v) for k, v in like.items()}, min_minutes=float(raw["min_minutes"]), seed=int(raw["seed"]), **text,
    )  # fmt: skip


@hydra_command("fit_power")
def main(cfg: DictConfig) -> int:
    """Fit, print, write."""
    config = config_of(cfg)
    fits = fit_power(config)
    print(summary(fits))
    print("written: " + ", ".join(str(path) for path in write_fits(fits, Path(config.out))))
    return 1 if fits.refused else 0


if __name__ == "__main__":
    main()
