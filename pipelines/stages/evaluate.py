"""Stage ``evaluate``: agent, judges and the serving champion on windows that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from envs.agent.policy import AgentPolicy
from envs.breakdown import Breakdown
from envs.evaluate import evaluate, paired_difference
from envs.events import events_frame
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.replay.page import page_of
from envs.state import Policy
from envs.world import World
from pipelines.bounded import bound_ratios, with_bounds
from pipelines.config import TrainConfig
from pipelines.replay import replay
from pipelines.setting import some_windows
from pipelines.stages.agent import part_world
from pipelines.stages.context import StageContext
from pipelines.stages.policy_plots import policy_figures
from pipelines.stages.reserve import log_reserves, run_reserves
from pipelines.workspace import fingerprint, write_json
from registry.gates import skill_interval
from registry.loading import VerificationError, load_policy
from registry.promotion import champion_version
from telemetry.classes import WORKLOAD_CLASSES

POLICY_MODEL = "scheduling-policy"
TEST_SEED = 1000


def test_worlds(config: TrainConfig, features: Path) -> dict[int, World]:
    """One world per evaluation seed over the held-out span."""
    seeds = range(TEST_SEED + config.seed, TEST_SEED + config.seed + config.trace.seeds)
    return {seed: part_world(config, features, "test", config.trace.test_windows, seed) for seed in seeds}


def objective_by_window(frame: pd.DataFrame, policy: str) -> np.ndarray:
    """Objective in USD per window, averaged over seeds, ``[W]``."""
    return frame[frame["policy"] == policy].groupby("window")["objective_usd"].mean().sort_index().to_numpy()


def relative_gain(frame: pd.DataFrame, policy: str, against: str, config: TrainConfig) -> dict[str, float]:
    """``gain, low, high``: relative objective saved by ``policy``, with a block-bootstrap interval; windows that overlap share a block."""
    ours, theirs = objective_by_window(frame, policy), objective_by_window(frame, against)
    starts = pd.to_datetime(frame.drop_duplicates("window").sort_values("window")["window_start"], utc=True)
    stride_h = max(1.0, starts.diff().dt.total_seconds().median() / 3600) if len(starts) > 1 else 1.0
    block = max(4, int(np.ceil(config.trace.window_hours / stride_h)) + 1)
    interval = skill_interval(ours, theirs, block=block, samples=config.registry.bootstrap_samples, seed=config.seed)
    return {"gain": interval.mean, "low": interval.low, "high": interval.high}


def _serving(context: StageContext, policies: dict[str, Policy]) -> str | None:
    """Add the serving champion to ``policies``; returns its version."""
    version = champion_version(context.tracking.client, POLICY_MODEL)
    if version is None:
        return None
    try:
        policy, _ = load_policy(tracking_uri=context.tracking.tracking_uri)
    except VerificationError as error:
        context.run.set_tags({"champion.refused": str(error)})
        return version
    policies["champion"] = policy
    return version


def _summary(frame: pd.DataFrame, config: TrainConfig, version: str | None) -> dict[str, Any]:
    means = frame.groupby("policy").mean(numeric_only=True).drop(columns=["window", "seed"])
    best = str(means.loc[list(JUDGES), "objective_usd"].idxmin())
    windows = fingerprint(frame[["window", "seed", "window_start"]].drop_duplicates().astype(str).to_dict("records"))
    judged = {
        "judge": best,
        **relative_gain(frame, "agent", best, config),
        "sla_violation_rate": float(means.loc["agent", "sla_violation_rate"]),
        "judge_sla_violation_rate": float(means.loc[best, "sla_violation_rate"]),
        "windows": int(frame["window"].nunique()),
    }
    champion: dict[str, object] = {"version": version}
    if "champion" in means.index:
        for name in ("agent", best):
            gains = relative_gain(frame, name, "champion", config)
            champion[name] = {**gains, "windows_sha256": windows, "champion_windows_sha256": windows}
    return {
        "best_judge": judged,
        "champion": champion,
        "means": means.to_dict("index"),
        "savings_against_k8s_default": {
            name: 1 - float(means.loc["agent", name] / means.loc["k8s_default", name]) for name in ("cost_usd", "energy_kwh", "carbon_kg")
        },
    }


def _day(world: World, policy: Policy, config: TrainConfig) -> pd.DataFrame:
    """Event log of the first window with the class of each job."""
    totals = run_policy(world, policy, config.reward, event_log=True)
    frame = events_frame(world, 0, totals.events[0])
    kinds = np.array([*(WORKLOAD_CLASSES[kind] for kind in world.jobs.kind[0, : world.jobs.count[0]]), ""], dtype=object)
    return frame.assign(workload_class=kinds[frame["job"].to_numpy()])


def _replay_page(world: World, policies: dict[str, Policy], summary: dict, config: TrainConfig) -> str:
    """The first window under the policy of the least mean objective, hour by hour."""
    best = min(policies, key=lambda name: float(summary["means"][name]["objective_usd"]))
    about = {
        "jobs": "held-out part of the job table",
        "grid": "as in training",
        "policy_summary": "the policy of the least mean objective over all held-out windows",
    }
    return page_of(replay(some_windows(world, [0]), policies[best], config.reward, name=best, about=about), with_files=False)


def run_evaluate(context: StageContext, out: Path) -> None:
    """Write what :func:`evaluate_policies` and :func:`evaluate_reserves` do."""
    evaluate_policies(context, out)
    evaluate_reserves(context, out)


def evaluate_reserves(context: StageContext, out: Path) -> None:
    """Write ``reserve.*``: what each demand forecaster costs when it sets the warm reserve."""
    run_reserves(context.config, context.folder("features"), context.folder("forecasters"), out)
    with context.run.child("reserve") as run:
        log_reserves(run, out, context.folder("forecasters"))


def evaluate_policies(context: StageContext, out: Path) -> None:
    """Write ``rows.parquet`` (policy x window x seed), ``paired.parquet``, ``summary.json`` and one event log."""
    config, features = context.config, context.folder("features")
    agent = AgentPolicy.load(context.folder("agent") / "policy")
    worlds = test_worlds(config, features)
    policies: dict[str, Policy] = {**JUDGES, "agent": agent}
    version = _serving(context, policies)
    parts = Breakdown()
    frame = evaluate(worlds, policies, list(worlds), reward=config.reward, progress=True, inspect=parts)
    summary = _summary(frame, config, version)
    by_class, by_site = parts.by_class(), parts.by_site()
    for name in policies:
        told = {"by_class": by_class.loc[name].to_dict("index"), "by_site": by_site.loc[name].to_dict("index")}
        summary.setdefault("parts", {})[name] = told
    if config.evaluation.bound != "none":
        frame = with_bounds(frame, worlds, config.reward, config.evaluation.bound, policies.values(), config.evaluation.bound_windows)
        summary["bound"] = {"kind": config.evaluation.bound, "policies": bound_ratios(frame).to_dict("index")}
    frame.to_parquet(out / "rows.parquet")
    paired = paired_difference(frame)
    paired.to_parquet(out / "paired.parquet")
    write_json(out / "summary.json", summary)
    _day(next(iter(worlds.values())), agent, config).to_parquet(out / "events.parquet")
    with context.run.child("evaluate", tags={"policies": ", ".join(policies)}) as run:
        for name, means in summary["means"].items():
            run.log_metrics({f"{name}/{key}": value for key, value in means.items()})
        run.log_table(frame, "windows")
        run.log_table(paired, "paired_difference_to_k8s_default")
        run.log_table(by_class.reset_index(), "by_class")
        run.log_table(by_site.reset_index(), "by_site")
        for name, figure in policy_figures(out, context.folder("agent"), features).items():
            run.log_figure(figure, name)
        run.log_text(_replay_page(next(iter(worlds.values())), policies, summary, config), "replay.html")
