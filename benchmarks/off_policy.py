"""Off-policy estimates against simulated truth: how often the truth lies in the interval, bias and width, and what they leave out.

python -m benchmarks.off_policy [--replays 100] [--windows 40] [--pool 50] [--load 0.4] [--seed 1] [--model lightgbm] [--explore wide]
                                [--truth-runs 12] [--truth-share 0.3] [--truth JSON] [--traces DIR] [--out outputs/off_policy.json]

The pool: 24-hour windows of eight weeks of Philly's jobs on the two-site cluster, prices of CAISO and NYISO. A replay draws windows from it
with replacement; the look-ahead judge plays them, exploring, and logs. *Truth*: at a random share of the decisions of independent runs over
the whole pool the target's answer is forced, and the logging policy plays on with the same draws (``envs/logged_play.py``). *Throughout*:
the target itself plays the pool. *By window*: the policy is drawn anew for every window, by a fair coin; there a window is one decision,
and the truth is the pool's objective a GPU-hour asked for under the target.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.agent_data import CLUSTER, grid_of, held_out_jobs
from benchmarks.forecast_data import traces_root
from envs.cluster_io import load_cluster
from envs.exploration import Exploration, answer_features
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.logged_play import Target, forced_play, logged_play
from envs.observation import ObservationLayout
from envs.off_policy import ESTIMATES, LoggedDecisions, OverlapLimits, compare_answers, direct_model, evaluate_target
from envs.reward import RewardSpec
from envs.windows import cut_windows, prepare_jobs
from envs.world import World, build_world
from pipelines.cli import CONF_DIR
from pipelines.evaluation_report import plain
from pipelines.workspace import read_json, write_json
from registry.plots import INK, PALETTE, new_figure, styled

GRID, DAY_S, LOGGER = "CAISO+NYIS", 24 * 3600, "lookahead"
EXPLORE: dict[str, Exploration] = {
    "safe": Exploration(temperature=0.1, epsilon=0.1),
    "wide": Exploration(temperature=0.1, epsilon=0.2, within=np.inf, sla_safe=False),
}
NONE = Exploration()
TARGETS: dict[str, tuple[str, Exploration]] = {
    "lookahead": ("lookahead", NONE),
    "lookahead, T 0.03": ("lookahead", Exploration(temperature=0.03, epsilon=0.02)),
    "lookahead, T 0.3": ("lookahead", Exploration(temperature=0.3, epsilon=0.1)),
    "greedy_cost": ("greedy_cost", NONE),
    "k8s_default": ("k8s_default", NONE),
}
BY_WINDOW: tuple[str, ...] = ("greedy_cost", "threshold", "k8s_default", "planner")


def pool_of(options: argparse.Namespace) -> World:
    """The windows that replays draw from."""
    root, cluster = options.traces or traces_root(), load_cluster(CLUSTER, CONF_DIR)
    held = held_out_jobs(root, cluster, options.load)
    grid, _ = grid_of(root, GRID, tuple(site.name for site in cluster.sites))
    return build_world(cluster, cut_windows(prepare_jobs(held.jobs, cluster), grid, DAY_S, options.pool, 0, held.start, held.end))


def target_of(name: str) -> Target:
    judge, exploration = TARGETS[name]

    def probabilities(rows: np.ndarray, layout: ObservationLayout) -> np.ndarray:
        return exploration.propensities(JUDGES[judge], rows, layout)

    return probabilities


def truths(world: World, explore: Exploration, reward: RewardSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Mean logged cost over the pool, and by target the change in USD a decision, each with its standard error over runs of the pool."""
    targets, everyone = {name: target_of(name) for name in TARGETS}, np.arange(world.n_windows)
    logged, changes, decisions, objective = [], {name: [] for name in targets}, [], []
    for k in range(options.truth_runs):
        seeds = 10**6 * (1 + k) + everyone
        found = forced_play(world, everyone, JUDGES[LOGGER], explore, reward, seeds, targets, share=options.truth_share, seed=k)
        decisions.append(found.decisions.sum() / world.n_windows)
        for name, change in found.change_usd.items():
            changes[name].append(change.mean())
    for k in range(3 * options.truth_runs):
        play = logged_play(world, everyone, JUDGES[LOGGER], explore, reward, 10**6 * (1 + k) + everyone)
        logged.append(play.cost_usd.mean())
        objective.append(play.objective_usd.mean())
    known = {name: {"usd": float(np.mean(values)), "se": _se(values)} for name, values in changes.items()}
    return {
        "logged_usd": float(np.mean(logged)),
        "logged_se": _se(logged),
        "decisions_per_window": float(np.mean(decisions)),
        "objective_per_window_usd": float(np.mean(objective)),
        "change": known,
    }


def throughout(world: World, reward: RewardSpec, options: argparse.Namespace) -> dict[str, float]:
    """Objective a window when the target plays the whole pool, USD."""
    found = {}
    for name, (judge, exploration) in TARGETS.items():
        if exploration.none:
            found[name] = float(run_policy(world, JUDGES[judge], reward).objective_usd.mean())
            continue
        everyone = np.arange(world.n_windows)
        plays = [
            logged_play(world, everyone, JUDGES[judge], exploration, reward, 10**7 * (1 + k) + everyone).objective_usd.mean()
            for k in range(options.truth_runs)
        ]
        found[name] = float(np.mean(plays))
    return found


def replay(world: World, explore: Exploration, reward: RewardSpec, options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Estimates of every target from one log."""
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, world.n_windows, options.windows)
    play = logged_play(world, windows, JUDGES[LOGGER], explore, reward, rng.integers(0, 2**62, options.windows))
    features, scale = answer_features(play.rows, play.layout)
    log = LoggedDecisions(play.propensities, play.action, play.cost_usd, play.run, features, scale)
    predicted = direct_model(log, options.model, seed=seed)
    rows = []
    for name in TARGETS:
        chances = target_of(name)(play.rows, play.layout)
        found = evaluate_target(log, chances, predicted, samples=options.samples, seed=seed, refuse=False)
        row = {"target": name, "refused": "; ".join(found.overlap.refusals), "effective_share": found.overlap.effective_share}
        row |= {"unlogged": found.overlap.unlogged, "largest_weight": found.overlap.largest_weight}
        for estimate in ESTIMATES:
            for kind, intervals in (("value", found.value), ("difference", found.difference)):
                one = intervals[estimate]
                row |= {f"{kind}.{estimate}": one.mean, f"{kind}.{estimate}.low": one.low, f"{kind}.{estimate}.high": one.high}
        rows.append(row)
    return rows


def window_features(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Of each window before it begins and of what is submitted in it: log of jobs, log of GPU-hours asked for, mean price; GPU-hours."""
    jobs = world.jobs
    inside = np.arange(jobs.submit_s.shape[1]) < jobs.count[:, None]
    hours = (np.where(inside, jobs.estimate_s * jobs.workers * jobs.gpu_milli, 0) / 3.6e6).sum(axis=1)
    price = world.grid.price.mean(axis=(1, 2))
    return np.column_stack([np.log1p(jobs.count), np.log1p(hours), price]), np.maximum(hours, 1.0)


def by_window(world: World, explore: Exploration, reward: RewardSpec, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Replays in which a fair coin draws the policy of every window."""
    known, hours = window_features(world)
    everyone, found = np.arange(world.n_windows), []
    logged = np.stack(
        [
            logged_play(world, everyone, JUDGES[LOGGER], explore, reward, 10**8 * (1 + k) + everyone).objective_usd
            for k in range(options.truth_runs)
        ]
    )
    for name in BY_WINDOW:
        target = run_policy(world, JUDGES[name], reward).objective_usd
        truth, change = float(target.sum() / hours.sum()), float((target.sum() - logged.mean(axis=0).sum()) / hours.sum())
        rows = []
        for r in range(options.replays):
            rng = np.random.default_rng(10**5 * options.seed + r)
            windows = rng.integers(0, world.n_windows, options.switched)
            arm, run = rng.integers(0, 2, len(windows)), rng.integers(0, len(logged), len(windows))
            cost = np.where(arm == 1, target[windows], logged[run, windows])
            x = known[windows][:, None, :].repeat(2, axis=1)
            features = np.concatenate([x * np.array([1.0, 0.0])[:, None], x * np.array([0.0, 1.0])[:, None]], axis=2)
            features = np.concatenate([features, np.broadcast_to([[[0.0], [1.0]]], (len(windows), 2, 1))], axis=2)
            half = np.full((len(windows), 2), 0.5)
            log = LoggedDecisions(half, arm, cost, np.arange(len(windows)), features, hours[windows], hours[windows])
            wanted = np.tile([0.0, 1.0], (len(windows), 1))
            predicted = direct_model(log, "ridge", seed=r)
            limits = OverlapLimits(effective=20.0, largest=0.2)
            one = evaluate_target(log, wanted, predicted, limits=limits, samples=options.samples, seed=r, refuse=False)
            gap = compare_answers(log, predicted, 1, 0, samples=options.samples, seed=r)["snips"]
            shown = {"change": gap, **{e: one.value[e] for e in ("ips", "snips", "dr")}}
            rows.append({e: (interval.mean, interval.low, interval.high) for e, interval in shown.items()})
        entry: dict[str, Any] = {"target": name, "truth_usd": truth, "change_usd": change}
        for e in ("ips", "snips", "dr", "change"):
            means, lows, highs = (np.array([row[e][k] for row in rows]) for k in range(3))
            entry[e] = _score(means, lows, highs, change if e == "change" else truth)
        found.append(entry)
    return found


def scored(frame: pd.DataFrame, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Coverage, bias and width by target and estimate; refused replays are counted and left out."""
    found = []
    for name, group in frame.groupby("target", sort=False):
        kept = group[group["refused"] == ""]
        entry: dict[str, Any] = {"target": name, "replays": len(group), "refused": len(group) - len(kept)}
        entry |= {key: float(group[key].mean()) for key in ("effective_share", "unlogged", "largest_weight")}
        change = truth["change"][name]["usd"]
        for kind, true in (("value", truth["logged_usd"] + change), ("difference", change)):
            for estimate in ESTIMATES:
                columns = [kept[f"{kind}.{estimate}{edge}"].to_numpy() for edge in ("", ".low", ".high")]
                entry[f"{kind}.{estimate}"] = _score(*columns, true) if len(kept) else None
        found.append(entry)
    return found


@styled
def coverage_figure(found: Mapping[str, Any]) -> Figure:
    """For each target the intervals of all replays that concluded, by weights alone and doubly robust, around the truth."""
    frame = pd.DataFrame(found["replays"])
    names = [entry["target"] for entry in found["targets"] if entry["difference.dr"] is not None]
    figure, panels = new_figure(3.0 * len(names), 6.0, nrows=2, ncols=len(names), sharex="col")
    for column, name in enumerate(names):
        kept = frame[(frame["target"] == name) & (frame["refused"] == "")]
        truth = found["truth"]["change"][name]["usd"]
        for row, estimate in enumerate(("ips", "dr")):
            mean, low, high = (kept[f"difference.{estimate}{edge}"].to_numpy() for edge in ("", ".low", ".high"))
            order, panel = np.argsort(mean), panels[row, column]
            inside = (low <= truth) & (truth <= high)
            for at, k in enumerate(order):
                panel.plot([low[k], high[k]], [at, at], color=PALETTE[0] if inside[k] else PALETTE[1], linewidth=1.0)
            panel.axvline(truth, color=INK, linewidth=1.0)
            panel.set_title(f"{name}\n{estimate}: {inside.sum()} of {len(kept)}", fontsize=9)
            panel.set_yticks([])
        panels[1, column].set_xlabel("USD a decision, to the log", fontsize=9)
    return figure


def _score(means: np.ndarray, lows: np.ndarray, highs: np.ndarray, truth: float) -> dict[str, float]:
    inside = (lows <= truth) & (truth <= highs)
    return {
        "truth": truth,
        "mean": float(means.mean()),
        "bias": float(means.mean() - truth),
        "sd": float(means.std(ddof=1)) if len(means) > 1 else float("nan"),
        "width": float((highs - lows).mean()),
        "covered": float(inside.mean()),
        "inside": int(inside.sum()),
        "of": len(means),
    }


def _se(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def measure(options: argparse.Namespace, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Everything that is measured."""
    world, reward, explore = pool_of(options), RewardSpec(), EXPLORE[options.explore]
    began = time.process_time()
    truth = truths(world, explore, reward, options) if options.truth is None else read_json(options.truth)["truth"]
    progress(f"truth after {time.process_time() - began:.0f} s of one core")
    whole = throughout(world, reward, options)
    rows: list[dict[str, Any]] = []
    for r in range(options.replays):
        rows += [{"replay": r, **row} for row in replay(world, explore, reward, options, 1000 * options.seed + r)]
        if (r + 1) % 20 == 0:
            progress(f"{r + 1} replays after {time.process_time() - began:.0f} s of one core")
    gap = {
        name: {
            "first_order_usd": truth["change"][name]["usd"] * truth["decisions_per_window"],
            "first_order_se": truth["change"][name]["se"] * truth["decisions_per_window"],
            "throughout_usd": whole[name] - truth["objective_per_window_usd"],
        }
        for name in TARGETS
    }
    return {
        "explore": options.explore,
        "model": options.model,
        "windows": options.windows,
        "pool": world.n_windows,
        "load": options.load,
        "jobs_per_window": float(world.jobs.count.mean()),
        "truth": truth,
        "targets": scored(pd.DataFrame(rows), truth),
        "throughout": gap,
        "by_window": by_window(world, explore, reward, options) if options.switched else [],
        "replays": rows,
    }


def lines_of(found: Mapping[str, Any]) -> list[str]:
    """The tables."""
    truth = found["truth"]
    lines = [
        f"{found['explore']} exploration, {found['windows']} windows a replay of a pool of {found['pool']} "
        f"({found['jobs_per_window']:.0f} jobs, {truth['decisions_per_window']:.0f} decisions a window)",
        f"logged cost of a decision {truth['logged_usd']:.4f} ± {truth['logged_se']:.4f} USD",
        "",
        f"{'target':<20} {'ess %':>6} {'never %':>8} {'refused':>8}  {'estimate':<14} "
        f"{'truth':>9} {'bias':>9} {'sd':>8} {'width':>8} {'inside':>8}",
    ]
    for entry in found["targets"]:
        for kind in ("difference", "value"):
            for estimate in ESTIMATES:
                score = entry[f"{kind}.{estimate}"]
                head = f"{entry['target']:<20} {100 * entry['effective_share']:>6.1f} {100 * entry['unlogged']:>8.2f} {entry['refused']:>8}"
                if score is None:
                    lines += [head + "  no conclusion"] if (kind, estimate) == ("difference", "dm") else []
                    continue
                figures = f"{score['truth']:>9.4f} {score['bias']:>+9.4f} {score['sd']:>8.4f} {score['width']:>8.4f}"
                lines.append(f"{head}  {kind[:4]}.{estimate:<9} {figures} {score['inside']:>4}/{score['of']}")
    lines += ["", f"{'target':<20} {'first order, USD a window':>28} {'throughout':>12}"]
    for name, gap in found["throughout"].items():
        lines.append(f"{name:<20} {gap['first_order_usd']:>18.2f} ± {gap['first_order_se']:<7.2f} {gap['throughout_usd']:>12.2f}")
    if found["by_window"]:
        lines += ["", f"{'by window, USD a GPU-h':<20} {'truth':>8} {'change':>8}  {'estimate':<8} {'bias':>8} {'width':>8} {'inside':>8}"]
    for entry in found["by_window"]:
        for e in ("ips", "snips", "dr", "change"):
            score = entry[e]
            lines.append(
                f"{entry['target']:<20} {entry['truth_usd']:>8.4f} {entry['change_usd']:>+8.4f}  {e:<8} {score['bias']:>+8.4f} "
                f"{score['width']:>8.4f} {score['inside']:>4}/{score['of']}"
            )
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.off_policy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default in (("replays", 100), ("windows", 40), ("pool", 50), ("seed", 1), ("truth-runs", 12), ("samples", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--switched", type=int, default=120, help="windows of a replay in which the policy is drawn by window; 0 = none")
    parser.add_argument("--load", type=float, default=0.4, help="offered GPU-hours over those that there are")
    parser.add_argument("--truth-share", type=float, default=0.3)
    parser.add_argument("--truth", type=Path, default=None, help="take the truth from what an earlier run with the same worlds wrote")
    parser.add_argument("--model", choices=("lightgbm", "ridge", "none"), default="lightgbm")
    parser.add_argument("--explore", choices=list(EXPLORE), default="wide")
    parser.add_argument("--traces", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/off_policy.json"))
    parser.add_argument("--plot", type=Path, default=None, help="draw the intervals of all replays into this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Print and write what was measured."""
    options = parse(arguments)
    found = measure(options)
    print("\n".join(lines_of(found)))
    write_json(options.out, plain(found))
    if options.plot is not None:
        coverage_figure(found).savefig(options.plot, dpi=110)
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
