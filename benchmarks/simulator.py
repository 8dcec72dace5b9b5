"""Speed of the compiled simulator: prints a table, writes JSON. Part by part:

batch      64 clusters of 128 nodes x 8 GPUs: decisions/s bare by judge, with the observation, through the stable-baselines3 VecEnv; memory
features   the same batch with each feature of docs/simulator.md alone and with all of them
month      100,000 jobs on 1,000 nodes under every judge and archive order, at loads of 0.7 and 1.1: seconds
flatness   ns per decision by finished jobs (tenths of a month) and by waiting jobs (100 to 100,000)
million    a million jobs at one second of gen1000: seconds and GB
reference  decisions/s against the plain-Python reference of the tests, same worlds and answers, results compared
peers      jobs/s and env steps/s against public simulators that are installed (pip install gpu-choochoo; others by --peer-python)
profile    ns per stage of a decision, by elimination, and per decision by the size of the batch
compile    seconds of the first call in a new process, with an empty and with a full cache of compiled code

Rates of batch, features, profile and peers are the best of three runs after a short one that warms up; other load on the machine is told
by the load average before each part. A part that is run again replaces itself in the JSON file; the others stay.

What the limit is (part profile, one core of an EPYC 9004): a decision without scores takes 1.0 us and that does not change from a batch
of 1 to one of 256 clusters, so it is branchy event code that works within the caches, not memory bandwidth. With the observation it is
2.9 us: 0.9 for the step, 1.0 for pricing (two thirds of it the later starts of hold), 0.8 for writing 250 values (some 60 logarithms), and
0.2 to 0.3 of Python and numpy around a batch of 64. Two threads share a batch only from some 256 clusters on: handing a call over costs
55 us. wfp3 and unicep search a tree by bounds: their cost grows as about the sixth root of the queue's length.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import simulator_batch as batch
from benchmarks import simulator_scale as scale
from benchmarks.simulator_peer_runs import parse_interpreters, peers_part
from benchmarks.simulator_reference import reference_part
from benchmarks.simulator_table import lines_of
from envs.kernel_entry import _DIGEST
from telemetry.errors import InputError

PARTS = ("batch", "features", "month", "flatness", "million", "reference", "peers", "profile", "compile")


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    versions = {name: importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy", "stable-baselines3")}
    cpu = ""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), "")
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "cpu": cpu,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def runners(options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """What each part calls."""
    size = (options.clusters, options.nodes, options.jobs, options.windows)
    waiting = tuple(count for count in scale.WAITING if count <= options.most_waiting)
    return {
        "batch": lambda: batch.batch_part(*size, options.threads),
        "features": lambda: batch.features_part(*size, options.threads),
        "month": lambda: scale.month_part(options.month_nodes, options.month_jobs, options.patience_s),
        "flatness": lambda: scale.flat_part(options.nodes, options.month_jobs, waiting, 1.0),
        "million": lambda: scale.million_part(options.million_jobs),
        "reference": reference_part,
        "peers": lambda: peers_part(options.nodes, options.jobs, options.patience_s, parse_interpreters(options.peer_python)),
        "profile": lambda: batch.profile_part(*size),
        "compile": batch.first_calls,
    }


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"parts to run: {', '.join(PARTS)}")
    parser.add_argument("--clusters", type=int, default=64, help="clusters of a batch")
    parser.add_argument("--nodes", type=int, default=128, help="nodes of one cluster, in 4 pools")
    parser.add_argument("--jobs", type=int, default=2000, help="jobs of one window of two days")
    parser.add_argument("--windows", type=int, default=8, help="windows that the clusters of a batch share")
    parser.add_argument("--threads", type=int, default=2, help="threads of a batch, beside one")
    parser.add_argument("--month-jobs", type=int, default=100_000)
    parser.add_argument("--month-nodes", type=int, default=1000)
    parser.add_argument("--million-jobs", type=int, default=1_000_000)
    parser.add_argument("--most-waiting", type=int, default=100_000, help="longest queue of the part flatness")
    parser.add_argument("--patience-s", type=float, default=60.0, help="seconds after which one run of a month or of a peer is stopped")
    parser.add_argument("--peer-python", action="append", default=[], metavar="[MODULE=]PYTHON", help="interpreter that has a peer")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/simulator.json"), help="JSON file for the results")
    return parser


def load_record(path: Path) -> dict[str, Any]:
    """Parts of an earlier run, if any."""
    if not path.is_file():
        return {"parts": {}}
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError("not JSON", where=str(path), remedy="move the file away or give another --out") from error
    return record if isinstance(record, dict) and isinstance(record.get("parts"), dict) else {"parts": {}}


def save_record(path: Path, record: dict[str, Any]) -> None:
    """Write the record in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, path)


def check(options: argparse.Namespace) -> None:
    """Sizes that no world could be made of are told before anything runs."""
    for name in ("clusters", "jobs", "windows", "threads", "month_jobs", "million_jobs"):
        if getattr(options, name) < 1:
            raise InputError(f"{getattr(options, name)}", where=f"--{name.replace('_', '-')}", allowed="at least 1")
    for name in ("nodes", "month_nodes"):
        if getattr(options, name) < 4:
            raise InputError(f"{getattr(options, name)}", where=f"--{name.replace('_', '-')}", allowed="at least 4, one for each pool")
    if options.most_waiting < scale.WAITING[0]:
        raise InputError(f"{options.most_waiting}", where="--most-waiting", allowed=f"at least {scale.WAITING[0]}")


def main() -> int:
    options = arguments().parse_args()
    try:
        check(options)
        parse_interpreters(options.peer_python)
        record = load_record(options.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    record["machine"] = machine()
    print(", ".join(f"{name} {value}" for name, value in record["machine"].items() if name != "versions"))
    print(", ".join(f"{name} {value}" for name, value in record["machine"]["versions"].items()))
    asked = {name: value for name, value in vars(options).items() if name not in ("only", "out", "peer_python")}
    for name in [part for part in PARTS if part in options.only]:
        load, begin = os.getloadavg(), time.perf_counter()
        result = runners(options)[name]()
        about = {"load_average_before": list(load), "seconds": time.perf_counter() - begin, "kernel": _DIGEST, "options": asked}
        record["parts"][name] = {"about": about, "result": result}
        print(f"\n{name} ({about['seconds']:.0f} s; load average before it {load[0]:.1f} on {os.cpu_count()} cores)")
        print("\n".join(lines_of(name, result)), flush=True)
        save_record(options.out, record)
    print(f"\nwritten: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
