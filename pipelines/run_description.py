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
SHOWN = ("workload.skill", "workload.coverage80", "power.skill", "power.coverage80", "policy.saved_energy_kwh", "policy.gain_over_judge")


def describe_run(run: Run, config: TrainConfig, workspace: Workspace, before: dict[str, str | None]) -> None:
    """Name, description and key metrics of a finished run.

    Args:
        before: version of each registered model's champion when the run began.
    """
    told = workspace.folder("promote") / "promotion.json"
    if "promote" not in config.stages or not told.exists():
        return
    promotion = read_json(told)
    figures = key_figures(config, workspace)
    run.log_metrics(figures)
    promoted = sum(entry["action"] == "promoted" for entry in promotion["submissions"])
    challengers = len(promotion["submissions"]) - promoted
    run.set_tags({NOTE: description(run, promotion, figures, before), NAME: f"train: {promoted} promoted, {challengers} not"})


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


def description(run: Run, promotion: dict[str, Any], figures: dict[str, float], before: dict[str, str | None]) -> str:
    """Markdown; the UI folds it after about three lines: outcome, key figures and links come first, then a table."""
    place = f"#/experiments/{run.tracking.experiment_id}/runs/{run.run_id}/artifacts"
    told = [f"{key} {figures[key]:.1%}" for key in SHOWN if key in figures]
    lines = [
        _outcome(promotion, before),
        "",
        ", ".join(told) + f". Look at [plots]({place}/plots), [verdicts]({place}/promotion.json), [configuration]({place}/config.json).",
        "",
        "| model | champion before | submitted | outcome | champion now |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in promotion["submissions"]:
        name, champion = entry["model"], promotion["champions"][entry["model"]]
        now = f"v{champion['version']} ({champion['name']})" if champion else "none"
        version = f"[v{entry['version']} ({entry['name']})](#/models/{name}/versions/{entry['version']})"
        lines.append(f"| [{name}](#/models/{name}) | {_version(before.get(name))} | {version} | {_why(entry)} | {now} |")
    return "\n".join(lines)


def _outcome(promotion: dict[str, Any], before: dict[str, str | None]) -> str:
    done = [entry for entry in promotion["submissions"] if entry["action"] == "promoted"]
    rest = [entry for entry in promotion["submissions"] if entry["action"] != "promoted"]
    parts = []
    if done:
        told = [f"{entry['model']} v{entry['version']} ({entry['name']}), before {_version(before.get(entry['model']))}" for entry in done]
        parts.append("**Promoted:** " + "; ".join(told) + ".")
    if rest:
        parts.append("**Not promoted:** " + "; ".join(f"{entry['model']} v{entry['version']} ({_gates(entry)})" for entry in rest) + ".")
    return " ".join(parts)


def _gates(entry: dict[str, Any]) -> str:
    return ", ".join(refusal.partition(":")[0] for refusal in entry["refusals"]) or entry["reason"]


def _version(version: str | None) -> str:
    return f"v{version}" if version else "none"


def _why(entry: dict[str, Any]) -> str:
    """In one cell of a table: the first refusal."""
    if entry["action"] == "promoted":
        return "**promoted**"
    return (entry["refusals"][0] if entry["refusals"] else entry["reason"]).replace("|", "/")
