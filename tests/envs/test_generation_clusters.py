"""The clusters of four GPU generations have the size their names say, and every pool states CPUs, memory and racks."""

from pathlib import Path

import pytest

from envs.cluster_io import load_cluster

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(("nodes", "gpus"), [(16, 84), (128, 672), (1000, 5252), (10_000, 52_500)])
def test_size_generations_and_resources(nodes, gpus):
    path = CONF / "cluster" / f"gen{nodes}.yaml"
    cluster = load_cluster(f"gen{nodes}", CONF)
    assert sum(pool.nodes for pool in cluster.pools) == nodes
    assert cluster.total_gpus == gpus
    assert f"{nodes:,} nodes, {gpus:,} GPUs" in path.read_text().splitlines()[0]
    assert {pool.gpu_model for pool in cluster.pools} == {"P100", "V100", "A100", "H100"}
    for pool in cluster.pools:
        assert pool.cpus_per_node > 0
        assert pool.memory_gib_per_node > 0
        assert pool.nodes_per_rack > 0
