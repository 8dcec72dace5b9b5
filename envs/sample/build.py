"""All files of the sample, in memory."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable

import numpy as np

from envs.cluster import ClusterSpec
from envs.sample.grid import make_grid
from envs.sample.job_exports import SHARDS_PER_GPU, grid_text, kubernetes_text, name_jobs, sacct_text
from envs.sample.metric_exports import Scene, ipmi_text, otlp_text, prometheus_text
from envs.sample.readme import readme_text
from envs.sample.replay import Replay, interval_watts, replay
from envs.sample.settings import GENERATOR_VERSION, INTERVAL_S, SampleSettings
from envs.sample.workload import make_jobs, request_rates

FILE_KINDS: dict[str, str] = {
    "dcgm_query_range.json.gz": "prometheus",
    "otel_metrics.jsonl.gz": "otlp",
    "ipmi_nodes.txt.gz": "ipmi",
    "sacct.txt.gz": "slurm",
    "k8s_jobs.json.gz": "kubernetes",
    "grid.csv": "grid",
}


def make_scene(settings: SampleSettings, cluster: ClusterSpec) -> Scene:
    """Jobs, placement and watts, before any export."""
    result = replay(make_jobs(settings, cluster), cluster, settings)
    result = Replay(name_jobs(result.jobs), result.shares, result.gpus_per_node)
    return Scene(settings, cluster, result, interval_watts(result, cluster, settings), request_rates(settings))


def build_sample(settings: SampleSettings, cluster: ClusterSpec, progress: Callable[[str], None] = lambda _: None) -> dict[str, bytes]:
    """File name -> content; the same settings give the same bytes.

    Args:
        progress: told the name of each file when it is ready.
    """
    progress("jobs and watts")
    scene = make_scene(settings, cluster)
    jobs = scene.replay.jobs
    writers: dict[str, Callable[[], tuple[str, dict[str, int]]]] = {
        "dcgm_query_range.json.gz": lambda: prometheus_text(scene),
        "otel_metrics.jsonl.gz": lambda: otlp_text(scene),
        "ipmi_nodes.txt.gz": lambda: ipmi_text(scene),
        "sacct.txt.gz": lambda: sacct_text(jobs, cluster, settings),
        "k8s_jobs.json.gz": lambda: kubernetes_text(jobs, settings),
        "grid.csv": lambda: grid_text(make_grid(settings), settings),
    }
    files: dict[str, bytes] = {}
    planted: dict[str, dict[str, int]] = {}
    for name, write in writers.items():
        progress(name)
        text, planted[name] = write()
        files[name] = compress(text) if name.endswith(".gz") else text.encode()
    files["manifest.json"] = (json.dumps(_manifest(settings, cluster, planted), indent=2) + "\n").encode()
    by_site = {site: int((jobs["site"] == site).sum()) for site in ("west", "east")}
    files["README.md"] = readme_text(settings, GENERATOR_VERSION, planted, by_site).encode()
    return files


def compress(text: str) -> bytes:
    """Gzip without a time or a name in the header."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=9, mtime=0) as out:
        out.write(text.encode())
    return buffer.getvalue()


def _manifest(settings: SampleSettings, cluster: ClusterSpec, planted: dict[str, dict[str, int]]) -> dict[str, object]:
    pools = [pool for pool in cluster.pools for _ in range(pool.nodes)]
    return {
        "synthetic": True,
        "generator": "python -m pipelines.make_sample",
        "generator_version": GENERATOR_VERSION,
        "seed": settings.seed,
        "start": settings.start,
        "end": (settings.start_time + np.timedelta64(settings.length_s, "s")).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "interval_s": INTERVAL_S,
        "shards_per_gpu": SHARDS_PER_GPU,
        "files": dict(FILE_KINDS),
        "nodes": {
            name: {"site": pool.site, "pool": pool.name, "gpu_model": pool.gpu_model, "gpus": pool.gpus_per_node}
            for name, pool in zip(cluster.node_names, pools, strict=True)
        },
        "planted": {name: dict(sorted(counts.items())) for name, counts in planted.items()},
    }
