"""Run by ``test_engine_ray`` in a process of its own: Ray on this machine, or a cluster of two nodes; a worker or a node is killed."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from series_makers import daily, series_frame

from models.backtest import run_backtest
from models.backtest_plan import BacktestConfig
from models.engine import make_engine
from telemetry.errors import InputError

MARKS = Path(sys.argv[1])
CONFIG = BacktestConfig(horizon=6, origins=4, calibration_origins=2, chunk_series=2)


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


def scores(engine=None):
    frame = series_frame({f"s{k}": daily(300, k) for k in range(6)})
    result = run_backtest(frame, "10min", ["seasonal_naive", "empirical_persistence"], CONFIG, engine=engine, forecasts="none")
    return {name: (score.error, score.overall["wql"], score.calibration["wql"]) for name, score in result.scores.items()}


def killed_worker():
    (MARKS / "tried-3").touch()
    expected = dict(make_engine("local").map(number, range(8), 1.5))
    (MARKS / "tried-3").unlink()
    with make_engine("ray", 2) as engine:
        assert dict(engine.map(number, range(8), 1.5)) == expected
        assert (MARKS / "tried-3").exists(), "no worker was killed"
        assert scores(engine) == scores()
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
