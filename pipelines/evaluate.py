"""``python -m pipelines.evaluate``: what any policies would have used, cost and emitted on any jobs, grid and cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from envs.breakdown import Breakdown
from envs.cluster import ClusterSpec
from envs.evaluate import METRICS, paired_difference
from envs.reward import RewardSpec
from envs.shield import ShieldConfig
from envs.shield_io import load_shield
from envs.shielded import ShieldedPolicy, shielded
from envs.state import Policy
from pipelines.ablations import ablation_names, ablation_section
from pipelines.against import against_section
from pipelines.bounded import BoundSection, bound_kind, bound_ratios, with_bounds
from pipelines.breakdown import BreakdownSection
from pipelines.cli import build, hydra_command, name_sources
from pipelines.equipment import ServiceRows
from pipelines.evaluation_report import Report, Section, render
from pipelines.interventions import ShieldSection
from pipelines.pareto import ParetoSection, pareto_section
from pipelines.policies import TunedJudges, is_folder, read_judges, resolve_policy
from pipelines.setting import Setting, setting_of
from pipelines.stress import one_by_one
from pipelines.stress_table import StressSection, stress_section
from pipelines.trials import Trial, queue_policy, queue_runs_itself, swf_trial, table_trial, whole_number
from pipelines.workspace import write_json
from telemetry.errors import InputError

DEFAULT_POLICIES = ("k8s_default", "most_allocated", "easy", "greedy_cost", "lookahead", "planner")
SHIELDED = "shielded:"


def run(cfg: DictConfig) -> Report:
    """Everything but printing and writing."""
    kind, levers, count = bound_kind(cfg.bound), ablation_names(cfg.ablations), whole_number(cfg.pareto, "pareto", 0, low=0)
    reward = build(RewardSpec, cfg.reward, "reward")
    stresses = one_by_one(cfg.stress)
    calm = _under(cfg, {}) if stresses else cfg
    tuned = read_judges(str(cfg.judges)) if cfg.judges else TunedJudges({}, {})
    policies = _policies(cfg, tuned)
    scratch = resolve_policy(str(cfg.scratch), cfg.registry.tracking_uri) if cfg.scratch else None
    shield = ShieldConfig() if cfg.shield is None else load_shield(Path(str(cfg.shield)))
    setting = _setting(calm, reward, shield)
    policies, guarded = _behind_the_shield(policies, shield, setting.trial.cluster)
    setting.trial.notes.extend(_about_tuned(tuned, policies, setting.trial, str(cfg.judges)))
    services, parts = ServiceRows(setting.trial, setting.plans), Breakdown()
    frame = setting.play(policies, observe=services if setting.plans else None, inspect=parts)
    sections: list[Section] = [BreakdownSection(parts.by_class(), parts.by_site())]
    if guarded:
        sections.append(ShieldSection({name: policy.counts for name, policy in guarded.items()}))
    if kind != "none":
        some = None if cfg.bound_windows is None else whole_number(cfg.bound_windows, "bound_windows")
        frame = with_bounds(frame, setting.worlds, reward, kind, policies.values(), some)
        sections.append(BoundSection(kind, bound_ratios(frame)))
    if cfg.against:
        sections.append(against_section(frame, str(cfg.against)))
    if count:
        sections.append(pareto_section(setting, policies, frame, count))
    if levers:
        sections.append(ablation_section(setting, frame, policies, levers, cfg.ablation_policy, scratch))
    if stresses:
        sections.append(_stress_section(cfg, stresses, policies, frame, reward, shield))
    baseline = cfg.baseline if cfg.baseline in policies else None
    differences = paired_difference(frame, baseline, metrics=METRICS) if baseline and len(policies) > 1 else pd.DataFrame()
    return Report(frame, differences, setting.trial, tuple(setting.worlds), services.frame, tuple(sections))


def _policies(cfg: DictConfig, tuned: TunedJudges) -> dict[str, Policy]:
    """Policies by name: those asked for and the baseline, or the queue order of an archive."""
    if queue_runs_itself(cfg, named=cfg.policies is not None):
        return queue_policy(cfg.queue.order or "fcfs", cfg.queue.discipline or "strict")
    if cfg.policies is not None and not (OmegaConf.is_list(cfg.policies) and len(cfg.policies)):
        raise InputError(f"policies={cfg.policies}", where="policies", allowed="a list: policies=[k8s_default,easy]")
    names = list(cfg.policies or DEFAULT_POLICIES)
    if cfg.baseline and cfg.baseline not in names:
        names.insert(0, str(cfg.baseline))
    given = [("agent" if is_folder(str(name)) else str(name), str(name)) for name in names]
    if len({key for key, _ in given}) < len(given):
        raise InputError(f"policies={names}", where="policies", allowed="each policy once, one folder at most")
    return {key: resolve_policy(name.removeprefix(SHIELDED), cfg.registry.tracking_uri, tuned.judges) for key, name in given}


def _behind_the_shield(
    policies: dict[str, Policy], config: ShieldConfig, cluster: ClusterSpec
) -> tuple[dict[str, Policy], dict[str, ShieldedPolicy]]:
    """All policies, and those of them that were asked for as ``shielded:NAME``."""
    guarded = {name: shielded(policy, config, cluster) for name, policy in policies.items() if name.startswith(SHIELDED)}
    return {name: guarded.get(name, policy) for name, policy in policies.items()}, guarded


def _about_tuned(tuned: TunedJudges, policies: Mapping[str, Policy], trial: Trial, file: str) -> list[str]:
    """Notes on the parameters of tuned judges, and on windows that they were tuned on."""
    notes = []
    for name, judge in tuned.judges.items():
        if name in policies and judge.space:
            values = ", ".join(f"{parameter.name} {getattr(judge.settings, parameter.name):g}" for parameter in judge.space)
            notes.append(f"{name} tuned by {file}: {values}")
    until = tuned.about.get("trained_until")
    if notes and until:
        cut = [window for windows in trial.windows.values() for window in windows]
        early = sum(window.start < pd.Timestamp(str(until)) for window in cut)
        if early:
            notes.append(f"{early} of {len(cut)} windows begin before {until}, on which the judges were tuned; part=test leaves them out")
    return notes


def _setting(cfg: DictConfig, reward: RewardSpec, shield: ShieldConfig) -> Setting:
    """The worlds of the configuration, one a seed."""
    seeds = tuple(range(cfg.seed, cfg.seed + whole_number(cfg.seeds, "seeds")))
    archive = queue_runs_itself(cfg, named=cfg.policies is not None)
    return setting_of(cfg, swf_trial(cfg, seeds) if archive else table_trial(cfg, seeds), reward, shield.minimum_warm_nodes)


def _under(cfg: DictConfig, stress: dict[str, Any]) -> DictConfig:
    """The configuration under other stresses."""
    changed = cfg.copy()
    OmegaConf.set_struct(changed, False)
    changed.stress = stress
    return changed


def _stress_section(
    cfg: DictConfig,
    stresses: dict[str, dict[str, Any]],
    policies: dict[str, Policy],
    calm: pd.DataFrame,
    reward: RewardSpec,
    shield: ShieldConfig,
) -> StressSection:
    """Every stress on its own, with the policies and windows of the calm world."""
    frames, told = {}, {}
    for name, node in stresses.items():
        setting = _setting(_under(cfg, node), reward, shield)
        frames[name], told[name] = setting.play(policies), setting.trial.stress[name]
    return stress_section(calm, frames, told)


@hydra_command("evaluate")
def _command(cfg: DictConfig) -> int:
    report = run(cfg)
    out = Path(str(cfg.out))
    write_json(out, report.as_json())
    print(render(report))
    charts = [path for section in report.sections if isinstance(section, ParetoSection) for path in section.write(out)]
    print(f"\nwritten: {', '.join(map(str, [out, *charts]))}")
    return 0


def main() -> None:
    """Entry point."""
    name_sources()
    _command()


if __name__ == "__main__":
    main()
