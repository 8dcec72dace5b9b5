"""The last lines of the main job: champions, their skill, what they save, and what to do next."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from pipelines.config import TrainConfig
from pipelines.stages.reserve import printed
from pipelines.workspace import Workspace, read_json


def forecaster_table(scores: dict[str, Any]) -> pd.DataFrame:
    """Metrics of every forecaster of one backtest, best WQL first."""
    rows = []
    for name, entry in scores["forecasters"].items():
        if entry["status"] == "failed":
            rows.append({"forecaster": name, "wql": math.nan})
            continue
        overall, skill = entry["overall"], entry["skill"]
        interval = f"[{skill['wql_ratio_low']:.3f}, {skill['wql_ratio_high']:.3f}]"
        keys = ("wql", "sql", "mase", "coverage80", "width80", "fit_s", "predict_s")
        rows.append({"forecaster": name, **{key: overall[key] for key in keys}, "ratio": skill["wql_ratio"], "95 %": interval})
    return pd.DataFrame(rows).sort_values("wql", ignore_index=True)


def policy_table(means: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Means per policy over all held-out windows, best objective first."""
    keys = ["objective_usd", "cost_usd", "energy_kwh", "carbon_kg", "sla_violation_rate", "mean_wait_s", "mean_bounded_slowdown"]
    table = pd.DataFrame.from_dict(means, orient="index")[keys]
    return table.sort_values("objective_usd").rename_axis("policy").reset_index()


def _champion(promotion: dict[str, Any], model: str) -> str:
    champion = promotion["champions"][model]
    last = [entry for entry in promotion["submissions"] if entry["model"] == model]
    word = f"{champion['name']} (version {champion['version']})" if champion else "none"
    fresh = any(entry["action"] == "promoted" for entry in last)
    refused = next((f"; {e['name']} (version {e['version']}) refused: {e['refusals'][0]}" for e in last if e["refusals"]), "")
    return f"{word}{', promoted now' if fresh else ', stays'}{refused}"


def closing_lines(config: TrainConfig, workspace: Workspace, seconds: float) -> list[str]:
    """What the command prints at its end."""
    lines = [""]
    stages = set(config.stages)
    for target in config.target.names if "forecasters" in stages else ():
        scores = read_json(workspace.folder("forecasters") / target / "backtest.json")
        naive = scores["reference"]["name"]
        lines.append(f"{target}: {scores['n_series']} series, {scores['n_origins']} origins; ratio = WQL against {naive}")
        lines.append(forecaster_table(scores).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
        lines += [*read_json(workspace.folder("forecasters") / target / "diagnosis.json")["summary"], ""]
    if "agent" in stages:
        lines += [f"training: {read_json(workspace.folder('agent') / 'result.json')['said']}", ""]
    summary = read_json(workspace.folder("evaluate") / "summary.json") if "evaluate" in stages else None
    table = printed(workspace.folder("evaluate"), workspace.folder("forecasters")) if summary else None
    if table is not None:
        lines.append(f"warm reserve by forecast: the demand's quantile {config.reserve.fractile:.3f} is kept awake; means per test window")
        lines.append(table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep=""))
        lines.append("")
    if summary:
        judged = summary["best_judge"]
        lines.append(
            f"policies: means over {judged['windows']} held-out windows x {config.trace.seeds} seeds of {config.trace.window_hours:g} h"
        )
        lines.append(policy_table(summary["means"]).to_string(index=False, float_format=lambda v: f"{v:.3f}"))
        lines.append("")
    if "promote" in stages:
        promotion = read_json(workspace.folder("promote") / "promotion.json")
        lines.append("champions")
        for model in promotion["champions"]:
            lines.append(f"  {model:<20} {_champion(promotion, model)}")
    if summary:
        judged, saved = summary["best_judge"], summary["savings_against_k8s_default"]
        lines.append(
            f"  agent against the Kubernetes default: {saved['cost_usd']:.1%} USD, {saved['energy_kwh']:.1%} kWh, "
            f"{saved['carbon_kg']:.1%} CO2 saved"
        )
        lines.append(
            f"  agent against the best judge ({judged['judge']}): {judged['gain']:+.1%} of the objective "
            f"[{judged['low']:+.1%}, {judged['high']:+.1%}], SLA violations {judged['sla_violation_rate']:.1%} against "
            f"{judged['judge_sla_violation_rate']:.1%}"
        )
    lines.append(f"done in {seconds:.0f} s; results in {config.output_dir}")
    lines.append("next: make ui (review in MLflow), or python -m runtime.decide deploy/examples/job.json")
    return lines
