"""Run by ``test_engine_ray`` in a process of its own: Ray on this machine, or a cluster of two nodes; a worker or a node is killed."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_backtest_scale import CONFIG, IN_CHUNKS, LIGHTGBM, MEMBERS, assert_same_scores, fleet

from models.backtest import run_backtest
from models.backtest_plan import plan_origins
from models.engine import make_engine
from models.series_store import frame_batches, read_store
from models.validation import validation_of
from telemetry.errors import InputError

MARKS = Path(sys.argv[1])


def number(task, shared):
    """A result in which every bit counts; the first try of task 3 ends its worker."""
    mark = MARKS / f"tried-{task}"
    if task == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return (np.random.default_rng(task).normal(size=1000) * shared).sum()


def fatal(task, shared):
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(task, shared):
    (MARKS / f"wrong-{len(list(MARKS.glob('wrong-*')))}").touch()
    raise InputError("no such value", where="task")


def slow(task, shared):
    (MARKS / f"slow-{task}-{os.environ['NODE']}-{time.monotonic_ns()}").touch()
    if os.environ["NODE"] == "second" and not (MARKS / "lost").exists():
        time.sleep(60)  # until its node is gone
    return (np.random.default_rng(task).normal(size=1000) * shared).sum()


def same_backtest(engine):
    """Pooled and per-series members in chunks of series, then in folds."""
    for members, config in ((MEMBERS, IN_CHUNKS), ({"lightgbm": LIGHTGBM}, replace(CONFIG, refit_every=3))):
        here, there = (run_backtest(fleet(), "10min", members, config, engine=one, forecasts="none") for one in (None, engine))
        assert_same_scores(here, there)


def same_trials(engine):
    """Trials of a sweep, pruned ones among them."""
    from omegaconf import OmegaConf

    from pipelines.cli import compose_config
    from pipelines.sweeping.scoring import Question, run_trial
    from pipelines.sweeping.space import space_of
    from pipelines.sweeping.study import Task

    series = fleet()
    plan = plan_origins(read_store(frame_batches(series), "10min"), CONFIG, 144)
    family = validation_of(series, "10min", CONFIG, plan)
    cfg = compose_config("sweep", ["forecaster=lightgbm", "forecaster.max_train_rows=800", "forecaster.threads=1"])
    question = Question(space_of(cfg), OmegaConf.to_container(cfg, resolve=True), MARKS, {"t": family}, {"t": {}}, family.origins, {})
    hopeless = tuple({"state": "complete", "value": 0.01, "intermediate": dict.fromkeys(range(1, 9), 0.01)} for _ in range(5))
    values = [{"forecaster.lightgbm.n_estimators": n} for n in (5, 9)]
    tasks = [Task(5 + k, values[k], "median", family.origins, hopeless if k else ()) for k in range(2)]
    found = []
    for one in (make_engine("local"), engine):
        found.append({k: (o.state, o.value, o.intermediate, o.error) for k, o in one.map(run_trial, tasks, question)})
    assert found[0] == found[1]
    assert [found[0][k][0] for k in range(2)] == ["complete", "pruned"]


def killed_worker():
    (MARKS / "tried-3").touch()
    expected = dict(make_engine("local").map(number, range(8), 1.5))
    (MARKS / "tried-3").unlink()
    with make_engine("ray", 2) as engine:
        assert dict(engine.map(number, range(8), 1.5)) == expected
        assert (MARKS / "tried-3").exists(), "no worker was killed"
        same_backtest(engine)
        same_trials(engine)
        with pytest.raises(InputError, match="no such value"):
            list(engine.map(wrong, [0]))
        assert len(list(MARKS.glob("wrong-*"))) == 1, "what a task raises is not tried again"
        with pytest.raises(InputError, match="task 0 was lost 4 times"):
            list(engine.map(fatal, [0]))


def lost_node():
    from ray.cluster_utils import Cluster

    os.environ["NODE"] = "first"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["NODE"] = "second"
    second = cluster.add_node(num_cpus=1)
    expected = [(np.random.default_rng(k).normal(size=1000) * 2.0).sum() for k in range(4)]

    def pull():
        while not list(MARKS.glob("slow-*-second-*")):
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        (MARKS / "lost").touch()

    with make_engine("ray", 2, cluster.address) as engine:
        thread = threading.Thread(target=pull)
        thread.start()
        found = dict(engine.map(slow, range(4), 2.0))
        thread.join()
    assert [found[k] for k in range(4)] == expected
    assert (MARKS / "lost").exists()
    cluster.shutdown()


if __name__ == "__main__":
    {"worker": killed_worker, "node": lost_node}[sys.argv[2]]()
    print("same")
