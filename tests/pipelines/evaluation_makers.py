"""Clusters and jobs for tests of ``python -m pipelines.evaluate``."""

import numpy as np
import pandas as pd

START = pd.Timestamp("2026-01-05", tz="UTC")


def cluster_yaml(nodes, gpus):
    """Two sites with a pool each, two power levels."""
    return f"""
level_fractions: [1.0, 0.6]
sites: [{{name: west}}, {{name: east}}]
pools:
  - {{name: w, site: west, gpu_model: V100, nodes: {nodes}, gpus_per_node: {gpus}}}
  - {{name: e, site: east, gpu_model: A40, nodes: {nodes}, gpus_per_node: {gpus}}}
"""


def jobs_table(count, hours, gpus, classes, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "job_id": [f"j{i:03d}" for i in range(count)],
            "submit_time": START + pd.to_timedelta(np.sort(rng.integers(0, hours * 3600, count)), unit="s"),
            "duration_s": rng.integers(600, 9000, count).astype(float),
            "gpus": rng.choice(gpus, count),
            "workers": 1,
            "workload_class": rng.choice(classes, count),
            "team": "t",
            "project": "p",
        }
    )
