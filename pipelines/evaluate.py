"""``python -m pipelines.evaluate``: what any policies would have used, cost and emitted on any jobs, grid and cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from envs.evaluate import CONTRACT_METRICS, METRICS, evaluate, paired_difference, summarise
from envs.reward import RewardSpec
from envs.shield import ShieldConfig, with_warm_floor
from envs.shield_io import load_shield
from envs.shielded import ShieldedPolicy, shielded
from envs.state import Policy
from envs.windows import WindowTables
from envs.world import World, build_world
from pipelines.cli import build, hydra_command, name_sources
from pipelines.equipment import ServiceRows, equipped, rejected_leases, service_means
from pipelines.policies import resolve_policy
from pipelines.trials import Trial, queue_policy, queue_runs_itself, swf_trial, table_trial, whole_number
from pipelines.workspace import write_json
from telemetry.errors import InputError

DEFAULT_POLICIES = ("k8s_default", "most_allocated", "easy", "greedy_cost", "lookahead")
SHIELDED = "shielded:"
TABLE_COLUMNS = (*CONTRACT_METRICS, "objective_usd")


@dataclass(frozen=True)
class Report:
    """What the command found: rows of :func:`envs.evaluate.evaluate`, paired differences (empty without a baseline), rows of services."""

    frame: pd.DataFrame
    differences: pd.DataFrame
    trial: Trial
    seeds: tuple[int, ...]
    services: pd.DataFrame = field(default_factory=pd.DataFrame)
    shield: dict[str, dict[str, int]] = field(default_factory=dict)  # interventions by policy, where one was behind the shield

    def as_json(self) -> dict[str, Any]:
        """The contract: per policy and window the metrics, their means, and the difference to the baseline with its interval."""
        names = list(dict.fromkeys(self.frame["policy"]))
        rows = {name: self.frame[self.frame["policy"] == name].drop(columns="policy") for name in names}
        differences: dict[str, dict[str, Any]] = {}
        for row in self.differences.to_dict("records"):
            differences.setdefault(row.pop("policy"), {})[row.pop("metric")] = row
        return plain(
            {
                **self.trial.description,
                "seeds": list(self.seeds),
                "notes": list(self.trial.notes),
                **({"stress": self.trial.stress} if self.trial.stress else {}),
                "policies": {name: {"windows": table.to_dict("records")} for name, table in rows.items()},
                "summary": summarise(self.frame).to_dict("index"),
                "paired_difference": differences,
                **({"shield": self.shield} if self.shield else {}),
                **self._services_json(),
            }
        )

    def _services_json(self) -> dict[str, Any]:
        """Nothing without services; else per service and policy the windows and their means."""
        found: dict[str, dict[str, Any]] = {}
        for (service, policy), rows in self.services.groupby(["service", "policy"], sort=False) if len(self.services) else ():
            means = service_means(rows).iloc[0].to_dict()
            windows = rows.drop(columns=["service", "policy"]).to_dict("records")
            found.setdefault(str(service), {})[str(policy)] = {"mean": means, "windows": windows}
        return {"services": found} if found else {}


def plain(value: Any) -> Any:
    """JSON values only: NaN and infinity become null, times ISO 8601."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if isinstance(value, bool | str) or value is None:
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int) or (hasattr(value, "dtype") and value.dtype.kind in "iu") else number


def run(cfg: DictConfig) -> Report:
    """Everything but printing and writing."""
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
        policies = {str(name): resolve_policy(str(name).removeprefix(SHIELDED), cfg.registry.tracking_uri) for name in names}
        trial = table_trial(cfg, seeds)
    trial, plans = equipped(cfg, trial)
    config = ShieldConfig() if cfg.shield is None else load_shield(Path(str(cfg.shield)))
    guarded = {name: shielded(policy, config, trial.cluster) for name, policy in policies.items() if name.startswith(SHIELDED)}
    policies |= guarded
    services = ServiceRows(trial, plans)
    worlds: dict[int, World] = {seed: _world(trial, windows, config) for seed, windows in trial.windows.items()}
    seen = {seed: _world(trial, windows, config) for seed, windows in (trial.reported or {}).items()}
    if config.minimum_warm_nodes:
        trial.notes.append(f"under every policy so many nodes stay awake: {dict(config.minimum_warm_nodes)}")
    trial.notes.extend(rejected_leases(worlds))
    frame = evaluate(
        seen or worlds,
        policies,
        seeds,
        billed=worlds if seen else None,
        reward=reward,
        slowdown_threshold_s=float(cfg.trace.bounded_slowdown_threshold_s),
        progress=bool(cfg.progress),
        observe=services if plans else None,
    )
    baseline = cfg.baseline if cfg.baseline in policies else None
    differences = paired_difference(frame, baseline, metrics=METRICS) if baseline and len(policies) > 1 else pd.DataFrame()
    return Report(frame, differences, trial, seeds, services.frame, {name: _counts(policy) for name, policy in guarded.items()})


def _world(trial: Trial, windows: Sequence[WindowTables], config: ShieldConfig) -> World:
    return with_warm_floor(build_world(trial.cluster, windows), config.minimum_warm_nodes)


def _counts(policy: ShieldedPolicy) -> dict[str, int]:
    return {name: count for name, count in sorted(policy.counts.items()) if count}


def render(report: Report) -> str:
    """The printed tables: means by policy, then the difference of cost, energy, carbon and violations to the baseline."""
    means = summarise(report.frame)[list(TABLE_COLUMNS)]
    lines = [f"{key}: {value}" for key, value in report.trial.description.items()]
    lines += [f"note: {note}" for note in report.trial.notes]
    lines += ["", "mean over windows and seeds", means.to_string(float_format=lambda v: f"{v:,.3f}")]
    for service, rows in service_means(report.services).groupby("service", sort=False) if len(report.services) else ():
        table = rows.droplevel("service").T.to_string(float_format=lambda v: f"{v:,.4g}")
        lines += ["", f"service {service}, mean over windows and seeds (envs/service_report.py)", table]
    for name, counts in report.shield.items():
        lines += ["", f"{name}: " + ", ".join(f"{key} {count:,}" for key, count in counts.items())]
    if len(report.differences):
        shown = report.differences[
            report.differences["metric"].isin(["energy_kwh", "cost_usd", "carbon_kg", "sla_violation_rate", "objective_usd"])
        ]
        baseline = shown["baseline"].iloc[0]
        lines += ["", f"paired difference to {baseline}, 95 % interval over windows"]
        for row in shown.to_dict("records"):
            relative = f"  ({100 * row['relative']:+.1f} %)" if math.isfinite(row["relative"]) else ""
            interval = f"[{row['low']:+.4g}, {row['high']:+.4g}]" if math.isfinite(row["low"]) else "[one window: no interval]"
            lines.append(f"  {row['policy']:<16} {row['metric']:<20} {row['mean']:+.4g} {interval}{relative}")
    return "\n".join(lines)


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
