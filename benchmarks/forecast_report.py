"""The forecast benchmark's results as a summary, text, two charts and the table of the documentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.forecast_data import DATA_SETS
from benchmarks.forecast_runs import BAND_NAMES, stored_result
from benchmarks.forecast_skill import Losses, compare, critical_difference, mean_ranks, origin_losses, rank_groups, same_windows
from models.backtest import NAIVES
from models.metrics import METRIC_NAMES
from telemetry.errors import InputError

BEGIN, END = "<!-- forecast benchmark: begin -->", "<!-- forecast benchmark: end -->"
KINDS = {"naive": "better naive", "peer": "best peer", "single_peer": "best single peer"}


def collect(out: Path, data_sets: Sequence[str], names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], Losses, Losses]:
    """Records, losses and scaled losses by origin of what is on disk, by data set and forecaster.

    Raises:
        InputError: two results of one data set are not about the same windows.
    """
    records: dict[str, dict[str, Any]] = {}
    losses: Losses = {}
    scaled: Losses = {}
    for data in data_sets:
        first: pd.DataFrame | None = None
        for name in names:
            record = stored_result(out, data, name)
            if record is None:
                continue
            records.setdefault(data, {})[name] = record
            if record["error"]:
                continue
            forecasts = pd.read_parquet(out / data / f"{name}.parquet")
            if first is not None and not same_windows(first, forecasts):
                raise InputError("other windows than the first forecaster's", where=f"{data}, {name}", remedy="run both again with --fresh")
            first = forecasts if first is None else first
            losses.setdefault(data, {})[name] = origin_losses(forecasts)
            scaled.setdefault(data, {})[name] = origin_losses(forecasts, record["scales"])
    return records, losses, scaled


def summarise(out: Path, data_sets: Sequence[str], names: Sequence[str], peers: Sequence[str]) -> dict[str, Any]:
    """Everything that the report shows, as plain types; ``sql`` holds the comparison by scaled loss."""
    records, losses, scaled = collect(out, data_sets, names)
    headline = [name for name in data_sets if DATA_SETS[name].headline]
    summary: dict[str, Any] = {"peers": list(peers), **compare(losses, peers, headline), "sql": compare(scaled, peers, headline)}
    summary["results"] = {
        data: {name: _row(record) for name, record in table.items() if not record["error"]} for data, table in records.items()
    }
    summary["failed"] = {data: {name: r["error"] for name, r in table.items() if r["error"]} for data, table in records.items()}
    summary["windows"] = {data: next(records[data][name]["windows"] for name in table) for data, table in losses.items()}
    summary["ranks"] = _ranks(records, summary["data_sets"])
    return summary


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    spent = record["cpu_s"]
    return {
        **{name: record["overall"][name] for name in METRIC_NAMES},
        **{f"coverage80_{band}": record["coverage80_by_band"][band] for band in BAND_NAMES},
        "crossings": record["crossings"],
        "crossings_before_sorting": record["crossings_before_sorting"],
        "fit_cpu_s": spent.get("fit", 0.0),
        "predict_cpu_s": spent.get("update", 0.0) + spent.get("predict", 0.0),
        "fallbacks": len(record.get("fallbacks") or {}),
    }


def _ranks(records: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> dict[str, Any]:
    """Mean ranks over (data set, series) of the forecasters that are there in all data sets."""
    columns: dict[str, dict[tuple[str, str], float]] = {}
    for data in sets:
        for name, record in records[data].items():
            if not record["error"]:
                columns.setdefault(name, {}).update({(data, uid): loss for uid, loss in record["series_loss"].items()})
    table = pd.DataFrame({name: pd.Series(column, dtype=float) for name, column in columns.items()}).dropna(axis=1)
    if table.shape[1] < 2:
        return {}
    ranks = mean_ranks(table)
    return {"mean_rank": ranks.to_dict(), "cases": len(table), "critical_difference": critical_difference(table.shape[1], len(table))}


# ---------------------------------------------------------------- text


def _interval(part: Mapping[str, float] | None) -> str:
    return f"{part['ratio']:.3f} [{part['low']:.3f}, {part['high']:.3f}]" if part else "-"


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """Tables for the terminal: one per data set, then the geometric means."""
    lines: list[str] = []
    for data, rows in summary["results"].items():
        if data not in summary["windows"]:
            continue
        about = summary["windows"][data]
        lines += ["", f"{data}: {about['series']} series, {about['origins']} origins {about['step']} steps apart, {about['rows']} rows"]
        head = f"{'':24s}{'WQL':>8s}{'SQL':>8s}{'MASE':>8s}{'cov80':>7s}{'near':>6s}{'mid':>6s}{'far':>6s}{'width80':>11s}"
        lines.append(f"{head}{'fit s':>8s}{'pred s':>8s}{'cross':>7s}  against the better naive ({summary['better_naive'].get(data)})")
        for name, row in sorted(rows.items(), key=lambda item: item[1]["wql"]):
            covered = "".join(f"{row[f'coverage80_{band}']:6.2f}" for band in BAND_NAMES)
            against = _interval(summary["ratios"][data][name]["naive"])
            lines.append(
                f"{name:24s}{row['wql']:8.4f}{row['sql']:8.3f}{row['mase']:8.3f}{row['coverage80']:7.3f}{covered}{row['width80']:11.4g}"
                f"{row['fit_cpu_s']:8.1f}{row['predict_cpu_s']:8.1f}{row['crossings']:7d}  {against}"
            )
        lines += [f"{name:24s}failed: {error}" for name, error in summary["failed"].get(data, {}).items()]
    for metric, told in (("WQL", summary), ("SQL", summary["sql"])):
        lines += ["", f"geometric mean of {metric} ratios over {', '.join(told['data_sets'])} [95 % interval]"]
        lines.append(f"{'':24s}" + "".join(f"{title:>26s}" for title in KINDS.values()) + f"   ({told['best_single_peer']})")
        ranked = sorted(told["geometric"].items(), key=lambda item: _ratio(item[1]["naive"]))
        lines += [f"{name:24s}" + "".join(f"{_interval(parts[kind]):>26s}" for kind in KINDS) for name, parts in ranked]
    return lines


def _ratio(part: Mapping[str, float] | None) -> float:
    return part["ratio"] if part else float("inf")


def markdown(summary: Mapping[str, Any], command: str) -> str:
    """The table of the documentation, with the command that prints it."""
    sets = [data for data in summary["results"] if data in summary["windows"]]
    lines = [f"`{command}`", ""]
    lines.append("Origins, steps apart, series: " + "; ".join(_windows_text(data, summary["windows"][data]) for data in sets) + ".")
    lines.append("Best peer: " + "; ".join(f"{DATA_SETS[d].title} `{summary['best_peer'][d]}`" for d in sets if d in summary["best_peer"]))
    lines[-1] += f"; over all `{summary['best_single_peer']}`." if summary["best_single_peer"] else "."
    heads = ["forecaster", *(f"{DATA_SETS[data].title}: WQL / SQL / cover 80 %" for data in sets)]
    heads += ["CPU s: fit / predict", *(f"WQL to {title}" for title in KINDS.values()), "SQL to better naive", "SQL to best peer"]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in sorted(summary["geometric"], key=lambda name: _ratio(summary["geometric"][name]["naive"])):
        rows = {data: summary["results"][data].get(name) for data in sets}
        cells = [f"{r['wql']:.4f} / {r['sql']:.3f} / {r['coverage80']:.2f}" if r else "-" for r in rows.values()]
        spent = [sum(r[part] for r in rows.values() if r) for part in ("fit_cpu_s", "predict_cpu_s")]
        means = [*summary["geometric"][name].values(), *list(summary["sql"]["geometric"][name].values())[:2]]
        shown = f"**{name}**" if name not in summary["peers"] and name not in NAIVES else name
        lines.append("| " + " | ".join([shown, *cells, f"{spent[0]:.0f} / {spent[1]:.0f}", *map(_interval, means)]) + " |")
    failed = [f"{data}, {name}: {error}" for data, table in summary["failed"].items() for name, error in table.items()]
    return "\n".join([*lines, *(["", "Failed: " + "; ".join(failed)] if failed else [])])


def _windows_text(data: str, about: Mapping[str, Any]) -> str:
    return f"{DATA_SETS[data].title} {about['origins']}, {about['step']}, {about['series']}"


def write_table(page: Path, summary: Mapping[str, Any], command: str) -> None:
    """Replace what stands between the two markers of a page by the table; a page without them gets both at its end."""
    text = page.read_text() if page.is_file() else "# Forecasts\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{BEGIN}\n{END}\n"
    if END not in text.split(BEGIN, 1)[1]:
        raise InputError("the end marker is missing", where=str(page), allowed=END, remedy="put it below the table")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    fresh = page.with_name(page.name + ".new")
    fresh.write_text(f"{before}{BEGIN}\n{markdown(summary, command)}\n{END}{after}")
    os.replace(fresh, page)


# ---------------------------------------------------------------- charts


def draw(summary: Mapping[str, Any], out: Path) -> list[Path]:
    """Write ``skill.png`` and ``critical_difference.png``; a chart without data is left out."""
    import matplotlib

    matplotlib.use("Agg")
    drawn = []
    if any(parts["naive"] for parts in summary["geometric"].values()):
        drawn.append(_skill_chart(summary, out / "skill.png"))
    if summary["ranks"]:
        drawn.append(_rank_chart(summary, out / "critical_difference.png"))
    return drawn


def _colour(summary: Mapping[str, Any], name: str) -> str:
    return "0.6" if name in NAIVES else "tab:orange" if name in summary["peers"] else "tab:blue"


def _skill_chart(summary: Mapping[str, Any], path: Path) -> Path:
    from matplotlib import pyplot as plt

    rows = {name: parts["naive"] for name, parts in summary["geometric"].items() if parts["naive"]}
    names = sorted(rows, key=lambda name: -rows[name]["ratio"])
    ratio, low, high = (np.array([rows[name][key] for name in names]) for key in ("ratio", "low", "high"))
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * len(names)), layout="constrained")
    axes.barh(names, ratio, xerr=[ratio - low, high - ratio], color=[_colour(summary, name) for name in names], ecolor="0.2", capsize=2)
    axes.axvline(1.0, color="0.2", linewidth=0.8)
    axes.set_xlabel("WQL over that of the better naive: geometric mean, 95 % interval")
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _rank_chart(summary: Mapping[str, Any], path: Path) -> Path:
    from matplotlib import pyplot as plt

    told = summary["ranks"]
    ranks = pd.Series(told["mean_rank"]).sort_values()
    groups = rank_groups(ranks, told["critical_difference"])
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.3 * len(ranks) + 0.15 * len(groups)), layout="constrained")
    for place, (name, rank) in enumerate(ranks.items()):
        axes.plot([rank, rank], [0, -1 - place], color=_colour(summary, str(name)), linewidth=0.8)
        axes.annotate(f"{name}  {rank:.2f}", (rank, -1 - place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    for level, (first, last) in enumerate(groups):
        axes.plot([ranks.iloc[first], ranks.iloc[last]], [0.5 + 0.5 * level] * 2, color="0.1", linewidth=3, solid_capstyle="butt")
    top = 1.5 + 0.5 * len(groups)
    axes.plot([1, 1 + told["critical_difference"]], [top, top], color="tab:red", linewidth=2)
    axes.annotate(f"critical difference {told['critical_difference']:.2f}", (1, top), xytext=(0, 4), textcoords="offset points", fontsize=8)
    axes.set_xlim(0.8, len(ranks) + 0.6)
    axes.set_ylim(-len(ranks) - 1, top + 1)
    axes.set_yticks([])
    axes.set_xlabel(
        f"mean rank by quantile loss over {told['cases']} series (1 is best); a bar joins what the Nemenyi test at 5 % cannot part"
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
