"""The main job: resumed after a kill, whole on the sample, and honest the second time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import train
from pipelines.cli import compose_config
from pipelines.config import train_config
from pipelines.workspace import STAGES, read_json
from registry.loading import load_forecaster, load_policy
from registry.promotion import current_aliases
from registry.tracking import open_tracking
from telemetry.errors import InputError

ROOT = Path(__file__).parents[2]


def overrides(folder: Path) -> list[str]:
    return [
        "experiment=quick",
        f"output_dir={folder}/out",
        f"lake.root={folder}/lake",
        f"registry.tracking_uri=sqlite:///{folder}/mlflow.db",
        f"registry.artifact_root={folder}/artifacts",
    ]


def test_a_killed_run_resumes_where_it_stopped(tmp_path, monkeypatch):
    config = train_config(compose_config("train", overrides(tmp_path)))
    ran: list[str] = []
    killed: list[str] = []

    def runner(stage):
        def run(context, out):
            ran.append(stage)
            (out / "value.txt").write_text(stage)
            if stage == "agent" and not killed:
                killed.append(stage)
                raise KeyboardInterrupt

        return run

    monkeypatch.setattr(train, "RUNNERS", {stage: runner(stage) for stage in STAGES})
    with pytest.raises(KeyboardInterrupt):
        train.run_stages(config)
    assert not (config.output_dir / "agent").exists()
    train.run_stages(config)
    assert ran == ["ingest", "features", "forecasters", "agent", "agent", "evaluate", "promote"]
    train.run_stages(config)
    assert ran[7:] == list(STAGES), "a finished run is not resumed: the next one starts anew"


def test_a_stage_without_its_predecessors_says_what_to_run(tmp_path):
    config = train_config(compose_config("train", [*overrides(tmp_path), "stages=[evaluate]"]))
    with pytest.raises(InputError, match=r"stage 'features' has not run.*stages=\[features\]"):
        train.run_stages(config)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A finished quick run on the embedded sample, in a process of its own."""
    folder = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "pipelines.train", *overrides(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_the_last_lines_name_champions_skill_and_the_next_command(quick):
    _, out = quick
    for word in ("workload-forecaster", "power-forecaster", "scheduling-policy", "against the best judge", "Kubernetes default", "next: "):
        assert word in out


def test_promoted_models_load_and_nothing_promoted_is_pickled(quick):
    folder, _ = quick
    uri = f"sqlite:///{folder}/mlflow.db"
    for target in ("workload", "power"):
        model, manifest = load_forecaster(f"{target}-forecaster", tracking_uri=uri)
        assert manifest.gates_passed
        forecast = model.predict()
        assert forecast["unique_id"].nunique() == len(manifest.layout["series"])
    policy, manifest = load_policy(tracking_uri=uri)
    assert policy.settings
    assert manifest.metrics["objective_usd"] > 0
    assert not [path for path in (folder / "artifacts").rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib", ".pt")]


def test_the_agent_beats_the_kubernetes_default_on_days_it_never_saw(quick):
    folder, _ = quick
    saved = read_json(folder / "out" / "evaluate" / "summary.json")["savings_against_k8s_default"]
    assert saved["cost_usd"] > 0.2
    assert saved["energy_kwh"] > 0.15


def test_the_agent_is_promoted_only_if_it_beats_every_judge(quick):
    folder, _ = quick
    summary = read_json(folder / "out" / "evaluate" / "summary.json")
    promotion = read_json(folder / "out" / "promote" / "promotion.json")
    agent = next(entry for entry in promotion["submissions"] if entry["name"] == "agent")
    best = summary["best_judge"]
    assert best["judge"] == min((n for n in summary["means"] if n != "agent"), key=lambda n: summary["means"][n]["objective_usd"])
    assert (promotion["champions"]["scheduling-policy"]["name"] == "agent") == agent["passed"]
    if best["low"] <= 0:
        assert promotion["champions"]["scheduling-policy"]["name"] == best["judge"]


def test_the_same_models_again_become_challengers_only(quick):
    folder, _ = quick
    client = open_tracking(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts").client
    before = {name: current_aliases(client, name)["champion"] for name in ("workload-forecaster", "power-forecaster", "scheduling-policy")}
    config = train_config(compose_config("train", [*overrides(folder), "stages=[evaluate,promote]"]))
    train.run_stages(config)
    after = {name: current_aliases(client, name)["champion"] for name in before}
    assert after == before
    submissions = read_json(folder / "out" / "promote" / "promotion.json")["submissions"]
    assert all(entry["action"] == "challenger" for entry in submissions)


def test_the_runtime_decides_from_the_promoted_models_in_a_new_process(quick):
    folder, _ = quick
    example = ROOT / "deploy" / "examples"
    command = [sys.executable, "-m", "runtime.decide", str(example / "job.json"), "--state", str(example / "state.json")]
    command += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["chosen"]["verb"] in ("hold", "run")
    assert len(answer["alternatives"]) >= 1
