"""Latency of one decision of the agent: prints a table, writes JSON.

One observation row in, one action out, on one core, for clusters of 4, 16 and 64 pools at 4 power levels, every candidate allowed (the most
that can be asked) and with a third of them allowed (what a busy cluster asks):

compiled   what is served: ``AgentPolicy.act`` (``envs/agent/inference.py``)
numpy      the same arithmetic in array operations over all candidates
shielded   the whole answer of the shielded policy: values checked, rules applied, policy asked; these random rows are mostly overruled,
           so it is the long way, on which the policy is asked a second time
torch      the network of training, one thread, no gradients
onnx       the network exported by torch and run by onnxruntime, one thread; left out where onnx and onnxruntime are not installed

Microseconds of ``--calls`` calls after a warm-up: median and 99th percentile by the wall, and the 99th percentile of the thread's own CPU
time, in which the waits for other processes of a loaded machine do not count; ``difference`` is the largest to torch over 256 rows,
relative to the largest logit of the row.

    python -m benchmarks.decision_latency --out decision_latency.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.agent.inference import MASKED_LOGIT
from envs.agent.network import ActionScorer
from envs.agent.policy import AgentPolicy
from envs.heuristics import JUDGES
from envs.observation import ObservationLayout
from envs.shield import Shield, ShieldConfig
from envs.shielded import ShieldedPolicy
from telemetry.errors import InputError

POOLS, LEVELS, ROWS = (4, 16, 64), 4, 256
SHARES = (1.0, 1 / 3)
Act = Callable[[np.ndarray], np.ndarray]


def observations(layout: ObservationLayout, share: float, seed: int) -> np.ndarray:
    """Random rows ``[ROWS, D]`` in which ``share`` of the candidates are allowed, at least one."""
    generator = np.random.default_rng(seed)
    rows = generator.uniform(-2, 2, (ROWS, layout.size)).astype(np.float32)
    allowed = generator.random((ROWS, layout.n_candidates)) < share
    allowed[:, 0] = True
    candidates = layout.candidates(rows)
    candidates[..., 0] = 1.0
    candidates *= allowed[..., None]
    return rows


def numpy_logits(policy: AgentPolicy, row: np.ndarray, layout: ObservationLayout) -> np.ndarray:
    """Masked logits ``[1, A]`` in array operations."""
    w, split = policy.weights, layout.n_candidates * layout.n_candidate_features
    candidates, shared = layout.candidates(row)[0], w["from_global.weight"] @ row[0, split:]
    valid = candidates[:, 0] > 0.5
    embedded = np.maximum(candidates @ w["from_candidate.weight"].T + (w["from_candidate.bias"] + shared), 0.0)
    context = w["mix_context.weight"] @ embedded[valid].mean(axis=0)
    mixed = np.maximum(embedded @ w["mix.weight"].T + (w["mix.bias"] + context), 0.0)
    logits = mixed @ w["residual.weight"][0] + w["residual.bias"][0] - np.exp(w["log_kappa"]) * candidates[:, policy.score_index]
    return np.where(valid, logits, MASKED_LOGIT)[None]


def torch_logits(network: ActionScorer, row: np.ndarray, layout: ObservationLayout) -> np.ndarray:
    """Masked logits ``[B, A]`` by torch."""
    split = layout.n_candidates * layout.n_candidate_features
    with torch.no_grad():
        logits, _ = network(torch.from_numpy(layout.candidates(row)), torch.from_numpy(row[:, split:]))
    return logits.numpy()


def onnx_logits(network: ActionScorer, layout: ObservationLayout) -> Act | None:
    """Masked logits ``[1, A]`` by onnxruntime, or None where it is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime")):
        return None
    import onnxruntime  # type: ignore[import-not-found, unused-ignore]

    split = layout.n_candidates * layout.n_candidate_features
    example = (torch.zeros(1, layout.n_candidates, layout.n_candidate_features), torch.zeros(1, layout.n_global_features))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "policy.onnx")
        torch.onnx.export(network, example, path, input_names=["candidates", "globals"], output_names=["logits", "value"], dynamo=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda row: session.run(["logits"], {"candidates": layout.candidates(row), "globals": row[:, split:]})[0]


def latency(act: Act, rows: np.ndarray, calls: int) -> dict[str, float]:
    """Microseconds of one call on one row, by the wall and of CPU time."""
    singles = [rows[at : at + 1] for at in range(len(rows))]
    for row in singles:
        act(row)
    taken = np.empty((2, calls))
    for at, clock in enumerate((time.perf_counter_ns, time.thread_time_ns)):
        for call in range(calls):
            row = singles[call % len(singles)]
            begin = clock()
            act(row)
            taken[at, call] = clock() - begin
    p50, p99 = np.percentile(taken[0], [50, 99]) / 1000.0
    return {"p50_us": float(p50), "p99_us": float(p99), "p99_cpu_us": float(np.percentile(taken[1], 99) / 1000.0)}


def measure(pools: int, share: float, hidden: int, calls: int) -> list[dict[str, Any]]:
    """Rows of the table for one size of cluster."""
    layout = ObservationLayout(pools, LEVELS)
    torch.manual_seed(0)
    network = ActionScorer(layout.n_candidate_features, layout.n_global_features, layout.score_index, hidden=hidden)
    torch.nn.init.normal_(network.residual.weight)
    policy = AgentPolicy(
        {name: value.detach().numpy() for name, value in network.state_dict().items()}, JUDGES["lookahead"].settings, layout.score_index
    )
    rows = observations(layout, share, seed=pools)
    guarded = ShieldedPolicy(policy, Shield(ShieldConfig(), policy.settings.hold_s))
    ways: dict[str, Act | None] = {
        "compiled": lambda row: policy.logits(row, layout),
        "numpy": lambda row: numpy_logits(policy, row, layout),
        "torch": lambda row: torch_logits(network, row, layout),
        "onnx": onnx_logits(network, layout),
    }
    exact = torch_logits(network, rows, layout)
    allowed = layout.mask(rows)
    scale = np.abs(np.where(allowed, exact, 0.0)).max(axis=1)
    table = []
    for name, logits in ways.items():
        if logits is None:
            continue
        found = np.concatenate([logits(rows[at : at + 1]) for at in range(ROWS)])
        difference = float((np.abs(np.where(allowed, found - exact, 0.0)).max(axis=1) / scale).max())
        figures = latency(lambda row, logits=logits: logits(row).argmax(axis=1), rows, calls)
        about = {"way": name, "pools": pools, "levels": LEVELS, "candidates": layout.n_candidates, "allowed": share, "hidden": hidden}
        table.append(about | figures | {"difference": difference})
        if name == "compiled":
            table.append(
                about | {"way": "shielded"} | latency(lambda row: guarded.act(row, layout), rows, calls) | {"difference": difference}
            )
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("decision_latency.json"))
    options = parser.parse_args()
    try:
        if options.calls < 100 or options.hidden < 1:
            raise InputError(f"{options.calls} calls, {options.hidden} hidden units", where="arguments", allowed="at least 100 and 1")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    table = [row for pools in POOLS for share in SHARES for row in measure(pools, share, options.hidden, options.calls)]
    print(f"one decision, hidden {options.hidden}, one core, load average before {load:.1f} on {os.cpu_count()} cores")
    print(f"{'pools x levels':>14} {'allowed':>8} {'way':>9} {'p50 us':>8} {'p99 us':>8} {'p99 CPU':>8}  difference")
    for row in table:
        size = f"{row['pools']} x {row['levels']}"
        times = "".join(f" {row[name]:>8.1f}" for name in ("p50_us", "p99_us", "p99_cpu_us"))
        print(f"{size:>14} {row['allowed']:>8.0%} {row['way']:>9}{times}  {row['difference']:.0e}")
    record = {"machine": platform.machine(), "cores": os.cpu_count(), "load_average_before": load, "calls": options.calls, "rows": table}
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
