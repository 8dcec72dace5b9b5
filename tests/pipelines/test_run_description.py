"""The first screen of a training run: outcome, champions before and after, figures under names that all runs share."""

from __future__ import annotations

from pipelines.cli import compose_config
from pipelines.config import train_config
from pipelines.run_description import NOT_COMPARED, describe_run
from pipelines.workspace import Workspace, write_json
from registry.tracking import HOW_TO_REVIEW, open_tracking


def workspace(folder) -> Workspace:
    space = Workspace(folder)
    for target, candidate in (("workload", "lightgbm"), ("power", None)):
        choice = {"candidate": candidate, "reference": "persistence", "wql_ratio": 0.8, "wql_ratio_high": 0.9}
        overall = {"overall": {"wql": 0.125, "coverage80": 0.79}}
        write_json(space.folder("forecasters") / target / "champion.json", choice)
        write_json(space.folder("forecasters") / target / "backtest.json", {"forecasters": {"lightgbm": overall, "persistence": overall}})
    saved = {"cost_usd": 0.25, "energy_kwh": 0.2, "carbon_kg": 0.15}
    best = {"gain": 0.03, "low": -0.01}
    write_json(space.folder("evaluate") / "summary.json", {"savings_against_k8s_default": saved, "best_judge": best})
    promoted = {"model": "workload-forecaster", "name": "lightgbm", "version": "4", "action": "promoted", "reason": "", "refusals": []}
    refused = {"model": "scheduling-policy", "name": "agent", "version": "7", "action": "challenger", "reason": "", "refusals": ["a: b|c"]}
    champions = {"workload-forecaster": {"version": "4", "name": "lightgbm"}, "scheduling-policy": {"version": "6", "name": "backfill"}}
    write_json(space.folder("promote") / "promotion.json", {"submissions": [promoted, refused], "champions": champions})
    return space


def test_a_finished_run_says_what_came_of_it(tmp_path):
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    config = train_config(compose_config("train"))
    with tracking.run("train") as run:
        run.log_config(config.raw, NOT_COMPARED)
        describe_run(run, config, workspace(tmp_path / "out"), {"workload-forecaster": "3", "scheduling-policy": "6"})
    found = tracking.client.get_run(run.run_id)
    assert found.info.run_name == "train: 1 promoted, 1 not"
    note = found.data.tags["mlflow.note.content"].splitlines()
    assert note[0] == ("**Promoted:** workload-forecaster v4 (lightgbm), before v3. **Not promoted:** scheduling-policy v7 (a).")
    assert note[2].startswith("workload.skill 20.0%, workload.coverage80 79.0%, power.coverage80 79.0%, policy.saved_energy_kwh 20.0%")
    assert f"runs/{run.run_id}/artifacts/plots" in note[2]
    link = "[workload-forecaster](#/models/workload-forecaster)"
    assert note[6] == f"| {link} | v3 | [v4 (lightgbm)](#/models/workload-forecaster/versions/4) | **promoted** | v4 (lightgbm) |"
    assert note[7].endswith("| v6 | [v7 (agent)](#/models/scheduling-policy/versions/7) | a: b/c | v6 (backfill) |")
    assert found.data.metrics["policy.saved_energy_kwh"] == 0.2
    assert found.data.metrics["workload.skill_low"] == 1 - 0.9
    assert "power.skill" not in found.data.metrics, "nothing learned was chosen"
    assert not {key for key in found.data.params if key.split(".")[0] in NOT_COMPARED}
    assert found.data.params["seed"] == "0"
    assert tracking.client.get_experiment(tracking.experiment_id).tags["mlflow.note.content"] == HOW_TO_REVIEW
