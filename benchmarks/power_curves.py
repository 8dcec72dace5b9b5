"""How well watts of a device are predicted that was left out: ``python -m benchmarks.power_curves [--traces DIR] [--out FILE.json]``.

Whole GPU models (Zeus), whole systems (MLPerf) and stretches of time (Kepler) are left out, and what the left-out device is allowed to
bring is said for each row; of its load nothing else is seen:

- **data sheet**: limit and idle watts of the board, number of boards;
- **idle reading**: a short reading without load (of GPUs: with a context open, for which the lightest job of the *other* boards stands in);
- **3 runs**: full-power watts of the lightest, the middle and the heaviest job, as the other boards rank them;
- **own reading**: each job's watts at full power; what lower limits leave of them is predicted.

Compared with the linear model of cloud carbon calculators (Cloud Carbon Footprint, Teads, Boavizta): idle + utilisation x (maximum -
idle), with the maximum of the data sheet, never above a limit that is set, and with what the row allows; a training or an Offline run
counts as fully used, or as used as the same job was on the other devices (``told use``). Of MLPerf's nodes, *linear* is the boards' limits
and Cloud Carbon Footprint's maximum watts of the CPUs' threads; *told use* the boards' limits above the idle reading. Errors are mean
absolute percentages.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from scipy.optimize import isotonic_regression, nnls

from envs.power.boards import load_boards
from envs.power.caps import CapCurve
from envs.power.shape import Prior, design, fit_free, fit_rows
from telemetry.errors import InputError

ZEUS = {"V100": "zeus_summary_power_v100.csv", "A40": "zeus_summary_power_a40.csv", "P100": "zeus_summary_power_p100.csv"}
JOB = ["dataset", "network", "optimizer", "batch_size"]
BLOCKS = 10
KEPLER_FIRST_MINUTES = 10.0
KEPLER_STEP_S = 3.0
USUAL_SHARES = np.array([0.8, 0.5])  # of the limits of boards and CPUs, above idle
COUNTERS = ("cpu_cycles", "cpu_instructions", "cache_miss", "bpf_cpu_time_us")


@dataclass(frozen=True)
class System:
    """A measured node: ``gpus`` boards of ``board_w`` watts and CPUs of ``cpu_w`` in all (data sheets).

    ``threads`` and ``ccf`` are what Cloud Carbon Footprint asks of its CPUs: how many, and which architecture of its table.
    """

    name: str
    file: str
    gpus: int
    board_w: float
    cpu_w: float
    threads: int
    ccf: str


SYSTEMS = (
    System("8 x A100-PCIe, MaxQ", "mlperf_inf30_a100x8_watts.parquet", 8, 300.0, 2 * 225.0, 256, "EPYC 2nd Gen"),
    System("1 x L4, MaxQ", "mlperf_inf30_edge_l4_watts.parquet", 1, 72.0, 145.0, 40, "Sapphire Rapids"),
    System("16 x Cloud AI 100", "mlperf_inf30_qualcomm_q16_watts.parquet", 16, 75.0, 2 * 225.0, 256, "EPYC 3rd Gen"),
    System("8 x H100-SXM (training)", "mlperf_train40_smc_1_8node_watts.parquet", 8, 700.0, 2 * 300.0, 128, "Sapphire Rapids"),
)


def mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Mean absolute percentage error."""
    return float(100.0 * np.mean(np.abs(np.asarray(predicted) / np.asarray(measured) - 1.0)))


def zeus_table(folder: Path) -> pd.DataFrame:
    """All sweeps: job, limit, watts, and ``full_w``: the job's watts on the same board at the board's own limit."""
    boards = load_boards()
    parts = []
    for model, file in ZEUS.items():
        part = pd.read_csv(folder / file)
        board = boards[model]
        parts.append(part.assign(model=model, board_w=board.limit_w, idle_w=board.idle_w))
    table = pd.concat(parts, ignore_index=True)
    table["job"] = table[JOB].astype(str).agg("/".join, axis=1)
    table["net"] = table["dataset"] + "/" + table["network"]
    full = table[table["power_limit"] == table["board_w"]].set_index(["model", "job"])["average_power"].rename("full_w")
    return table.join(full, on=["model", "job"])


def zeus_caps(table: pd.DataFrame) -> CapCurve:
    """The cap curve of the given boards."""
    capped = table[table["power_limit"] < table["board_w"]]
    return CapCurve.fit(capped["full_w"].to_numpy(), capped["power_limit"].to_numpy(float), capped["average_power"].to_numpy())


def job_use(table: pd.DataFrame, low: pd.Series | float, high: pd.Series | float) -> pd.Series:
    """Mean over boards of a job's place between ``low`` and ``high`` watts at full power, by job and (as ``net:...``) by network."""
    full = table[table["power_limit"] == table["board_w"]].drop_duplicates(["model", "job"])
    share = (full["full_w"] - low) / (high - low) if isinstance(low, float) else (full["full_w"] - full["model"].map(low)) / (
        full["model"].map(high) - full["model"].map(low)
    )  # fmt: skip
    return pd.concat([share.groupby(full["job"]).mean(), share.groupby("net:" + full["net"]).mean()])


def use_of(table: pd.DataFrame, use: pd.Series) -> np.ndarray:
    """A table's jobs looked up in `job_use`, by network where the job is not there."""
    return table["job"].map(use).fillna(("net:" + table["net"]).map(use)).to_numpy(float)


def zeus_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each GPU model left out, at the four steps of what it may bring."""
    rows = []
    for model in ZEUS:
        known, own = table[table["model"] != model], table[table["model"] == model].reset_index(drop=True)
        board_w, idle_w, cap = float(own["board_w"].iloc[0]), float(own["idle_w"].iloc[0]), zeus_caps(known)
        watts, limit = own["average_power"].to_numpy(), own["power_limit"].to_numpy(float)
        lows, highs = known.groupby("model")["idle_w"].first(), known.groupby("model")["board_w"].first()
        told = use_of(own, job_use(known, lows, highs))
        told_w = idle_w + told * (board_w - idle_w)
        full_use = mape(np.minimum(board_w, limit), watts)
        base = {"set": "Zeus", "left_out": model, "rows": len(own)}
        ours = mape(cap.watts(told_w, limit), watts)
        rows.append(
            base | {"brings": "data sheet", "linear": full_use, "linear_told": mape(np.minimum(told_w, limit), watts), "ours": ours}
        )
        rows += _zeus_calibrated(base, own, known, cap)
        capped = own[own["power_limit"] < board_w]
        measured, at = capped["average_power"].to_numpy(), capped["power_limit"].to_numpy(float)
        demand = capped["full_w"].to_numpy()
        rows.append(
            base
            | {
                "brings": "own reading",
                "rows": len(capped),
                "linear": mape(idle_w + (demand - idle_w) * (at - idle_w) / (board_w - idle_w), measured),
                "linear_told": mape(np.minimum(demand, at), measured),
                "ours": mape(cap.watts(demand, at), measured),
            }
        )
    return rows


def _zeus_calibrated(base: dict[str, Any], own: pd.DataFrame, known: pd.DataFrame, cap: CapCurve) -> list[dict[str, Any]]:
    """Place between the lightest and the heaviest job as on the other boards; the left-out board brings one or three jobs' watts."""
    full = known[known["power_limit"] == known["board_w"]].groupby("model")["full_w"]
    use = job_use(known, full.min(), full.max())
    board_w, idle_w = float(own["board_w"].iloc[0]), float(own["idle_w"].iloc[0])
    top = board_w * float((full.max() / known.groupby("model")["board_w"].first()).mean())
    own = own.assign(use=use_of(own, use))
    jobs = own.drop_duplicates("job").sort_values(["use", "job"])
    rows = []
    for brings, picks in (("idle reading", [0]), ("3 runs", [0, len(jobs) // 2, len(jobs) - 1])):
        seen = jobs.iloc[picks]
        rest = own[~own["job"].isin(seen["job"])]
        watts, limit, place = rest["average_power"].to_numpy(), rest["power_limit"].to_numpy(float), rest["use"].to_numpy()
        if len(picks) == 1:
            low = float(seen["full_w"].iloc[0])
            demand, informed = low + place * (top - low), low + place * (board_w - low)
            plain = np.minimum(board_w, limit)
        else:
            level = isotonic_regression(seen["full_w"].to_numpy()).x
            demand = np.interp(place, seen["use"].to_numpy(), level)
            slope, cut = np.polyfit(seen["use"].to_numpy(), seen["full_w"].to_numpy(), 1)
            informed, plain = cut + slope * place, np.minimum(float(seen["full_w"].mean()), limit)
        rows.append(
            base
            | {
                "brings": brings,
                "rows": len(rest),
                "linear": mape(plain, watts),
                "linear_told": mape(np.minimum(np.maximum(informed, idle_w), limit), watts),
                "ours": mape(cap.watts(demand, limit), watts),
            }
        )
    return rows


def mlperf_table(folder: Path) -> pd.DataFrame:
    """Per run: loaded watts (median above the middle between idle and the run's top), and the system's idle watts (1st percentile)."""
    parts = []
    ccf = pd.read_csv(folder / "ccf_coefficients-aws-use.csv").set_index("Architecture")["Max Watts"]
    for system in SYSTEMS:
        rows = pd.read_parquet(folder / system.file)
        if "key" in rows.columns:
            rows = rows[(rows["key"] == "power_reading") & (rows["system"] == "1xSMC-H100-SXM-80GB")]
            rows = rows.rename(columns={"value": "Watts"}).assign(scenario="training", phase=rows["run"])
        rows = rows[rows["Watts"] > 0]
        idle_w = float(np.percentile(rows["Watts"], 1))
        for (benchmark, scenario, phase), run in rows.groupby(["benchmark", "scenario", "phase"]):
            watts = run["Watts"].to_numpy(float)
            loaded = watts[watts > (idle_w + np.percentile(watts, 99)) / 2]
            parts.append(
                {
                    "system": system.name, "benchmark": str(benchmark).split("-99")[0], "scenario": str(scenario).lower(), "phase": phase,
                    "idle_w": idle_w, "boards_w": system.gpus * system.board_w, "cpu_w": system.cpu_w, "watts": float(np.median(loaded)),
                    "ccf_w": system.gpus * system.board_w + system.threads * float(ccf[system.ccf]),
                }
            )  # fmt: skip
    return pd.DataFrame(parts)


def mlperf_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each system left out: wall watts above idle = (boards' limits x a + CPUs' limits x b) x what the benchmark is to the others."""
    rows = []
    for system in table["system"].unique():
        known, own = table[table["system"] != system], table[table["system"] == system]
        above = _above_idle(known, own)
        watts, idle_w = own["watts"].to_numpy(), own["idle_w"].to_numpy()
        boards_w = own["boards_w"].to_numpy()
        base = {"set": "MLPerf", "left_out": system}
        rows.append(
            base
            | {
                "rows": len(own),
                "brings": "data sheet, idle reading",
                "linear": mape(own["ccf_w"].to_numpy(), watts),
                "linear_told": mape(idle_w + boards_w, watts),
                "ours": mape(idle_w + above, watts),
            }
        )
        first = own.groupby("benchmark", sort=False).head(1).iloc[:2]
        rest = ~own.index.isin(first.index)
        mean = np.full(int(rest.sum()), first["watts"].mean())
        scale = float(((first["watts"] - first["idle_w"]) / above[~rest]).mean())
        rows.append(
            base
            | {
                "rows": int(rest.sum()),
                "brings": "2 runs",
                "linear": mape(mean, watts[rest]),
                "linear_told": mape(mean, watts[rest]),
                "ours": mape((idle_w + scale * above)[rest], watts[rest]),
            }
        )
    return rows


def _above_idle(known: pd.DataFrame, own: pd.DataFrame) -> np.ndarray:
    """Predicted wall watts above idle of the left-out system's runs ``[N]``.

    A benchmark's effect is what it draws relative to its system's mean; as systems agree on it (the correlation of effects between pairs
    of the known ones), it is carried over.
    """
    above = known["watts"] - known["idle_w"]
    mean = above.groupby(known["system"]).mean()
    specs = known.groupby("system")[["boards_w", "cpu_w"]].first()
    rows = specs.to_numpy() / mean.loc[specs.index].to_numpy()[:, None]
    # Two figures from three systems: as a fourth stand half of the CPUs' and 0.8 of the boards' limits, at the wall.
    found = nnls(np.vstack([rows, np.eye(2)]), np.concatenate([np.ones(len(specs)), USUAL_SHARES]))[0]
    effect = np.log(above / known["system"].map(mean)).groupby([known["benchmark"], known["system"]]).mean().rename("effect").reset_index()
    effect = effect.pivot_table(index="benchmark", columns="system", values="effect")
    pairs = [effect.iloc[:, [i, j]].dropna() for i in range(effect.shape[1]) for j in range(i)]
    pairs = [pair for pair in pairs if len(pair) >= 3]
    agreement = float(np.clip(np.mean([pair.corr().iloc[0, 1] for pair in pairs]), 0.0, 1.0)) if pairs else 0.0
    carried = own["benchmark"].map(agreement * effect.mean(axis=1)).fillna(0.0).to_numpy()
    return (own[["boards_w", "cpu_w"]].to_numpy() @ found) * np.exp(carried)


def kepler_rows(folder: Path) -> list[dict[str, Any]]:
    """The one node of this set: stretches of time left out, and what its first loaded minutes tell of the rest."""
    rows = []
    for target, file in (("platform_power", "acpi"), ("package_power", "rapl")):
        table = pd.read_parquet(folder / f"kepler_nx12_preprocess_abs_default_{file}_Basic.parquet").sort_values("timestamp")
        cycles = table["cpu_cycles"].to_numpy(float)
        begin = int(np.flatnonzero(cycles > 0.2 * np.quantile(cycles, 0.99))[0])
        first = np.arange(len(table)) < begin + int(KEPLER_FIRST_MINUTES * 60 / KEPLER_STEP_S)
        block = np.arange(len(table)) * BLOCKS // len(table)
        stretches = [(block != b, block == b) for b in range(BLOCKS)]
        cases: list[tuple[str, tuple[str, ...], list[tuple[np.ndarray, np.ndarray]]]] = [
            ("9 of 10 stretches; cycles", ("cpu_cycles",), stretches),
            ("9 of 10 stretches; cycles, misses", ("cpu_cycles", "cache_miss"), stretches),
            ("9 of 10 stretches; trees, 4 counters", (), stretches),
            (f"idle, {KEPLER_FIRST_MINUTES:g} min of load; cycles", ("cpu_cycles",), [(first, ~first)]),
        ]
        for brings, drivers, splits in cases:
            found = [_kepler(table, target, drivers, seen, left) for seen, left in splits]
            ours, linear, measured = (np.concatenate(part) for part in zip(*found, strict=True))
            rows.append(
                {
                    "set": "Kepler",
                    "left_out": f"nx12, {target.removesuffix('_power')}",
                    "rows": len(measured),
                    "brings": brings,
                    "linear": mape(linear, measured),
                    "linear_told": mape(linear, measured),
                    "ours": mape(ours, measured),
                }
            )
    return rows


def _kepler(
    table: pd.DataFrame, target: str, drivers: Sequence[str], seen: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Our prediction, the straight line from least to most watts, and the measured watts of the left-out rows ``[N]`` each.

    Use is a counter over the most that was seen of it; without ``drivers``, boosted trees on all counters.
    """
    watts = table[target].to_numpy(float)
    low, high = float(np.quantile(watts[seen], 0.01)), float(np.quantile(watts[seen], 0.999))
    use = {name: np.clip(table[name] / np.quantile(table.loc[seen, name], 0.999), 0.0, 1.0).to_numpy() for name in COUNTERS}
    linear = low + use["cpu_cycles"][left] * (high - low)
    if not drivers:
        trees = LGBMRegressor(n_estimators=200, num_leaves=15, learning_rate=0.05, objective="mae", n_jobs=1, verbose=-1, random_state=0)
        trees.fit(table.loc[seen, list(COUNTERS)].to_numpy(), np.log(watts[seen]))
        booster = trees.booster_
        return np.exp(np.asarray(booster.predict(table.loc[left, list(COUNTERS)].to_numpy()))), linear, watts[left]
    if len(drivers) == 1:
        rows = design(use[drivers[0]])
        found, _ = fit_rows(rows[seen], watts[seen], Prior(low, high - low), high)
    else:
        rows = np.column_stack([design(use[drivers[0]]), *(design(use[name])[:, 1:] for name in drivers[1:])])
        found = fit_free(rows[seen], watts[seen], high)
    return rows[left] @ found * high, linear, watts[left]


def evaluate(traces: Path) -> dict[str, Any]:
    """All rows. Raises `InputError` without the traces."""
    folder = traces / "c_power"
    if not folder.is_dir():
        raise InputError("no such folder", where=str(folder), remedy="set JOULEWISE_TRACES")
    zeus = zeus_table(folder)
    cap = zeus_caps(zeus)
    rows = [*zeus_rows(zeus), *mlperf_rows(mlperf_table(folder)), *kepler_rows(folder)]
    return {"cap": {"headroom": cap.headroom, "sharpness": cap.sharpness}, "rows": rows}


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text."""
    lines = [f"{'set':<8}{'left out':<26}{'brings':<34}{'rows':>6}{'linear':>9}{'told use':>10}{'ours':>8}"]
    for row in rows:
        lines.append(
            f"{row['set']:<8}{row['left_out']:<26}{row['brings']:<34}{row['rows']:>6}{row['linear']:>8.1f}%"
            f"{row['linear_told']:>9.1f}%{row['ours']:>7.1f}%"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=Path(os.environ.get("JOULEWISE_TRACES", "../shared/traces")))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/power_curves.json"))
    arguments = parser.parse_args()
    found = evaluate(arguments.traces)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = arguments.out.with_name(arguments.out.name + ".new")
    fresh.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(fresh, arguments.out)
    print(printed(found["rows"]))
    print(f"cap curve on all Zeus sweeps: headroom {found['cap']['headroom']:.3f}, sharpness {found['cap']['sharpness']:.2f}")


if __name__ == "__main__":
    main()
