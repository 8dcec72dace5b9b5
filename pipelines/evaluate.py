"""``python -m pipelines.evaluate``: what any policies would have used, cost and emitted on any jobs, grid and cluster."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from envs.breakdown import Breakdown
from envs.evaluate import METRICS, evaluate, paired_difference
from envs.reward import RewardSpec
from envs.state import Policy
from envs.world import World, build_world
from pipelines.against import against_section
from pipelines.bounded import BoundSection, bound_kind, bound_ratios, with_bounds
from pipelines.breakdown import BreakdownSection
from pipelines.cli import build, hydra_command, name_sources
from pipelines.equipment import ServiceRows, equipped, rejected_leases
from pipelines.evaluation_report import Report, Section, render
from pipelines.policies import resolve_policy
from pipelines.trials import queue_policy, queue_runs_itself, swf_trial, table_trial, whole_number
from pipelines.workspace import write_json
from telemetry.errors import InputError

DEFAULT_POLICIES = ("k8s_default", "most_allocated", "easy", "greedy_cost", "lookahead")


def run(cfg: DictConfig) -> Report:
    """Everything but printing and writing."""
    kind = bound_kind(cfg.bound)
    seeds = tuple(range(cfg.seed, cfg.seed + whole_number(cfg.seeds, "seeds")))
    reward = build(RewardSpec, cfg.reward, "reward")
    archive = queue_runs_itself(cfg, named=cfg.policies is not None)
    policies: dict[str, Policy]
    if archive:
        trial = swf_trial(cfg, seeds)
        policies = queue_policy(cfg.queue.order or "fcfs", cfg.queue.discipline or "strict")
    else:
        if cfg.policies is not None and not (OmegaConf.is_list(cfg.policies) and len(cfg.policies)):
            raise InputError(f"policies={cfg.policies}", where="policies", allowed="a list: policies=[k8s_default,easy]")
        names = list(cfg.policies or DEFAULT_POLICIES)
        if cfg.baseline and cfg.baseline not in names:
            names.insert(0, str(cfg.baseline))
        policies = {str(name): resolve_policy(str(name), cfg.registry.tracking_uri) for name in names}
        trial = table_trial(cfg, seeds)
    trial, plans = equipped(cfg, trial)
    services = ServiceRows(trial, plans)
    worlds: dict[int, World] = {seed: build_world(trial.cluster, windows) for seed, windows in trial.windows.items()}
    seen = {seed: build_world(trial.cluster, windows) for seed, windows in (trial.reported or {}).items()}
    trial.notes.extend(rejected_leases(worlds))
    parts = Breakdown()
    frame = evaluate(
        seen or worlds,
        policies,
        seeds,
        billed=worlds if seen else None,
        reward=reward,
        slowdown_threshold_s=float(cfg.trace.bounded_slowdown_threshold_s),
        progress=bool(cfg.progress),
        observe=services if plans else None,
        inspect=parts,
    )
    sections: list[Section] = [BreakdownSection(parts.by_class(), parts.by_site())]
    if kind != "none":
        frame = with_bounds(frame, worlds, reward, kind)
        sections.append(BoundSection(kind, bound_ratios(frame)))
    if cfg.against:
        sections.append(against_section(frame, str(cfg.against)))
    baseline = cfg.baseline if cfg.baseline in policies else None
    differences = paired_difference(frame, baseline, metrics=METRICS) if baseline and len(policies) > 1 else pd.DataFrame()
    return Report(frame, differences, trial, seeds, services.frame, tuple(sections))


@hydra_command("evaluate")
def _command(cfg: DictConfig) -> int:
    report = run(cfg)
    out = Path(str(cfg.out))
    write_json(out, report.as_json())
    print(render(report))
    print(f"\nwritten: {out}")
    return 0


def main() -> None:
    """Entry point."""
    name_sources()
    _command()


if __name__ == "__main__":
    main()
