"""A fleet's telemetry in columns, as big as one likes: five DCGM-like metrics a GPU, with the flaws that cleaning looks for.

One Parquet file an interval (ten minutes), in the order of the scrapes (time, node, GPU, metric), as a pipeline appends them. Seeded: the
same arguments give the same files. Jobs hold a GPU for hours: power follows utilization with noise in mW, memory is constant while a job
runs, the energy counter is the integral of power in mJ and restarts at a reset. Lost scrapes (a node for minutes), rows that come twice,
late rows, readings of -1 and impossible watts are planted at the rates below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

METRICS = (
    "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "DCGM_FI_DEV_FB_USED",
    "hw.gpu.memory.utilization",
)  # fmt: skip
START_S = 1_767_571_200  # 2026-01-05T00:00:00Z
GPUS_PER_NODE = 8
TWICE, LATE, NO_READING, IMPOSSIBLE = 5e-4, 3e-4, 2e-4, 1e-5
RESETS_PER_GPU_DAY, OUTAGES_PER_NODE_DAY, JOBS_PER_GPU_DAY = 0.05, 0.5, 4.0


@dataclass(frozen=True)
class Fleet:
    """How much is made: GPUs, hours, seconds between scrapes, and seconds in a file."""

    gpus: int
    hours: float
    step_s: int = 15
    seed: int = 0
    file_s: int = 600

    @property
    def nodes(self) -> list[str]:
        return [f"node{n:05d}" for n in range(-(-self.gpus // GPUS_PER_NODE))]

    @property
    def inventory(self) -> dict[str, dict[str, object]]:
        """Nodes for ``load_inventory``: four pools at two sites."""
        names = self.nodes
        pools = [("east", "east-h100"), ("east", "east-h200"), ("west", "west-h100"), ("west", "west-b200")]
        found = {}
        for index, name in enumerate(names):
            site, pool = pools[index * len(pools) // len(names)]
            found[name] = {"site": site, "pool": pool, "gpu_model": pool.split("-")[1].upper(), "gpus": GPUS_PER_NODE}
        return found


def _coded(names: list[str], codes: np.ndarray) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), names)


class _State:
    """What a GPU [G] carries from one scrape to the next."""

    def __init__(self, gpus: int, rng: np.random.Generator) -> None:
        self.load, self.memory_mib = rng.random(gpus), rng.integers(0, 80_000, gpus).astype(float)
        self.energy_mj, self.job = rng.integers(0, 10**12, gpus).astype(float), rng.integers(0, 2000, gpus)

    def scrape(self, step_s: int, rng: np.random.Generator) -> np.ndarray:
        """Values [G, 5] of one scrape, in the units of the exporter."""
        gpus, day = len(self.load), step_s / 86_400
        new = rng.random(gpus) < JOBS_PER_GPU_DAY * day
        self.load[new] = np.where(rng.random(int(new.sum())) < 0.25, 0.0, rng.random(int(new.sum())))
        self.memory_mib[new], self.job[new] = rng.integers(0, 80_000, int(new.sum())), rng.integers(0, 2000, int(new.sum()))
        busy = np.clip(self.load + 0.03 * rng.standard_normal(gpus), 0, 1) * (self.load > 0)
        watts = np.round(70 + 600 * busy + 4 * rng.standard_normal(gpus), 3)
        self.energy_mj += np.round(watts * step_s * 1e3)
        self.energy_mj[rng.random(gpus) < RESETS_PER_GPU_DAY * day] = 0.0
        return np.stack([watts, np.round(100 * busy), self.energy_mj, self.memory_mib, np.round(self.memory_mib / 81_920, 4)], axis=1)


def write_fleet(folder: Path, fleet: Fleet) -> int:
    """Write the files; returns how many rows they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(fleet.seed)
    state, nodes, total = _State(fleet.gpus, rng), fleet.nodes, 0
    node_of = np.arange(fleet.gpus) // GPUS_PER_NODE
    down_until = np.zeros(len(nodes))
    steps = int(fleet.hours * 3600) // fleet.step_s
    per_file = max(1, fleet.file_s // fleet.step_s)
    for first in range(0, steps, per_file):
        parts = []
        for k in range(first, min(first + per_file, steps)):
            at = START_S + k * fleet.step_s
            values, job = state.scrape(fleet.step_s, rng), state.job.copy()
            fails = rng.random(len(nodes)) < OUTAGES_PER_NODE_DAY * fleet.step_s / 86_400
            down_until[fails] = at + rng.integers(60, 900, int(fails.sum()))
            up = np.flatnonzero((down_until <= at)[node_of])
            parts.append(
                (
                    np.full(len(up) * len(METRICS), at),
                    np.repeat(up, len(METRICS)),
                    np.tile(np.arange(5), len(up)),
                    values[up].ravel(),
                    np.repeat(job[up], 5),
                )
            )
        columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
        total += _write(folder / f"part-{first // per_file:05d}.parquet", _flawed(columns, rng), nodes)
    return total


def _flawed(columns: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    time, _, metric, value, _ = columns
    value[rng.random(len(value)) < NO_READING] = -1
    value[(metric == 0) & (rng.random(len(value)) < IMPOSSIBLE * 5)] = 65_535
    rows = np.arange(len(time), dtype=np.int64)
    late = np.flatnonzero(rng.random(len(time)) < LATE)
    rows[late] += rng.integers(1, max(2, len(time) // 20), len(late))
    order = np.argsort(rows, kind="stable")
    again = np.sort(np.concatenate([np.arange(len(order)), rng.choice(len(order), int(TWICE * len(order)), replace=False)]), kind="stable")
    return [column[order[again]] for column in columns]


def _write(path: Path, columns: list[np.ndarray], nodes: list[str]) -> int:
    time, gpu, metric, value, job = columns
    jobs = [f"job-{j:04d}" for j in range(2000)]
    table = pa.table(
        {
            "timestamp": pa.array(time * 1000, type=pa.timestamp("ms", tz="UTC")),
            "__name__": _coded(list(METRICS), metric),
            "Hostname": _coded(nodes, gpu // GPUS_PER_NODE),
            "gpu": _coded([str(g) for g in range(GPUS_PER_NODE)], gpu % GPUS_PER_NODE),
            "value": pa.array(value),
            "pod": _coded(jobs, job),
            "namespace": _coded([f"ns-{n}" for n in range(20)], job % 20),
            "team": _coded([f"team-{n}" for n in range(10)], job % 10),
        }
    )
    pq.write_table(table, path, compression="zstd", compression_level=1, row_group_size=1 << 20)
    return table.num_rows
