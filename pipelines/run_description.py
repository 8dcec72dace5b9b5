"""What a reviewer sees first of a training run in the MLflow UI: outcome, champions, key figures and where to look."""

from __future__ import annotations

from typing import Any

from pipelines.config import TrainConfig
from pipelines.workspace import Workspace, read_json
from registry.tracking import Run

NOTE = "mlflow.note.content"
NAME = "mlflow.runName"
# In config.json as ever; as parameters nobody compares runs by them.
NOT_COMPARED = ("engine", "lake", "output_dir", "registry", "resume", "stages")


def describe_run(run: Run, config: TrainConfig, workspace: Workspace, before: dict[str, str | None]) -> None:
    """Name, description and key metrics of a finished run.

    Args:
        before: version of each registered model's champion when the run began.
    """
    if "promote" not in config.stages:
        return
    promotion = read_json(workspace.folder("promote") / "promotion.json")
    figures = key_figures(config, workspace)
    run.log_metrics(figures)
    promoted = sum(entry["action"] == "promoted" for entry in promotion["submissions"])
    challengers = len(promotion["submissions"]) - promoted
    outcome = f"{promoted} promoted, {challengers} not"
    run.set_tags({NOTE: description(run, promotion, figures, before, outcome), NAME: f"train: {outcome}"})


def key_figures(config: TrainConfig, workspace: Workspace) -> dict[str, float]:
    """The same names in every run, so that runs can be compared: ``workload.skill``, ``policy.saved_energy_kwh`` and the like."""
    figures: dict[str, float] = {}
    for target in config.target.names:
        folder = workspace.folder("forecasters") / target
        choice, scores = read_json(folder / "champion.json"), read_json(folder / "backtest.json")
        best = choice["candidate"] or choice["reference"]
        overall = scores["forecasters"][best]["overall"]
        figures |= {f"{target}.wql": overall["wql"], f"{target}.coverage80": overall["coverage80"]}
        if choice["candidate"]:
            figures |= {f"{target}.skill": 1 - choice["wql_ratio"], f"{target}.skill_low": 1 - choice["wql_ratio_high"]}
    summary = read_json(workspace.folder("evaluate") / "summary.json")
    saved, best_judge = summary["savings_against_k8s_default"], summary["best_judge"]
    figures |= {f"policy.saved_{key}": saved[key] for key in ("cost_usd", "energy_kwh", "carbon_kg")}
    return figures | {"policy.gain_over_judge": best_judge["gain"], "policy.gain_over_judge_low": best_judge["low"]}


def description(run: Run, promotion: dict[str, Any], figures: dict[str, float], before: dict[str, str | None], outcome: str) -> str:
    """Markdown of at most a screen."""
    place = f"#/experiments/{run.tracking.experiment_id}/runs/{run.run_id}/artifacts"
    lines = [f"**{outcome}.**", "", "| model | champion before | submitted | outcome | champion now |", "| --- | --- | --- | --- | --- |"]
    for entry in promotion["submissions"]:
        name, champion = entry["model"], promotion["champions"][entry["model"]]
        why = "**promoted**" if entry["action"] == "promoted" else "; ".join(entry["refusals"][:1]) or entry["reason"]
        old = f"v{before[name]}" if before.get(name) else "none"
        now = f"v{champion['version']} ({champion['name']})" if champion else "none"
        version = f"[v{entry['version']} ({entry['name']})](#/models/{name}/versions/{entry['version']})"
        lines.append(f"| [{name}](#/models/{name}) | {old} | {version} | {why.replace('|', '/')} | {now} |")
    shown = (
        "workload.skill",
        "workload.coverage80",
        "power.skill",
        "power.coverage80",
        "policy.saved_energy_kwh",
        "policy.gain_over_judge",
    )
    told = [f"{key} {figures[key]:.1%}" for key in shown if key in figures]
    lines += ["", "Key figures: " + ", ".join(told) + "."]
    lines += ["", f"Look at: [plots]({place}/plots), [all verdicts]({place}/promotion.json), [configuration]({place}/config.json)."]
    return "\n".join(lines)
