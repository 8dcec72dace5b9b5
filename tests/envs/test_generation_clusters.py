"""The clusters of four GPU generations have the size their names say; the openb cluster has the nodes of its trace; both run jobs."""

import os
from pathlib import Path

import pandas as pd
import pytest

from envs.cluster_io import load_cluster
from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.windows import WindowTables, constant_grid, prepare_jobs
from envs.world import build_world

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
NODES = Path(os.environ.get("JOULEWISE_TRACES", ROOT / ".." / "shared" / "traces")) / "a_jobs" / "openb_node_list_all_node.parquet"
SIZES = [(16, 84), (128, 672), (1000, 5252), (10_000, 52_500)]


@pytest.mark.parametrize(("nodes", "gpus"), SIZES)
def test_sizes_and_generations(nodes, gpus):
    cluster = load_cluster(f"gen{nodes}", CONF)
    assert sum(pool.nodes for pool in cluster.pools) == nodes
    assert cluster.total_gpus == gpus
    assert f"{nodes:,} nodes, {gpus:,} GPUs" in (CONF / "cluster" / f"gen{nodes}.yaml").read_text().splitlines()[0]
    assert {pool.gpu_model for pool in cluster.pools} == {"P100", "V100", "A100", "H100"}


def test_openb_counts():
    cluster = load_cluster("openb", CONF)
    assert sum(pool.nodes for pool in cluster.pools) == 1213
    assert cluster.total_gpus == 6212


@pytest.mark.skipif(not NODES.is_file(), reason=f"no node list at {NODES}")
def test_openb_has_the_nodes_of_the_trace():
    raw = pd.read_parquet(NODES)
    raw = raw[raw["gpu"] > 0]
    groups = raw.groupby([raw["model"].str.lower(), "gpu", raw["cpu_milli"] // 1000, (raw["memory_mib"] / 1024).round().astype(int)]).size()
    expected = {f"{model}-{gpus}g-{cpus}c-{gib}m": (gpus, count) for (model, gpus, cpus, gib), count in groups.items()}
    assert {pool.name: (pool.gpus_per_node, pool.nodes) for pool in load_cluster("openb", CONF).pools} == expected


@pytest.mark.parametrize("name", ["gen16", "openb"])
def test_a_job_runs(name):
    cluster = load_cluster(name, CONF)
    start = pd.Timestamp("2024-01-08", tz="UTC")
    jobs = pd.DataFrame({"job_id": ["a", "b"], "submit_time": start, "duration_s": 600.0, "gpus": [0.5, 4.0], "workers": 1})
    grid = constant_grid([site.name for site in cluster.sites], start, start + pd.Timedelta(days=1))
    window = WindowTables(start, prepare_jobs(jobs, cluster), grid, 3600)
    totals = run_policy(build_world(cluster, [window]), JUDGES["k8s_default"], RewardSpec())
    assert totals.energy_kwh.sum() > 0
    assert (totals.job_end_s[0] > 0).all()
    assert not totals.job_rejected.any()
