"""``python -m pipelines.sweep``: validation windows only, the same study whether killed or not, promotion by the main job alone."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from models.backtest import StoppedError, run_backtest
from models.backtest_plan import BacktestConfig, plan_origins
from models.series_store import frame_batches, read_store
from models.validation import validate, validation_of
from pipelines.cli import compose_config, group_choices
from pipelines.sweeping.space import Parameter, Space, current, overridden, space_of
from telemetry.errors import InputError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="Optuna is not installed")
CONFIG = BacktestConfig(horizon=6, origins=6, calibration_origins=5)
OPTIONS = {"n_estimators": 8, "max_train_rows": 800, "min_data_in_leaf": 20, "threads": 1}
SPACE = Space(
    "toy",
    "agent",
    {"agent.x": Parameter(0.0, 1.0), "agent.n": Parameter(1, 50, log=True, whole=True), "agent.c": Parameter(choices=([1, 2], [3]))},
)


def demand(series=3, rows=700, seed=0):
    rng = np.random.default_rng(seed)
    times = pd.date_range("2026-01-05", periods=rows, freq="10min")
    parts = []
    for k in range(series):
        y = 20 + 8 * np.sin(np.arange(rows) / 144 * 2 * np.pi + k) + np.cumsum(rng.normal(scale=0.3, size=rows))
        parts.append(pd.DataFrame({"unique_id": f"s{k}", "ds": times, "y": np.maximum(y, 0)}))
    return pd.concat(parts, ignore_index=True)


def cut(frame):
    plan = plan_origins(read_store(frame_batches(frame), "10min"), CONFIG, 144)
    return validation_of(frame, "10min", CONFIG, plan), plan


def test_validation_is_the_calibration_part_of_the_backtest_and_sees_nothing_later():
    frame = demand()
    family, plan = cut(frame)
    first_test = frame["ds"].max() - plan.test[0] * pd.Timedelta("10min")
    assert family.series["ds"].max() == first_test
    steps = []
    value = validate("lightgbm", {"t": OPTIONS}, {"t": family}, lambda step, so_far: steps.append((step, so_far)))
    whole = run_backtest(frame, "10min", {"lightgbm": OPTIONS}, CONFIG, forecasts="none")
    expected = whole.scores["lightgbm"].calibration["wql"] / whole.reference_scores["persistence"].calibration["wql"]
    assert value == pytest.approx(expected, rel=1e-12)
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5]
    assert steps[-1][1] == pytest.approx(value, rel=1e-12)
    spoiled = frame.assign(y=frame["y"].where(frame["ds"] <= first_test, 1e6))
    assert validate("lightgbm", {"t": OPTIONS}, {"t": cut(spoiled)[0]}) == value


def test_families_are_averaged_and_a_report_may_stop():
    one, other = cut(demand(seed=1))[0], cut(demand(seed=2))[0]
    both = validate("lightgbm", {"a": OPTIONS, "b": OPTIONS}, {"a": one, "b": other})
    alone = [validate("lightgbm", {"t": OPTIONS}, {"t": family}) for family in (one, other)]
    assert both == pytest.approx(math.sqrt(alone[0] * alone[1]), rel=1e-12)
    seen = []

    def stop(step, value):
        seen.append(step)
        if step == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        validate("lightgbm", {"t": OPTIONS}, {"t": one}, stop)
    assert seen == [1, 2]


@pytest.mark.parametrize("name", group_choices("sweep_space"))
def test_every_shipped_space_names_keys_that_exist_and_holds_the_defaults(name):
    cfg = compose_config("sweep", [f"sweep_space={name}"])
    space, raw = space_of(cfg), OmegaConf.to_container(cfg, resolve=True)
    for key, value in current(raw, space).items():
        assert space.parameters[key].holds(value), f"{key}={value}: the first trial, the configuration as it is, lies outside"


def test_overrides_reach_all_forecasters_or_the_one_chosen():
    for chosen in ([], ["forecaster=lightgbm"]):
        raw = OmegaConf.to_container(compose_config("sweep", chosen), resolve=True)
        fresh = overridden(raw, {"forecaster.lightgbm.num_leaves": 5})
        assert current(fresh, Space("s", "forecaster", {"forecaster.lightgbm.num_leaves": Parameter(1, 9)}, "lightgbm")) == {
            "forecaster.lightgbm.num_leaves": 5
        }
        assert raw != fresh


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+sweep_space.parameters.seed={low: 0, high: 1}", r"seed.*forecaster\.lightgbm"),
        ("sweep_space.objective=luck", "forecaster, agent"),
        ("sweep_space.member=oracle", "prophet"),
    ],
)
def test_wrong_spaces_are_refused(override, said):
    with pytest.raises(InputError, match=said):
        space_of(compose_config("sweep", [override]))


@pytest.mark.parametrize(
    "options",
    [{"low": 1.0}, {"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}, {}, {"low": 0.5, "high": 2.0, "whole": True}],
)
def test_a_range_that_is_none_is_refused(options):
    with pytest.raises(InputError):
        Parameter(**options)


class KilledError(BaseException):
    """Stands for the end of the process."""


def scored(task):
    """A trial without training: intermediate values fall towards what the values say."""
    from pipelines.sweeping.study import Outcome, Pruning

    pruning, x, n = Pruning(task), task.values["agent.x"], task.values["agent.n"]
    goal = (x - 0.3) ** 2 + 0.01 * abs(math.log(n) - 2) + 0.05 * (task.values["agent.c"] == [3])
    for step in range(1, task.steps + 1):
        if pruning.report(step, goal + 1 / step):
            return Outcome("pruned", None, pruning.intermediate, 0.1, rungs=pruning.rungs())
    return Outcome("complete", goal, pruning.intermediate, 0.1, rungs=pruning.rungs())


def search(storage, trials=12, *, kill_at=None, pruner="median", **changes):
    """A study in batches of 3; ``kill_at`` ends it before that trial is told."""
    from pipelines.sweeping.study import TrialStore

    options = {"seed": 1, "owner": "here", "pruner": pruner} | {k: v for k, v in changes.items() if k in ("owner", "take_over", "seed")}
    asked = {"space": changes.get("space", SPACE).described()["parameters"], "data_sha256": {"t": changes.get("data", "a")}}
    store, told = TrialStore(storage, "toy", changes.get("space", SPACE), asked, **options), 0
    while batch := store.propose(3, trials, {"agent.x": 0.9, "agent.n": 40, "agent.c": [3]}, 6):
        for trial, task in batch:
            if told == kill_at:
                raise KilledError
            store.tell(trial, scored(task))
            told += 1
    return store


def record(store):
    return [(t.user_attrs["place"], t.state.name, t.value, t.params, t.intermediate_values) for t in store.finished()]


def storage_in(folder):
    from pipelines.sweeping.study import open_storage

    return open_storage(f"sqlite:///{folder}/optuna.db")


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_killed_study_goes_on_to_the_same_end(tmp_path, pruner):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = search(storage_in(tmp_path / "a"), pruner=pruner)
    for kill_at in (1, 4):
        with pytest.raises(KilledError):
            search(storage_in(tmp_path / "b"), kill_at=kill_at, pruner=pruner)
    resumed = search(storage_in(tmp_path / "b"), pruner=pruner)
    assert resumed.lost > 0
    assert record(resumed) == record(whole)
    assert [place for place, *_ in record(whole)] == list(range(12))
    first = whole.finished()[0]
    assert whole.space.read(first.params) == {"agent.x": 0.9, "agent.n": 40, "agent.c": [3]}
    assert {t.state.name for t in whole.finished()} == {"COMPLETE", "PRUNED"}
    assert whole.best().value < first.value
    before = record(whole)
    assert record(search(storage_in(tmp_path / "a"), 15, pruner=pruner))[:12] == before


def test_another_question_under_the_same_name_is_refused(tmp_path):
    search(storage_in(tmp_path), 3)
    wider = Space("toy", "agent", {**SPACE.parameters, "agent.x": Parameter(0.0, 2.0)})
    with pytest.raises(InputError, match=r"another question.*space\.agent\.x.*1\.0.*2\.0.*sweep\.study=NAME"):
        search(storage_in(tmp_path), 3, space=wider)
    with pytest.raises(InputError, match=r"data_sha256\.t: a -> b"):
        search(storage_in(tmp_path), 3, data="b")
    with pytest.raises(InputError, match="pruner: median -> none"):
        search(storage_in(tmp_path), 3, pruner="none")


def test_trials_that_run_on_another_host_are_left_alone(tmp_path):
    with pytest.raises(KilledError):
        search(storage_in(tmp_path), kill_at=1)
    with pytest.raises(InputError, match=r"run on here.*take_over=true"):
        search(storage_in(tmp_path), owner="there")
    assert len(search(storage_in(tmp_path), 6, owner="there", take_over=True).finished()) == 6


def test_where_trials_are_kept(tmp_path):
    from pipelines.sweeping.study import storage_url

    assert storage_url(f"sqlite:///{tmp_path}/mlflow.db", None, None, tmp_path / "out") == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url("http://server:5000", None, None, tmp_path) == f"sqlite:///{tmp_path}/optuna.db"
    assert "search_path%3Doptuna" in storage_url("postgresql://u@h/mlflow", None, None, tmp_path)
    secret = tmp_path / "url"
    secret.write_text("postgresql://u:p@h/d\n")
    assert storage_url("sqlite:///x.db", None, str(secret), tmp_path) == "postgresql://u:p@h/d"
    with pytest.raises(InputError, match="one of them"):
        storage_url("sqlite:///x.db", "sqlite:///y.db", str(secret), tmp_path)


def test_an_unreachable_database_is_named_without_its_password():
    from pipelines.sweeping.study import open_storage

    pytest.importorskip("psycopg2")
    with pytest.raises(InputError, match="no postgresql database") as caught:
        open_storage("postgresql://u:hunter2@127.0.0.1:1/d")
    assert "hunter2" not in str(caught.value)


def test_the_command_searches_records_and_hands_the_best_to_the_main_job(tmp_path, monkeypatch, capsys):
    from pipelines import sweep as command
    from pipelines.stages.forecasters import series_path
    from registry.tracking import open_tracking

    features = tmp_path / "features"
    features.mkdir()
    demand().to_parquet(series_path(features, "workload"))
    (features / "bounds.json").write_text("{}")
    trained = []
    monkeypatch.setattr(command, "features_folder", lambda config: features)
    monkeypatch.setattr(command, "run_stages", lambda config: trained.append(config))
    monkeypatch.setattr(command, "closing_lines", lambda config, workspace, seconds: ["closing"])
    always = [
        "target=workload", "target.horizon=6", "forecaster=lightgbm", "forecaster.max_train_rows=800", "forecaster.threads=1",
        "engine.workers=1",
        "backtest.origins=6", "backtest.calibration_origins=4", f"output_dir={tmp_path}/out", f"registry.tracking_uri=sqlite:///{tmp_path}/m.db",
        "registry.artifact_root=null", "sweep.trials=4",
        "sweep_space.parameters={forecaster.lightgbm.n_estimators: {low: 4, high: 60, whole: true}}",
    ]  # fmt: skip
    sweep = command.sweep_of(compose_config("sweep", always))
    with pytest.raises(InputError, match="none was begun"):
        command.show(sweep)
    store = command.run_sweep(sweep, progress=False)
    assert len(store.finished()) == 4
    client = open_tracking(f"sqlite:///{tmp_path}/m.db", None, "joulewise").client
    parent = client.get_run(store.study.user_attrs["mlflow_run"])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.data.tags["trial"] for run in children) == ["0", "1", "2", "3"]
    first = next(run for run in children if run.data.tags["trial"] == "0")
    assert first.data.params["forecaster.lightgbm.n_estimators"] == "60"
    assert set(first.data.params) == set(sweep.space.parameters)
    assert [m.step for m in client.get_metric_history(first.info.run_id, "objective")] == [1, 2, 3, 4]
    assert parent.data.metrics["best_value"] == store.best().value
    plots = {file.path for file in client.list_artifacts(parent.info.run_id, "plots")}
    assert {"plots/history.png", "plots/slices.png", "plots/learning.png"} <= plots

    again = command.run_sweep(sweep, progress=False)
    assert (again.study.user_attrs["mlflow_run"], len(again.finished())) == (parent.info.run_id, 4)
    assert command.show(sweep).startswith("4 trials: ")

    best = store.space.read(store.best().params)
    changed = {**best, "forecaster.lightgbm.n_estimators": 7}
    assert "python -m pipelines.train forecaster.n_estimators=7" in command.train_command(sweep, changed)
    assert command.finish(sweep, best) == ["closing"]
    assert trained[0].forecasters["lightgbm"]["n_estimators"] == best["forecaster.lightgbm.n_estimators"]
    assert trained[0].stages == ("ingest", "features", "forecasters", "agent", "evaluate", "promote")
