"""A registry in a temporary folder, and packages to put into it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.catalog import FORECASTERS
from registry.gates import Digest, NoPickle, SkillOverNaive, run_gates
from registry.keys import create_trust
from registry.manifest import Manifest
from registry.mlflow_client import open_client
from registry.packaging import draft_package, register, seal_package
from registry.tracking import Tracking, open_tracking

WINNING = {"naive": "persistence", "skill": 0.2, "low": 0.1, "high": 0.3, "windows": 40}
LOSING = {"naive": "persistence", "skill": 0.01, "low": -0.05, "high": 0.07, "windows": 40}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """MLflow needs seconds for its first tables; tests copy this file."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    open_client(f"sqlite:///{path}", must_exist=False)
    return path


@pytest.fixture
def tracking(tmp_path, empty_database) -> Tracking:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return open_tracking(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def server_keys(tmp_path, monkeypatch) -> None:
    """The keys of a registry that is a server: made by hand, in the current folder."""
    monkeypatch.chdir(tmp_path)
    create_trust(tmp_path / "keys")


@pytest.fixture(scope="session")
def series() -> pd.DataFrame:
    ds = pd.date_range("2026-01-05", periods=120, freq="10min")
    wave = np.sin(np.arange(120) / 12) + np.random.default_rng(0).normal(0, 0.1, 120)
    return pd.concat(
        [pd.DataFrame({"unique_id": f"gpu_demand/{pool}", "ds": ds, "y": 10 + wave}) for pool in ("a", "b")], ignore_index=True
    )


@pytest.fixture(scope="session")
def forecaster(series):
    return FORECASTERS["persistence"](freq="10min", horizon=6, season_length=24).fit(series)


@pytest.fixture
def make_package(forecaster, series, tmp_path):
    """``make_package(evidence)`` writes a sealed package and returns its folder."""
    count = iter(range(1000))

    def make(evidence=WINNING, registered_name="workload-forecaster", figures=None, spoil=None) -> Path:
        identity = Manifest(
            kind="forecaster",
            name="persistence",
            registered_name=registered_name,
            created="2026-02-01T00:00:00+00:00",
            config={"freq": "10min", "horizon": 6},
            layout={"unique_ids": ["gpu_demand/a", "gpu_demand/b"]},
            data={"sha256": "ab" * 32, "rows": 240, "start": "2026-01-05", "end": "2026-01-06"},
            git={"commit": "c" * 40, "dirty": False},
            environment={"python": "3.11"},
            metrics={"wql": 0.1},
        )
        draft = draft_package(
            tmp_path / f"made-{next(count)}", identity, forecaster.save, figures=figures or {}, input_example=series.tail(2)
        )
        if spoil is not None:
            spoil(draft.folder)
        verdicts = run_gates([SkillOverNaive(), NoPickle(), Digest()], {"skill_over_naive": evidence, "package": draft})
        seal_package(draft, verdicts)
        return draft.folder

    return make


@pytest.fixture
def make_version(tracking, make_package):
    """``make_version()`` registers a new package and returns its version."""

    def make(**options) -> str:
        with tracking.run("package") as run:
            return register(run, make_package(**options))

    return make
