"""Energy of measured training runs replayed as jobs, with node power fitted on other runs. Prints tables, writes JSON and a picture.

python -m benchmarks.mlperf_energy [--traces DIR] [--out outputs/benchmarks/mlperf_energy.json] [--plot FILE.png] [--runs]

Every run is left out once and replayed in the compiled simulator (docs/energy_fidelity.md); what it is replayed with is fitted on

run          all other runs of the benchmark on as many nodes
allocation   of these, the ones that were made in another allocation (other day, mostly other nodes)
benchmark    only runs of other benchmarks on as many nodes
scale        8 nodes: only runs of the benchmark on one node
scale_wait   the same, with the GPUs' wait for each other by parallel efficiency, its one constant from the other benchmarks
shipped      nothing: the H100 pool of conf/cluster and the committed curves (which were fitted on some of these runs)

"timed" compares the timed training, "window" the whole measured window with nodes idle around the job, "startup" the window with the
start-up as a job of its own. Errors are (simulated - measured) / measured in percent.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.mlperf_logs import LogSet, read_runs
from envs.cluster_io import load_cluster
from envs.power.run_replay import replay, replay_on, replayed_watts
from envs.power.runs import NodePower, RunLog, energy_kwh, idle_node_w, mean_active_w, mean_startup_w, measured_kwh
from telemetry.errors import InputError

GPU_IDLE_W = 70.0  # as in conf/cluster; whole-node energy does not depend on it
GOAL_PERCENT = 5.0
DROPOUT_S = 30.0
ONE, EIGHT = "1xSMC-H100-SXM-80GB", "8xSMC-H100-SXM-80GB"
SHIPPED_CLASS = {"llama2_70b_lora": "fine_tuning", "bert": "fine_tuning"}


@dataclass(frozen=True)
class Fit:
    """Node power for one left-out run. ``fitted_on``: how many runs gave the active power."""

    power: NodePower
    fitted_on: int


def fit_for(run: RunLog, runs: tuple[RunLog, ...], protocol: str) -> Fit | None:
    """Node power for ``run`` by a protocol of the module's list, without ``run`` itself; None when no run is left to fit on."""
    kept = [other for other in runs if other is not run]
    if protocol == "allocation":
        kept = [other for other in kept if other.allocation != run.allocation]
    elif protocol == "benchmark":
        kept = [other for other in kept if (other.system, other.benchmark) != (run.system, run.benchmark)]
    elif protocol in ("scale", "scale_wait"):
        kept = [other for other in kept if other.system == ONE or (protocol == "scale_wait" and other.benchmark != run.benchmark)]
    system = ONE if protocol.startswith("scale") else run.system
    same = [other for other in kept if other.system == system and (other.benchmark == run.benchmark) == (protocol != "benchmark")]
    if not same or (protocol.startswith("scale") and run.system != EIGHT):
        return None
    idle_w, active_w = idle_node_w(kept), mean_active_w(same)
    if protocol == "scale_wait":
        busy = _busy_share(run, same, kept, idle_w)
        active_w = idle_w + (active_w - idle_w) * busy
    return Fit(NodePower(idle_w, active_w, source=f"{protocol}: {len(same)} runs"), len(same))


def fit_with_startup(run: RunLog, runs: tuple[RunLog, ...], protocol: str) -> NodePower | None:
    """As `fit_for`, with idle and start-up power told apart."""
    fit = fit_for(run, runs, protocol)
    if fit is None:
        return None
    kept = [other for other in runs if other is not run and (protocol == "run" or other.allocation != run.allocation)]
    same = [other for other in kept if (other.system, other.benchmark) == (run.system, run.benchmark)]
    return replace(fit.power, idle_w=idle_node_w(kept, without_startup=True), startup_w=mean_startup_w(same))


def efficiency(runs_one: list[RunLog], seconds_eight: float) -> float:
    """Parallel efficiency of 8 nodes: time on one node / (8 x time on eight)."""
    return float(np.mean([run.run_stop_s - run.run_start_s for run in runs_one])) / (8.0 * seconds_eight)


def _busy_share(run: RunLog, same: list[RunLog], kept: list[RunLog], idle_w: float) -> float:
    """Share of the one-node power above idle that 8 nodes draw: e + (1 - e) c; c, the draw of a waiting GPU, from other benchmarks."""
    waits = []
    for benchmark in sorted({other.benchmark for other in kept if other.system == EIGHT}):
        ones = [other for other in kept if other.system == ONE and other.benchmark == benchmark]
        eights = [other for other in kept if other.system == EIGHT and other.benchmark == benchmark]
        share = (mean_active_w(eights) - idle_w) / (mean_active_w(ones) - idle_w)
        e = efficiency(ones, float(np.mean([other.run_stop_s - other.run_start_s for other in eights])))
        waits.append((share - e) / (1.0 - e))
    e = efficiency(same, run.run_stop_s - run.run_start_s)
    return e + (1.0 - e) * float(np.mean(waits))


def shipped_errors(run: RunLog) -> dict[str, float]:
    """Errors with the H100 pool of ``conf/cluster/mixed.yaml`` and the committed curves."""
    pool = next(pool for pool in load_cluster("mixed").pools if pool.gpu_model == "H100")
    result = replay_on(run, replace(pool, nodes=len(run.nodes), site="site"), workload_class=SHIPPED_CLASS.get(run.benchmark, "training"))
    return _errors(run, result.timed_kwh, result.window_kwh)


def _errors(run: RunLog, timed_kwh: float, window_kwh: float) -> dict[str, float]:
    return {
        "timed": 100.0 * (timed_kwh / measured_kwh(run, *run.timed_s) - 1.0),
        "window": 100.0 * (window_kwh / measured_kwh(run, *run.window_s) - 1.0),
    }


PROTOCOLS = ("run", "allocation", "benchmark", "scale", "scale_wait", "shipped")


def compare(logs: LogSet) -> list[dict]:
    """One record per run and protocol: what was measured, what was simulated, and the errors in percent."""
    records = []
    for run in logs.runs:
        gaps = run.longest_gaps_s()
        about = {
            "system": run.system,
            "benchmark": run.benchmark,
            "run": run.run,
            "nodes": len(run.nodes),
            "copied_logs": sum(bool(log.copy_of) for log in run.nodes),
            "dropped_readings": sum(log.dropped for log in run.nodes if not log.copy_of),
            "longest_gap_s": round(float(gaps.max()), 1),
            "timed_kwh": measured_kwh(run, *run.timed_s),
            "window_kwh": measured_kwh(run, *run.window_s),
        }
        for protocol in PROTOCOLS:
            if protocol == "shipped":
                records.append({**about, "protocol": protocol, "errors": shipped_errors(run)})
                continue
            fit = fit_for(run, logs.runs, protocol)
            if fit is None:
                continue
            result = replay(run, fit.power, gpu_idle_w=GPU_IDLE_W)
            errors = _errors(run, result.timed_kwh, result.window_kwh)
            if protocol in ("run", "allocation"):
                power = fit_with_startup(run, logs.runs, protocol)
                started = replay(run, power, gpu_idle_w=GPU_IDLE_W, with_startup=True)
                errors["startup"] = _errors(run, started.timed_kwh, started.window_kwh)["window"]
                if gaps.max() > DROPOUT_S and gaps.min() <= DROPOUT_S:
                    errors["timed_on_whole_logs"] = _error_on_whole_logs(run, gaps, result.timed_kwh)
            fitted = {"idle_w": fit.power.idle_w, "active_w": fit.power.active_w, "fitted_on_runs": fit.fitted_on}
            records.append({**about, "protocol": protocol, **fitted, "simulated_window_kwh": result.window_kwh, "errors": errors})
    return records


def _error_on_whole_logs(run: RunLog, gaps: np.ndarray, simulated_kwh: float) -> float:
    """Error of the timed part against the nodes whose meters did not drop out."""
    whole = [log for log, gap in zip(run.nodes, gaps, strict=True) if gap <= DROPOUT_S]
    measured = sum(energy_kwh(log, *run.timed_s) for log in whole) / len(whole) * len(run.nodes)
    return 100.0 * (simulated_kwh / measured - 1.0)


def summary(records: list[dict]) -> pd.DataFrame:
    """Per protocol, system and benchmark (and all together): runs, median and worst error in percent, share within 5 %."""
    rows = []
    for protocol in PROTOCOLS:
        mine = [record for record in records if record["protocol"] == protocol]
        keys = sorted({(record["system"], record["benchmark"]) for record in mine})
        groups = [(*key, [r for r in mine if (r["system"], r["benchmark"]) == key]) for key in keys]
        for system, benchmark, group in [*groups, ("all", "", mine)]:
            for kind in ("timed", "window", "startup"):
                errors = np.array([record["errors"][kind] for record in group if kind in record["errors"]])
                if len(errors):
                    rows.append(
                        {
                            "protocol": protocol,
                            "system": system.split("-")[0],
                            "benchmark": benchmark,
                            "compared": kind,
                            "runs": len(errors),
                            "median": float(np.median(np.abs(errors))),
                            "worst": float(errors[np.abs(errors).argmax()]),
                            "within": 100.0 * float((np.abs(errors) <= GOAL_PERCENT).mean()),
                        }
                    )
    return pd.DataFrame(rows)


def states(runs: tuple[RunLog, ...]) -> pd.DataFrame:
    """Median node watts by what the node was doing, per system and benchmark; NaN where no reading shows it."""
    rows = []
    for (system, benchmark), group in _groups(runs).items():
        seen: dict[str, list[np.ndarray]] = {name: [] for name in ("before", "startup", "training", "evaluation", "after")}
        for run in group:
            for log in run.nodes:
                t, w = log.time_s, log.watts
                evaluating = np.zeros(len(t), dtype=bool)
                for begin, end in run.evals_s:
                    evaluating |= (t > begin + 4.0) & (t < end)  # past the fall of the power
                timed = (t > run.run_start_s + 10.0) & (t < run.run_stop_s)
                seen["before"].append(w[t < run.init_start_s])
                seen["startup"].append(w[(t > run.init_start_s + 4.0) & (t < run.run_start_s)])
                seen["training"].append(w[timed & ~evaluating])
                seen["evaluation"].append(w[evaluating])
                seen["after"].append(w[t > run.run_stop_s + 30.0])
        medians = {name: float(np.median(np.concatenate(parts))) if sum(map(len, parts)) else float("nan") for name, parts in seen.items()}
        rows.append({"system": system.split("-")[0], "benchmark": benchmark, **medians})
    return pd.DataFrame(rows)


def _groups(runs: tuple[RunLog, ...]) -> dict[tuple[str, str], list[RunLog]]:
    groups: dict[tuple[str, str], list[RunLog]] = {}
    for run in runs:
        groups.setdefault((run.system, run.benchmark), []).append(run)
    return groups


def plot(runs: tuple[RunLog, ...], file: Path) -> None:
    """Measured and replayed node watts: the first run of every benchmark and scale, and every run in which a meter dropped out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [group[0] for group in _groups(runs).values()]
    shown += [run for run in runs if run.longest_gaps_s().max() > DROPOUT_S and run not in shown]
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(13, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, run in zip(axes.flat, shown, strict=False):
        begin = run.window_s[0]
        for index, log in enumerate(run.nodes):
            label = "measured, each node" if index == 0 else None
            axis.plot(log.time_s - begin, log.watts / 1000.0, color="tab:blue", lw=0.7, alpha=0.8, label=label)
        power = fit_with_startup(run, runs, "run")
        result = replay(run, power, gpu_idle_w=GPU_IDLE_W, with_startup=True)
        edges, watts = replayed_watts(run, power, result)
        error = _errors(run, result.timed_kwh, result.window_kwh)["window"]
        axis.stairs(watts / 1000.0, edges, color="tab:orange", lw=1.8, label="replayed, fitted on other runs")
        nodes = f"{len(run.nodes)} node{'s' if len(run.nodes) > 1 else ''}"
        axis.set_title(f"{run.benchmark}, {nodes}, run {run.allocation}/{run.run.rsplit('_', 1)[-1]}: {error:+.1f} % kWh", fontsize=10)
        axis.set_ylim(0, 8)
        axis.set_ylabel("kW per node")
        axis.set_xlabel("s of the measured window")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8, loc="lower center")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}")
    figure.savefig(temporary, dpi=80, format=file.suffix.lstrip(".") or "png")
    plt.close(figure)
    os.replace(temporary, file)


def _notable(record: dict) -> bool:
    return max(map(abs, record["errors"].values())) > GOAL_PERCENT or record["longest_gap_s"] > DROPOUT_S


def _print(records: list[dict], logs: LogSet, table: pd.DataFrame, *, every_run: bool) -> None:
    copies = sum(bool(log.copy_of) for run in logs.runs for log in run.nodes)
    files = sum(len(run.nodes) for run in logs.runs)
    print(f"{len(logs.runs)} distinct runs ({len(logs.repeated_runs)} repeats left out), {files} node logs, {copies} of them copies")
    print("\nerror of simulated energy, % (median of sizes, worst with sign, share of runs within 5 %)")
    print(f"{'fitted on':11s}{'system':7s}{'benchmark':16s}{'compared':9s}{'runs':>5s}{'median':>8s}{'worst':>8s}{'within':>8s}")
    for row in table.itertuples():
        print(
            f"{row.protocol:11s}{row.system:7s}{row.benchmark:16s}{row.compared:9s}"
            f"{row.runs:5d}{row.median:8.2f}{row.worst:+8.2f}{row.within:7.0f} %"
        )
    print("\nmedian node watts by state")
    print(states(logs.runs).to_string(index=False, float_format=lambda value: f"{value:.0f}", na_rep="-"))
    chosen = [r for r in records if r["protocol"] in ("run", "allocation") and (every_run or _notable(r))]
    print(
        "\nevery run" if every_run else "\nruns with an error above 5 % or a meter that dropped out (fitted on runs of the same benchmark)"
    )
    for r in chosen:
        errors = ", ".join(f"{name} {value:+.2f} %" for name, value in r["errors"].items())
        print(
            f"{r['protocol']}: {r['system'].split('-')[0]} {r['benchmark']} {r['run']}: {r['window_kwh']:.3f} kWh, {errors}; "
            f"longest gap {r['longest_gap_s']:.0f} s, {r['dropped_readings']} readings dropped"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("JOULEWISE_TRACES", "../shared/traces")
    parser.add_argument("--traces", type=Path, default=Path(default), help="trace folder, with c_power in it")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/mlperf_energy.json"), help="JSON file for the results")
    parser.add_argument("--plot", type=Path, default=None, help="picture of measured and replayed power of a few runs")
    parser.add_argument("--runs", action="store_true", help="print every run, not only those above 5 %%")
    options = parser.parse_args()
    try:
        logs = read_runs(options.traces / "c_power")
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    records = compare(logs)
    table = summary(records)
    _print(records, logs, table, every_run=options.runs)
    report = {
        "goal_percent": GOAL_PERCENT,
        "repeated_runs": list(logs.repeated_runs),
        "summary": table.to_dict("records"),
        "states_w": json.loads(states(logs.runs).round(1).to_json(orient="records")),
        "runs": records,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(temporary, options.out)
    print(f"\nwritten: {options.out}")
    if options.plot is not None:
        plot(logs.runs, options.plot)
        print(f"written: {options.plot}")


if __name__ == "__main__":
    main()
