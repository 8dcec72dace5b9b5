"""``python -m benchmarks.attribution``: samples a CPU second of energy and attribution on a drawn day of 1,000 GPUs at 30 s.

125 nodes of 8 GPUs; of every GPU watts and utilisation with pod labels, of every node its watts: 6.1 million samples. Jobs of 1 to 8 GPUs
follow each other; a twentieth of the labels is lost. Writes ``outputs/benchmarks/attribution.json``.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.attribution import attribute
from telemetry.energy import EnergyRules, Grid, interval_energy
from telemetry.schema import SAMPLE_COLUMNS, UTC, empty

NODES, GPUS, STEP_S, DAY_S = 125, 8, 30, 86_400
START = pd.Timestamp("2026-01-05", tz="UTC")


def day(seed: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples and jobs."""
    rng = np.random.default_rng(seed)
    D, S = NODES * GPUS, DAY_S // STEP_S
    holder = np.full((D, S), -1)
    jobs: list[tuple[str, int, int, int]] = []
    for node in range(NODES):
        gpu = 0
        while gpu < GPUS:
            size = min(int(rng.choice([1, 2, 4, 8])), GPUS - gpu)
            at = int(rng.integers(0, 200))
            while at < S:
                length = int(rng.lognormal(5.5, 1.0)) + 1
                last = min(at + length, S)
                holder[node * GPUS + gpu : node * GPUS + gpu + size, at:last] = len(jobs)
                jobs.append((f"job-{len(jobs)}", size, at, last))
                at = last + int(rng.integers(1, 40))
            gpu += size
    busy = holder >= 0
    use = np.where(busy, np.clip(0.8 + 0.1 * rng.standard_normal((D, S)), 0.05, 1), 0.0)
    watts = np.rint(60 + 240 * use)
    labelled = busy & (rng.random((D, S)) > 0.05)
    names = np.array(["", *(f"{job[0]}-a1b2c" for job in jobs)], dtype=object)
    pod = np.where(labelled, holder + 1, 0)
    board = np.arange(D)
    stamp = START + pd.to_timedelta(STEP_S * np.arange(1, S + 1), unit="s")

    def frame(metric: str, value: np.ndarray, node: np.ndarray, device: np.ndarray, pods: np.ndarray) -> pd.DataFrame:
        table = pd.DataFrame({"time": pd.Series(np.tile(stamp, len(value))).astype(UTC), "value": value.ravel().astype(float)})
        constant = {
            "metric": metric,
            "unit": "W",
            "site": "west",
            "pool": "p",
            "service": "",
            "namespace": "",
            "team": "",
            "project": "",
            "filled": "",
        }
        for name, text in constant.items():
            table[name] = pd.Categorical([text]).repeat(len(table))
        node_names = np.array([f"n{i:04d}" for i in range(NODES)], dtype=object)
        device_names = np.array(["", *(f"gpu{g}" for g in range(GPUS))], dtype=object)
        table["node"] = pd.Categorical.from_codes(np.repeat(node, S), node_names)
        table["device"] = pd.Categorical.from_codes(np.repeat(device, S), device_names)
        table["pod_uid"] = pd.Categorical.from_codes(pods.ravel(), names)
        table["source"] = pd.Categorical([metric]).repeat(len(table))
        return table[list(SAMPLE_COLUMNS)]

    node_w = watts.reshape(NODES, GPUS, S).sum(axis=1) + 400 + 25 * busy.reshape(NODES, GPUS, S).sum(axis=1)
    samples = pd.concat(
        [
            frame("hw.power", watts, board // GPUS, board % GPUS + 1, pod),
            frame("hw.gpu.utilization", use, board // GPUS, board % GPUS + 1, pod),
            frame("hw.power", node_w, np.arange(NODES), np.zeros(NODES, dtype=int), np.zeros((NODES, S), dtype=int)).assign(source="ipmi"),
        ],
        ignore_index=True,
    )
    for name in ("metric", "source", "node", "device", "pod_uid"):
        samples[name] = samples[name].astype("category")
    table = pd.DataFrame(jobs, columns=["job_id", "gpus", "begin", "end"])
    blank = empty("jobs")
    full = table.assign(
        submit_time=START + pd.to_timedelta(table["begin"] * STEP_S, unit="s"),
        start_time=START + pd.to_timedelta(table["begin"] * STEP_S, unit="s"),
        end_time=START + pd.to_timedelta(table["end"] * STEP_S, unit="s"),
        gpus=table["gpus"].astype(float),
        workers=1.0,
        workload_class="training",
        team="t" + (table.index % 7).astype(str),
    ).reindex(columns=list(blank.columns))
    return samples, full


def main() -> None:
    """Measure and print."""
    samples, jobs = day()
    grid = Grid.of(START, START + pd.Timedelta(seconds=DAY_S), "10min")
    rules = EnergyRules(gauge="mean")
    begin = time.process_time()
    energy = interval_energy(samples, grid, rules)
    middle = time.process_time()
    found = attribute(samples, jobs, grid, rules)
    end = time.process_time()
    result = {
        "samples": len(samples),
        "jobs": len(jobs),
        "series": len(energy.series),
        "energy_s": middle - begin,
        "energy_rows_per_s": len(samples) / (middle - begin),
        "attribution_s": end - middle,
        "attribution_rows_per_s": len(samples) / (end - middle),
        "rows": len(found.rows),
        "error": float(abs(found.rows["energy_j"].sum() / found.node_j.sum() - 1)),
        "max_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "counts": dict(found.counts),
    }
    path = Path("outputs/benchmarks/attribution.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, default=int) + "\n")
    for name, value in result.items():
        print(f"{name:<24}{value:,.4g}" if isinstance(value, float) else f"{name:<24}{value}")


if __name__ == "__main__":
    main()
