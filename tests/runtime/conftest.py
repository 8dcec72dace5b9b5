"""A registry with a promoted policy, made once for the session."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from envs.agent.policy import AgentPolicy
from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.observation import N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, SCORE, ObservationLayout
from envs.reward import RewardSpec
from registry.gates import Digest, NoPickle, StandIn, run_gates
from registry.manifest import Manifest
from registry.mlflow_client import open_client
from registry.packaging import draft_package, judge_weights, register, seal_package
from registry.promotion import champion_version, promote
from registry.tracking import Tracking, open_tracking

ROOT = Path(__file__).resolve().parents[2]
NAME = "scheduling-policy"


def publish_policy(tracking: Tracking, parent: Path, name: str, save) -> str:
    """Package, register and promote a policy; its version."""
    cluster = load_cluster("sample", ROOT / "conf")
    layout = ObservationLayout(len(cluster.pools), len(cluster.level_fractions))
    identity = Manifest(
        kind="policy",
        name=name,
        registered_name=NAME,
        created="2026-02-01T00:00:00+00:00",
        config={},
        layout={"pools": layout.n_pools, "levels": layout.n_levels, "cluster": asdict(cluster), "reward": asdict(RewardSpec())},
        data={"sha256": "ab" * 32, "rows": 10, "start": "2026-01-05", "end": "2026-01-06"},
        git={"commit": "c" * 40, "dirty": False},
        environment={"python": "3.11"},
        metrics={"objective_usd": 50.0},
    )
    example = np.zeros((1, layout.size), dtype=np.float32)
    example[0, 0] = 1.0
    draft = draft_package(parent, identity, save, figures={}, input_example=example)
    verdicts = run_gates([StandIn(), NoPickle(), Digest()], {"stand_in": {"learned": None, "refusals": []}, "package": draft})
    seal_package(draft, verdicts)
    with tracking.run("package") as run:
        version = register(run, draft.folder)
    promote(tracking.client, NAME, version, expected_champion=champion_version(tracking.client, NAME))
    return version


def random_agent(seed: int = 0, hidden: int = 8) -> AgentPolicy:
    """An agent of random weights."""
    rng = np.random.default_rng(seed)
    shapes = {
        "from_candidate.weight": (hidden, N_CANDIDATE_FEATURES),
        "from_candidate.bias": (hidden,),
        "from_global.weight": (hidden, N_GLOBAL_FEATURES),
        "mix.weight": (hidden, hidden),
        "mix.bias": (hidden,),
        "mix_context.weight": (hidden, hidden),
        "residual.weight": (1, hidden),
        "residual.bias": (1,),
        "log_kappa": (),
    }
    weights = {name: np.asarray(rng.normal(0, 0.5, shape)) for name, shape in shapes.items()}
    return AgentPolicy(weights, JUDGES["lookahead"].settings, SCORE)


@pytest.fixture(scope="session")
def agent():
    """``agent(seed, hidden)`` makes an agent of random weights."""
    return random_agent


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """MLflow needs seconds for its first tables; registries copy this file."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    open_client(f"sqlite:///{path}", must_exist=False)
    return path


@pytest.fixture(scope="session")
def judge_registry(tmp_path_factory, empty_database) -> Tracking:
    folder = tmp_path_factory.mktemp("judge-registry")
    shutil.copy(empty_database, folder / "mlflow.db")
    tracking = open_tracking(f"sqlite:///{folder}/mlflow.db")
    publish_policy(tracking, folder / "made", "lookahead", judge_weights("lookahead", JUDGES["lookahead"].settings))
    return tracking


@pytest.fixture
def publish():
    """``publish(tracking, folder, name, save_weights)`` promotes a policy."""
    return publish_policy
