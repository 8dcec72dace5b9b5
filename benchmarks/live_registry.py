"""A registry with a promoted forecaster in it, as the main job would have left it: what live forecasting is measured and tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from models.member import PanelForecaster
from registry.gates import Digest, NoPickle, SkillOverNaive, run_gates
from registry.manifest import Manifest
from registry.packaging import draft_package, register, seal_package
from registry.promotion import champion_version, submit
from registry.tracking import Tracking

EVIDENCE = {"naive": "persistence", "skill": 0.2, "low": 0.1, "high": 0.3, "windows": 40}


def promote_forecaster(tracking: Tracking, forecaster: PanelForecaster, registered: str, scratch: Path) -> str:
    """Package, register and promote a fitted forecaster, with evidence that passes the gates; returns its version."""
    identity = Manifest(
        kind="forecaster",
        name=forecaster.name,
        registered_name=registered,
        created="2026-02-01T00:00:00+00:00",
        config={},
        layout={"freq": forecaster.freq, "horizon": forecaster.horizon},
        data={},
        git={},
        environment={},
        metrics={"wql": 0.1},
    )
    example = pd.DataFrame({"unique_id": ["a"], "ds": [pd.Timestamp("2026-01-05")], "y": [1.0]})
    draft = draft_package(scratch, identity, forecaster.save, figures={}, input_example=example)
    seal_package(draft, run_gates([SkillOverNaive(), NoPickle(), Digest()], {"skill_over_naive": EVIDENCE, "package": draft}))
    with tracking.run("package") as run:
        version = register(run, draft.folder)
    submit(tracking.client, registered, version, expected_champion=champion_version(tracking.client, registered), reason="prepared")
    return version


def demand_series(n_series: int, n_rows: int, *, freq: str = "10min", season: int = 144, seed: int = 0) -> pd.DataFrame:
    """GPU demand of many pools: a level, a daily rhythm, a slow walk and noise; never negative. More rows continue the same series."""
    rng = np.random.default_rng(seed)
    level, phase = np.exp(rng.normal(3.0, 1.0, n_series)), rng.uniform(0.0, 2.0 * np.pi, n_series)
    time = np.arange(n_rows)
    noise = np.random.default_rng([seed, 1]).normal(size=(n_rows, 2, n_series))
    walk = 0.02 * np.cumsum(noise[:, 0], axis=0) + 0.03 * noise[:, 1]
    y = level * np.maximum(1.0 + 0.3 * np.sin(2.0 * np.pi * time[:, None] / season + phase) + walk, 0.0)  # [T, N]
    ds = pd.date_range("2026-01-05", periods=n_rows, freq=freq)
    ids = [f"gpu_demand/pool-{i:04d}" for i in range(n_series)]
    return pd.DataFrame({"unique_id": np.repeat(ids, n_rows), "ds": np.tile(ds, n_series), "y": y.T.ravel()})
