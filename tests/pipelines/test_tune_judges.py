"""``python -m pipelines.tune_judges``: equal budgets, the better trial, resuming, and tuned judges in ``pipelines.evaluate``."""

import dataclasses
import importlib.util
import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import yaml

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.evaluate import evaluate
from envs.heuristics import JUDGES
from envs.reward import RewardSpec
from envs.windows import cut_windows, prepare_jobs
from envs.world import build_world
from pipelines import evaluate as evaluate_command
from pipelines import tune_judges as command
from pipelines.policies import read_judges, resolve_policy
from pipelines.spans import part_span
from pipelines.tune_judges import Scored, best_of, default_values, study_key, tune
from telemetry.errors import InputError

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is not installed")
START = pd.Timestamp("2026-01-05", tz="UTC")
CLUSTER = """
level_fractions: [1.0, 0.6]
sites: [{name: west}]
pools: [{name: w, site: west, gpu_model: V100, nodes: 3, gpus_per_node: 2}]
"""
REWARD = RewardSpec()


def jobs_table(count=160, days=10, seed=0):
    rng = np.random.default_rng(seed)
    second = np.sort(rng.integers(0, days * 86_400, count))
    return pd.DataFrame(
        {
            "job_id": [f"j{i:03d}" for i in range(count)],
            "submit_time": START + pd.to_timedelta(second, unit="s"),
            "duration_s": rng.integers(300, 9000, count).astype(float),
            "gpus": rng.choice([0.5, 1.0, 2.0], count),
            "workers": 1,
            "workload_class": rng.choice(["training", "interactive", "batch_inference"], count),
            "team": "t",
            "project": "p",
        }
    )


def grid_table(days=20):
    times = pd.date_range(START - pd.Timedelta(days=2), periods=24 * days, freq="h")
    price = 0.1 + 0.06 * np.sin(np.arange(len(times)) / 24 * 2 * np.pi)
    return pd.DataFrame({"time": times, "site": "west", "price_usd_per_kwh": price, "carbon_g_per_kwh": 300.0})


@pytest.fixture(scope="module")
def world():
    spec = ClusterSpec("t", (SiteSpec("west"),), (PoolSpec("w", "west", "V100", 3, 2),))
    return build_world(spec, cut_windows(prepare_jobs(jobs_table(), spec), grid_table(), 86_400, 3, seed=1))


class Listed:
    """A search over a list of values, defaults first; it keeps its trials as Optuna would."""

    def __init__(self, judge, values=(), kept=()):
        self.left = [*([] if kept else [default_values(judge)]), *values]
        self.kept = list(kept)

    def finished(self):
        return list(self.kept)

    def run(self, score):
        values = self.left.pop(0)
        self.kept.append(Scored(values, *score(values)))
        return self.kept[-1]


# ---------------------------------------------------------------- the search


def test_every_judge_gets_its_defaults_and_the_same_number_of_trials(world):
    searches = {}

    def search(judge):
        searches[judge.name] = Listed(judge, [{"sleep_after_s": 30}, {"sleep_after_s": 7000}, {"sleep_after_s": 90}])
        return searches[judge.name]

    judges = {name: JUDGES[name] for name in ("easy", "best_fit", "greedy_cost")}
    found = tune(world, judges, search, 3, reward=REWARD)
    assert list(found) == list(judges)
    for name, (best, first) in found.items():
        assert len(searches[name].kept) == 3
        assert first.values == default_values(JUDGES[name])
        assert best.objective_usd <= min(trial.objective_usd for trial in searches[name].kept) * 1.001


def test_a_trial_is_scored_by_the_mean_over_all_windows(world):
    found = tune(world, {"easy": JUDGES["easy"]}, lambda judge: Listed(judge, [{"sleep_after_s": 7000}]), 2, reward=REWARD, tie=0.0)
    frame = evaluate(world, {"slow": JUDGES["easy"].tuned({"sleep_after_s": 7000}), "easy": JUDGES["easy"]}, reward=REWARD)
    means = frame.groupby("policy")["objective_usd"].mean()
    best, first = found["easy"]
    assert first.objective_usd == means["easy"]
    assert best.objective_usd == means.min()
    assert means["slow"] != means["easy"], "the parameter matters here"


def test_trials_of_an_earlier_run_count(world):
    kept = [Scored({"sleep_after_s": 600}, 5.0, 0.0), Scored({"sleep_after_s": 60}, 1.0, 0.0)]
    search = Listed(JUDGES["easy"], [{"sleep_after_s": 70}], kept)
    best, first = tune(world, {"easy": JUDGES["easy"]}, lambda judge: search, 2, reward=REWARD)["easy"]
    assert (best, first) == (kept[1], kept[0])
    assert len(search.left) == 1, "nothing was run"
    tune(world, {"easy": JUDGES["easy"]}, lambda judge: search, 3, reward=REWARD)
    assert search.left == []


def test_missed_deadlines_decide_between_trials_of_nearly_the_same_objective():
    trials = [Scored({"x": 1}, 100.0, 3.0), Scored({"x": 2}, 100.05, 1.0), Scored({"x": 3}, 100.09, 1.0), Scored({"x": 4}, 102.0, 0.0)]
    assert best_of(trials, 0.001).values == {"x": 2}
    assert best_of(trials, 0.0).values == {"x": 1}
    assert best_of(trials, 0.1).values == {"x": 4}
    negative = [Scored({"x": 1}, -10.0, 1.0), Scored({"x": 2}, -9.999, 0.0), Scored({"x": 3}, -5.0, 0.0)]
    assert best_of(negative, 0.001).values == {"x": 2}


def test_the_key_of_a_study_tells_worlds_judges_and_seeds_apart(world):
    other = dataclasses.replace(world, jobs=world.jobs._replace(duration_s=world.jobs.duration_s + 1))
    easy = JUDGES["easy"]
    keys = [
        study_key(world, REWARD, easy, 0),
        study_key(other, REWARD, easy, 0),
        study_key(world, RewardSpec(w_carbon=3.0), easy, 0),
        study_key(world, REWARD, JUDGES["sjf"], 0),
        study_key(world, REWARD, easy, 1),
    ]
    assert len(set(keys)) == 5
    assert study_key(world, REWARD, easy, 0) == keys[0]


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = jobs_table()
    table.assign(submit_time=table["submit_time"].map(lambda t: t.isoformat())).to_csv("jobs.csv", index=False)
    grid_table().to_csv("grid.csv", index=False)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    return tmp_path


@pytest.fixture
def call(folder, monkeypatch, capsys):
    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        with pytest.raises(SystemExit) as ended:
            module.main()
        return ended.value.code, capsys.readouterr()

    return run


TABLES = ("jobs=jobs.csv", "grid=grid.csv", "cluster=cluster.yaml", "progress=false")
SMALL = ("trials=4", "windows=3", "window_hours=24", "out=judges.yaml", "storage=judges.journal")


@needs_optuna
def test_judges_are_tuned_resumed_and_evaluated(call, folder, monkeypatch):
    code, streams = call(command, *TABLES, *SMALL, "judges=[threshold,ces]")
    assert code == 0, streams.err
    content = yaml.safe_load((folder / "judges.yaml").read_text())
    assert set(content["judges"]) == {"threshold", "ces"}
    assert pd.Timestamp(content["about"]["trained_until"]) <= part_span(jobs_table(), "train")[1]
    for name, entry in content["judges"].items():
        assert set(entry["settings"]) == {parameter.name for parameter in JUDGES[name].space}
        assert entry["objective_usd"] <= entry["default_objective_usd"] * 1.001
    # The same command finds all trials done; more trials go on from them.
    scored = []
    monkeypatch.setattr(command, "evaluate", lambda *args, **options: scored.append(args) or evaluate(*args, **options))
    assert call(command, *TABLES, *SMALL, "judges=[threshold,ces]")[0] == 0
    assert yaml.safe_load((folder / "judges.yaml").read_text()) == content
    assert scored == []
    assert call(command, *TABLES, *SMALL, "judges=[threshold]", "trials=6")[0] == 0
    assert len(scored) == 2

    tuned = read_judges("judges.yaml").judges["threshold"]
    assert tuned.settings != JUDGES["threshold"].settings
    names = "policies=[k8s_default,threshold]"
    code, streams = call(evaluate_command, *TABLES, names, "judges=judges.yaml", "windows=2", "window_hours=24", "part=test", "out=a.json")
    assert code == 0, streams.err
    found = json.loads((folder / "a.json").read_text())
    assert any(note.startswith("threshold tuned by judges.yaml: ") for note in found["notes"])
    assert not any("were tuned; part=test" in note for note in found["notes"])
    assert min(row["window_start"] for row in found["policies"]["threshold"]["windows"]) >= content["about"]["trained_until"]
    assert resolve_policy("threshold", judges={"threshold": tuned}) is tuned
    code, _ = call(evaluate_command, *TABLES, names, "judges=judges.yaml", "windows=2", "window_hours=24", "out=b.json")
    assert code == 0
    assert any("windows begin before" in note for note in json.loads((folder / "b.json").read_text())["notes"])


@needs_optuna
def test_the_same_seed_finds_the_same(call, folder):
    for name in ("a", "b"):
        code, _ = call(command, *TABLES, *SMALL, "judges=[lookahead]", f"out={name}.yaml", f"storage={name}.journal")
        assert code == 0
    assert (folder / "a.yaml").read_text() == (folder / "b.yaml").read_text()


def test_without_optuna_the_command_says_what_is_missing(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, streams = call(command, *TABLES, *SMALL)
    assert code == 2
    assert "Optuna is not installed" in streams.err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("judges=[k8s_default]", "judge 'k8s_default'.*allowed.*easy"),
        ("judges=easy", "judges=easy.*a list"),
        ("trials=0", "trials=0"),
        ("part=noon", "part=noon.*train, validation, test"),
        ("split=[0.5,0.5]", "three shares"),
        ("tie=-1", "tie=-1"),
        ("seed=no", "seed=no"),
        ("trial=3", "trial: no such key; near: trials"),
    ],
)
def test_bad_arguments_are_named(call, argument, said):
    code, streams = call(command, *TABLES, *SMALL, argument)
    assert code == 2
    assert re.search(said, streams.err.replace("\n", " ")), streams.err


def test_no_jobs_is_named(call):
    code, streams = call(command, "progress=false")
    assert code == 2
    assert "no jobs given" in streams.err


@needs_optuna
def test_a_run_that_was_cut_short_tries_the_defaults_all_the_same(tmp_path):
    """A killed trial stays open in the storage: it does not count, and the defaults that it had are tried again."""

    def killed(values):
        raise KeyboardInterrupt

    judge = JUDGES["lookahead"]
    search = command.OptunaSearch(judge, "k", 0, tmp_path / "journal")
    with pytest.raises(KeyboardInterrupt):
        search.run(killed)
    again = command.OptunaSearch(judge, "k", 0, tmp_path / "journal")
    assert again.finished() == []
    assert again.run(lambda values: (7.0, 1.0)) == Scored(default_values(judge), 7.0, 1.0)
    again.run(lambda values: (6.0, 2.0))
    kept = command.OptunaSearch(judge, "k", 0, tmp_path / "journal").finished()
    assert [trial.objective_usd for trial in kept] == [7.0, 6.0]
    assert kept[1].values != kept[0].values


# ---------------------------------------------------------------- files of tuned judges


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "no judges in it"),
        ("judges: {sage: {settings: {}}}", "judge 'sage'"),
        ("judges: {easy: {settings: {hold_s: 3}}}", "parameter 'hold_s'.*allowed: sleep_after_s"),
        ("judges: {easy: {settings: {sleep_after_s: soon}}}", "judge 'easy'.*PARAMETER: VALUE"),
        ("judges: {easy: 3}", "judge 'easy'"),
        ("judges: {threshold: {settings: {threshold_quantile: 2.0}}}", "threshold_quantile 2"),
        ("judges: [", "pipelines.tune_judges wrote"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, said):
    path = tmp_path / "judges.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_judges(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        read_judges(tmp_path / "nowhere.yaml")


def test_parts_do_not_go_with_windows_of_jobs(call):
    code, streams = call(evaluate_command, *TABLES, "part=test", "trace.length=10", "out=a.json")
    assert code == 2
    assert "part=test" in streams.err
