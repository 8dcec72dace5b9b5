"""The stage that trains the agent: worlds to learn in, an honest result, and its figures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from envs.agent.config import AgentConfig, WorldChoice
from envs.agent.population import train_population
from envs.agent.selection import verdict
from envs.agent.train import TrainingResult
from envs.heuristics import JUDGES
from envs.multi_world import MultiWorldVecEnv
from pipelines import train
from pipelines.cli import compose_config
from pipelines.config import train_config
from pipelines.stages.agent import STARTING_JUDGE, said, split_spans, windows_apart
from pipelines.stages.agent_worlds import chosen_world, training_envs
from pipelines.stages.policy_plots import learning_figure, training_figure
from pipelines.workspace import read_json
from registry.tracking import open_tracking
from telemetry.errors import InputError

JUDGE = JUDGES[STARTING_JUDGE]


def overrides(folder, *more: str) -> list[str]:
    return [
        "experiment=quick",
        f"output_dir={folder}/out",
        f"lake.root={folder}/lake",
        f"registry.tracking_uri=sqlite:///{folder}/mlflow.db",
        f"registry.artifact_root={folder}/artifacts",
        *more,
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Ingested features of the embedded sample, and a small population trained on two worlds of it."""
    folder = tmp_path_factory.mktemp("agent")
    more = [
        "stages=[ingest,features,agent]",
        "agent.total_steps=8192",
        "agent.num_envs=32",
        "agent.batch_size=512",
        "agent.validate_every=2",
        "agent.population=2",
        "agent.worlds=[{load: 1.0}, {load: 1.5, grid_shift_hours: 6}]",
        "agent.preferences=[{weight: w_carbon, low: 0.0, high: 2.0}]",
    ]
    config = train_config(compose_config("train", overrides(folder, *more)))
    train.run_stages(config)
    return folder, config


def test_the_result_says_whether_the_agent_is_better_and_on_what(workspace):
    folder, config = workspace
    facts = read_json(folder / "out" / "agent" / "result.json")
    assert len(facts["population"]) == 2
    assert sum(member["chosen"] for member in facts["population"]) == 1
    best = min(facts["population"], key=lambda member: member["best_objective_usd"])
    assert best["chosen"]
    assert facts["verdict"]["held_back"] == (config.trace.validation_windows >= 4)
    ours, judge = (np.array(facts[name]) for name in ("validation_objectives_usd", "judge_objectives_usd"))
    assert facts["improved"] == verdict(ours, judge, config.agent.accept).improved
    assert ("it is accepted" in facts["said"]) == facts["improved"]
    assert "best of 2 trainings" in facts["said"]
    assert 1 <= facts["windows_apart"] <= facts["verdict"]["windows"]


def test_curves_go_to_a_run_of_each_member(workspace):
    folder, _ = workspace
    client = open_tracking(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts").client
    runs = client.search_runs([client.get_experiment_by_name("joulewise").experiment_id])
    members = [run for run in runs if run.info.run_name.startswith("agent, member")]
    assert len(members) == 2
    for run in members:
        for name in (
            "validation/objective_usd",
            "train/approx_kl",
            "actions/hold",
            "rollout/regret_per_decision_usd",
            "train/explained_variance",
        ):
            assert len(client.get_metric_history(run.info.run_id, name)) >= 3
        assert run.info.status == "FINISHED"
    parent = next(run for run in runs if run.info.run_name.startswith("train"))
    assert parent.data.tags["agent.improved"] in ("true", "false")
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "plots")} >= {"plots/learning.png", "plots/training.png"}


def test_figures_show_both_halves_and_what_was_done(workspace):
    folder, _ = workspace
    learning = learning_figure(folder / "out" / "agent")
    labels = [text.get_text() for text in learning.axes[0].get_legend().get_texts()]
    assert any("chosen on" in label for label in labels)
    assert any("confirmed on" in label for label in labels)
    shown = {axes.get_title(loc="left") for axes in training_figure(folder / "out" / "agent").axes if axes.get_visible()}
    assert {"Regret per decision", "Answers to waiting jobs", "Entropy", "Size of updates", "Value function"} <= shown


def test_worlds_differ_as_they_were_asked_to(workspace):
    folder, config = workspace
    features = folder / "out" / "features"
    jobs = pd.read_parquet(features / "jobs.parquet")
    span = split_spans(jobs, config.trace.split)["train"]
    plain, busy, shifted = (
        chosen_world(config, features, choice, span, 0)
        for choice in (WorldChoice(), WorldChoice(load=1.5), WorldChoice(grid_shift_hours=6))
    )
    assert busy.jobs.count.sum() == pytest.approx(1.5 * plain.jobs.count.sum(), rel=0.1)
    assert shifted.jobs.count.sum() == plain.jobs.count.sum()
    assert not np.array_equal(shifted.grid.price, plain.grid.price)
    several = dataclasses.replace(
        config, agent=dataclasses.replace(config.agent, worlds=(WorldChoice(share=3.0), WorldChoice(cluster="gen16", load=0.5)))
    )
    env = training_envs(several, features, span, JUDGE, world_seed=0, seed=0)
    assert isinstance(env, MultiWorldVecEnv)
    assert [one.num_envs for one in env.envs] == [24, 8]
    assert env.envs[0].world.cluster.name != env.envs[1].world.cluster.name
    unknown = dataclasses.replace(config, agent=dataclasses.replace(config.agent, worlds=(WorldChoice(cluster="atlantis"),)))
    with pytest.raises(InputError, match="atlantis"):
        training_envs(unknown, features, span, JUDGE, world_seed=0, seed=0)


def test_a_refused_agent_decides_as_its_judge(workspace):
    """Members whose validation never gets better than the judge's: what is exported is the start."""
    folder, config = workspace
    features = folder / "out" / "features"
    span = split_spans(pd.read_parquet(features / "jobs.parquet"), config.trace.split)["train"]
    calls = []

    def validate(policy):
        calls.append(policy)
        return np.full(4, 1.0 + len(calls) % 5)

    def make_env(seed):
        return training_envs(config, features, span, JUDGE, world_seed=0, seed=seed)

    small = dataclasses.replace(config.agent, total_steps=2048, population=2)
    population = train_population(make_env, JUDGE.settings, small, validate, seed=0, judge=np.full(4, 0.5))
    assert not population.result.improved
    observations = make_env(9).reset()
    layout = make_env(9).layout
    np.testing.assert_array_equal(population.result.policy.act(observations, layout), JUDGE.act(observations, layout))


def test_the_sentence_names_members_windows_and_outcome():
    judge = np.full(8, 10.0)
    result = TrainingResult(None, 5, 9.0, verdict=verdict(judge - 1.0, judge), windows=judge - 1.0, judge=judge)
    begin = (
        f"the best of 3 trainings is 10.0% below the judge {STARTING_JUDGE}'s objective [+10.0%, +10.0%] on 4 windows that took no part in "
    )
    assert said(result, 3, 4) == begin + "choosing it: it is accepted"
    assert said(result, 3, 2) == begin + "choosing it (2 of them apart in time, so the interval is too narrow): it is accepted"


def test_windows_that_overlap_are_not_counted_twice():
    start = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta([30, 0, 47, 48, 100], unit="h")
    assert windows_apart(start, 48.0) == 3


@pytest.mark.parametrize(
    "override",
    [
        "agent.worlds=[{load: 0}]",
        "agent.worlds=[{weather: bad}]",
        "agent.preferences=[{weight: w_carbon, low: 3.0, high: 1.0}]",
        "agent.accept=hope",
        "agent.population=0",
    ],
)
def test_wrong_worlds_and_preferences_are_refused(override):
    with pytest.raises(InputError, match=override.split("=")[0].split(".")[-1]):
        train_config(compose_config("train", [override]))


def test_the_curriculum_composes():
    config = train_config(compose_config("train", ["agent=curriculum"]))
    assert len(config.agent.worlds) == 4
    assert config.agent.population == 2
    assert isinstance(config.agent, AgentConfig)
