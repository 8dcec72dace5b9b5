"""An agent and the judges on public grids and loads that training never saw: objective, USD, kWh, kg and missed objectives.

python -m benchmarks.agent [--agent FOLDER] [--policies k8s_default lookahead ...] [--grids CAISO NYIS ...] [--loads light heavy]
                           [--windows 50] [--seeds 3] [--window-hours 48] [--bound none] [--traces DIR] [--out outputs/agent.json]

Every cell (grid x load) plays all policies through the same windows of held-out weeks, each to its end, and compares them with
``k8s_default`` and with the best judge of that cell, chosen on the data shown, by paired differences with 95 % intervals over windows.
``--agent`` names the folder of an exported agent (``agent/policy`` of a training run). Grids and loads: ``benchmarks/agent_data.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.agent_data import CLUSTER, GRIDS, LOADS, grid_of, held_out_jobs
from benchmarks.forecast_data import traces_root
from envs.agent.policy import AgentPolicy
from envs.cluster_io import load_cluster
from envs.evaluate import evaluate, paired_difference, summarise
from envs.heuristics import FORESIGHTED, JUDGES
from envs.reward import RewardSpec
from envs.state import Policy
from envs.windows import cut_windows, prepare_jobs
from envs.world import build_world
from pipelines.against import CHOSEN, best_judge
from pipelines.bounded import BOUNDS, bound_ratios, with_bounds
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import differences_json, plain
from pipelines.workspace import write_json
from telemetry.errors import InputError

BASELINE = "k8s_default"
SHOWN = ("objective_usd", "cost_usd", "energy_kwh", "carbon_kg", "sla_violation_rate")


def policies_of(names: list[str], agent: Path | None) -> dict[str, Policy]:
    """Judges by name with the baseline first, and the agent of a folder."""
    known = {**JUDGES, **FORESIGHTED}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"no judge '{unknown[0]}'", where="--policies", allowed=", ".join(known), remedy="--agent FOLDER for an agent")
    policies: dict[str, Policy] = {name: known[name] for name in dict.fromkeys([BASELINE, *names])}
    if agent is not None:
        policies["agent"] = AgentPolicy.load(agent)
    return policies


def cell(root: Path, grid: str, load: str, policies: Mapping[str, Policy], options: argparse.Namespace) -> dict[str, Any]:
    """One grid under one load."""
    began = time.perf_counter()
    cluster, reward = load_cluster(CLUSTER, CONF_DIR), RewardSpec()
    held = held_out_jobs(root, cluster, LOADS[load])
    table, notes = grid_of(root, grid, tuple(site.name for site in cluster.sites))
    jobs, length_s = prepare_jobs(held.jobs, cluster), round(options.window_hours * 3600)
    seeds = range(options.seeds)
    worlds = {seed: build_world(cluster, cut_windows(jobs, table, length_s, options.windows, seed, held.start, held.end)) for seed in seeds}
    frame = evaluate(worlds, policies, list(seeds), reward=reward)
    best = best_judge(frame)
    found: dict[str, Any] = {
        "months": held.months,
        "jobs": len(held.jobs),
        "offered_load": held.offered,
        "notes": notes,
        "best_judge": best,
        "summary": summarise(frame).to_dict("index"),
        "to_k8s_default": differences_json(paired_difference(frame, BASELINE)),
        "to_best_judge": differences_json(paired_difference(frame, best)),
    }
    if options.bound != "none":
        bounded = with_bounds(frame, worlds, reward, options.bound, policies.values())
        found["bound"] = bound_ratios(bounded).to_dict("index")
    return {**found, "seconds": time.perf_counter() - began}


def lines_of(grid: str, load: str, found: Mapping[str, Any]) -> list[str]:
    """The table of one cell."""
    head = f"{grid}, {load} load ({found['offered_load']:.2f} of the GPUs, {found['jobs']:,} jobs, {', '.join(found['months'])})"
    titles = f"{'objective':>10} {'USD':>9} {'kWh':>8} {'kg':>8} {'missed %':>9}"
    lines = [
        "",
        head + "".join(f"; {note}" for note in found["notes"]),
        f"  {'policy':<16} {titles}  {'objective to ' + BASELINE:<28} {'to best judge, ' + found['best_judge']:<28}"
        + ("  over bound" if "bound" in found else ""),
    ]
    for name, means in found["summary"].items():
        values = f"{means['objective_usd']:>10.2f} {means['cost_usd']:>9.2f} {means['energy_kwh']:>8.1f} {means['carbon_kg']:>8.1f}"
        compared = [_relative(found[to].get(name, {}).get("objective_usd")) for to in ("to_k8s_default", "to_best_judge")]
        ratio = f"  {found['bound'][name]['ratio']:.3f}" if "bound" in found else ""
        lines.append(f"  {name:<16} {values} {100 * means['sla_violation_rate']:>9.2f}  {compared[0]:<28} {compared[1]:<28}{ratio}")
    return lines


def _relative(row: Mapping[str, float] | None) -> str:
    if row is None:
        return "-"
    interval = f"[{100 * row['relative_low']:+.1f}, {100 * row['relative_high']:+.1f}]" if np.isfinite(row["relative_low"]) else ""
    return f"{100 * row['relative']:+.1f} % {interval}"


def overall(cells: Mapping[str, Mapping[str, Any]], policies: Mapping[str, Policy]) -> pd.DataFrame:
    """Geometric mean over cells of each policy's objective relative to ``k8s_default`` and to the best judge of the cell."""
    rows = []
    for name in policies:
        ratios = [
            [
                found["summary"][name]["objective_usd"] / found["summary"][other]["objective_usd"]
                for other in (BASELINE, found["best_judge"])
            ]
            for found in cells.values()
        ]
        to_default, to_judge = np.exp(np.mean(np.log(ratios), axis=0)) - 1 if (np.array(ratios) > 0).all() else (np.nan, np.nan)
        rows.append({"policy": name, "to_k8s_default": to_default, "to_best_judge": to_judge})
    return pd.DataFrame(rows).set_index("policy")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agent", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--agent", type=Path, help="folder of an exported agent")
    parser.add_argument("--policies", nargs="+", default=list(JUDGES), metavar="NAME", help=f"judges: {', '.join((*JUDGES, *FORESIGHTED))}")
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--loads", nargs="+", default=list(LOADS), choices=list(LOADS))
    parser.add_argument("--windows", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--window-hours", type=float, default=48.0)
    parser.add_argument("--bound", choices=BOUNDS, default="none")
    parser.add_argument("--traces", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/agent.json"))
    options = parser.parse_args(arguments)
    for name in ("windows", "seeds", "window_hours"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Print a table for every cell and one over all, and write JSON after each cell."""
    options = parse(arguments)
    root = options.traces or traces_root()
    try:
        policies = policies_of(options.policies, options.agent)
        cells: dict[str, Any] = {}
        for grid in options.grids:
            for load in options.loads:
                cells[f"{grid}, {load}"] = cell(root, grid, load, policies, options)
                print("\n".join(lines_of(grid, load, cells[f"{grid}, {load}"])), flush=True)
                about = {"windows": options.windows, "seeds": options.seeds, "window_hours": options.window_hours, "cluster": CLUSTER}
                means = overall(cells, policies)
                record = {**about, "judge_chosen": CHOSEN, "cells": cells, "geometric_means": means.to_dict("index")}
                write_json(options.out, plain(record))
    except InputError as error:
        print(f"error: {error}")
        return 2
    print(f"\ngeometric mean of the objective over {len(cells)} cells, relative to (the best judge of each cell: {CHOSEN})")
    print((100 * means).to_string(float_format=lambda value: f"{value:+.1f} %"))
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
