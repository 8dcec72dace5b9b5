"""A small world without noise whose energy per job is known: boards, nodes, pods, jobs, and the samples that exporters would give."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from telemetry.counters import counter_rates
from telemetry.schema import SAMPLE_TEXT, UTC, empty

START = pd.Timestamp("2026-01-05", tz="UTC")
STEP_S = 60
GPU_IDLE_W, GPU_ACTIVE_W, HOST_IDLE_W, HOST_W_PER_GPU = 50.0, 200.0, 180.0, 20.0


@dataclass(frozen=True)
class Run:
    """A job on one board: ``part`` of it from minute ``begin`` to ``end`` at utilisation ``use`` (of the whole board)."""

    job: str
    node: str
    gpu: int
    begin: int
    end: int
    use: float = 0.9
    part: float = 1.0
    slice: int | None = None


@dataclass
class World:
    """Runs on nodes of ``gpus`` boards over ``minutes``; see the fields for what is flawed in the samples."""

    nodes: dict[str, int]
    runs: list[Run]
    minutes: int = 240
    named: dict[str, str] = field(default_factory=dict)  # job -> its nodes in the job table; pods of these nodes are worker pods
    bare: set[tuple[str, int, int]] = field(default_factory=set)  # (node, gpu, minute) without a pod label
    silent: set[tuple[str, int, int]] = field(default_factory=set)  # (node, gpu, minute) without a sample
    counters: dict[tuple[str, int], set[int]] = field(default_factory=dict)  # (node, gpu) with a counter -> minutes at which it restarts

    def active_w(self, run: Run) -> np.ndarray:
        """Watts above idle by minute, ``[minutes]``; the minute m ends at sample m + 1."""
        on = np.zeros(self.minutes)
        on[run.begin : run.end] = run.use * GPU_ACTIVE_W
        return on

    def board_w(self, node: str, gpu: int) -> np.ndarray:
        return GPU_IDLE_W + sum((self.active_w(r) for r in self.runs if (r.node, r.gpu) == (node, gpu)), np.zeros(self.minutes))

    def node_w(self, node: str) -> np.ndarray:
        host = np.full(self.minutes, HOST_IDLE_W)
        for run in self.runs:
            if run.node == node:
                host[run.begin : run.end] += HOST_W_PER_GPU * run.part
        return host + sum(self.board_w(node, gpu) for gpu in range(self.nodes[node]))

    def true_j(self) -> dict[str, float]:
        """What each job used: active watts, its CPUs, and its part of the idle watts of board and node."""
        found: dict[str, float] = {}
        for run in self.runs:
            held_w = run.part * (GPU_IDLE_W + HOST_W_PER_GPU + HOST_IDLE_W / self.nodes[run.node])
            joules = STEP_S * (self.active_w(run).sum() + held_w * (run.end - run.begin))
            found[run.job] = found.get(run.job, 0.0) + float(joules)
        return found

    def jobs(self) -> pd.DataFrame:
        rows = []
        for job in dict.fromkeys(run.job for run in self.runs):
            of = [run for run in self.runs if run.job == job]
            start, end = (START + pd.Timedelta(minutes=m) for m in (min(r.begin for r in of), max(r.end for r in of)))
            rows.append(
                {
                    "job_id": job, "submit_time": start, "start_time": start, "end_time": end, "duration_s": (end - start).total_seconds(),
                    "gpus": of[0].part if of[0].part < 1 else float(len(of)), "workers": 1.0, "workload_class": "training",
                    "team": f"team-{job}", "project": f"project-{job}", "state": "completed", "nodes": self.named.get(job),
                }
            )  # fmt: skip
        frame = empty("jobs")
        table = pd.DataFrame(rows).reindex(columns=list(frame.columns))
        for name in frame:
            table[name] = table[name].astype(frame[name].dtype) if name != "preemptible" else table[name].astype("boolean")
        return table

    def samples(self) -> pd.DataFrame:
        rows: list[dict] = []
        worker = {node for names in self.named.values() for node in names.split()}
        for node, gpus in self.nodes.items():
            watts = self.node_w(node)
            rows += [_row(m + 1, "hw.power", watts[m], node, "", source="ipmi") for m in range(self.minutes)]
            for gpu in range(gpus):
                rows += self._board_rows(node, gpu, node in worker)
        frame = pd.DataFrame(rows)
        frame["time"] = (START + pd.to_timedelta(frame.pop("minute"), unit="min")).astype(UTC)
        return frame

    def _board_rows(self, node: str, gpu: int, worker: bool) -> list[dict]:
        device, watts, rows = f"gpu{gpu}", self.board_w(node, gpu), []
        count, at, before = 5e6, [], 0.0
        for m in range(self.minutes):
            before += watts[m] * STEP_S
            if (node, gpu, m) in self.silent:
                continue
            runs = [r for r in self.runs if (r.node, r.gpu) == (node, gpu) and r.begin <= m < r.end]
            lost = (node, gpu, m) in self.bare
            if (node, gpu) in self.counters:
                if m in self.counters[node, gpu]:  # the restart fell together with a sample: nothing is lost
                    count = 0.0
                count, before = count + before, 0.0
                at.append((m + 1, count))
            else:
                rows.append(_row(m + 1, "hw.power", watts[m], node, device))
            if worker:
                pods = [("" if lost else f"slurmd-{node}", sum(r.use for r in runs), device)]
            else:
                pods = [("" if lost else f"{r.job}-a1b2c", r.use, device if r.slice is None else f"{device}/mig{r.slice}") for r in runs]
                sliced = {r.slice for r in self.runs if (r.node, r.gpu) == (node, gpu) and r.slice is not None}
                if sliced:
                    pods = [(p, u * len(sliced), d) for p, u, d in pods]
                    pods += [("", 0.0, f"{device}/mig{s}") for s in sliced - {r.slice for r in runs}]
                elif not pods:
                    pods = [("", 0.0, device)]
            rows += [_row(m + 1, "hw.gpu.utilization", use, node, name, pod_uid=pod) for pod, use, name in pods]
        if at:
            minute, value = (np.array(column) for column in zip(*at, strict=True))
            rates = counter_rates(np.zeros(len(minute), dtype=int), minute * STEP_S * 10**9, value)
            rows += [_row(int(minute[k]), "hw.energy.rate", float(w), node, device) for k, w in zip(rates.rows, rates.per_s, strict=True)]
        return rows


def _row(minute: int, metric: str, value: float, node: str, device: str, **more: str) -> dict:
    return dict.fromkeys(SAMPLE_TEXT, "") | {
        "minute": minute, "metric": metric, "value": float(value), "unit": "W", "site": "west", "pool": "p", "node": node,
        "device": device, "source": "dcgm", **more,
    }  # fmt: skip
