"""The benchmark's results as lines of text."""

from __future__ import annotations

from typing import Any


def lines_of(part: str, result: dict[str, Any]) -> list[str]:
    """Table of one part, as its function in the benchmark returned it."""
    return _TABLES[part](result)


def _batch(result: dict[str, Any]) -> list[str]:
    by_threads = result["decisions_per_s"]
    lines = [f"{'decisions/s':32s}" + "".join(f"{name:>16s}" for name in by_threads)]
    for row in next(iter(by_threads.values())):
        lines.append(f"{row:32s}" + "".join(f"{rows[row]:16,.0f}" for rows in by_threads.values()))
    kib = {name: value / 1024 for name, value in result.items() if name.startswith("bytes")}
    lines.append(
        f"memory: {kib['bytes_per_cluster']:,.0f} KiB per cluster ({kib['bytes_per_cluster_with_event_log']:,.0f} with an event log), "
        f"{kib['bytes_shared_world']:,.0f} KiB of shared world ({kib['bytes_shared_world_per_window']:,.0f} per window)"
    )
    return [*lines, f"observation: {result['observation_values']} values"]


def _features(result: dict[str, Any]) -> list[str]:
    rows = result["decisions_per_s"]
    columns = list(next(iter(rows.values())))
    lines = [f"{'':24s}" + "".join(f"{name.split(',')[0][:12] if 'bare' not in name else name[6:]:>14s}" for name in columns)]
    return lines + [f"{case:24s}" + "".join(f"{row[name]:14,.0f}" for name in columns) for case, row in rows.items()]


def _month(result: dict[str, Any]) -> list[str]:
    lines = [f"{'':20s}{'':10s}{'seconds':>9s}{'decisions':>12s}{'waiting at most':>17s}{'GPUs busy':>11s}{'ends, day':>11s}"]
    for load, rows in result.items():
        for name, row in rows.items():
            more = "" if row["finished"] else "  stopped"
            lines.append(
                f"{name:20s}{load:10s}{row['seconds']:9.2f}{row['decisions']:12,d}{row['most_waiting_seen']:17,d}"
                f"{row['busy_share']:11.0%}{row['end_day']:11.1f}{more}"
            )
    return lines


def _flatness(result: dict[str, Any]) -> list[str]:
    lines = ["ns per decision, by tenth of a month's decisions"]
    for name, row in result["by_finished"].items():
        tenths = "".join(f"{value:8,.0f}" for value in row["ns_per_decision_by_tenth"])
        lines.append(f"{name:18s}{tenths}   last/second {row['last_over_second']:.2f}")
    waiting = result["by_waiting"]["waiting"]
    lines.append("ns per decision, by waiting jobs" + "".join(f"{int(count):>14,d}" for count in waiting) + f"{'exponent':>10s}")
    for name, exponent in result["by_waiting"]["exponent"].items():
        lines.append(f"{name:32s}" + "".join(f"{rows[name]['ns_per_decision']:14,.0f}" for rows in waiting.values()) + f"{exponent:10.2f}")
    return lines


def _million(result: dict[str, Any]) -> list[str]:
    if "failed" in result:
        return [f"failed: {result['failed']}"]
    lines = [
        f"{result['jobs']:,d} jobs; world built in {result['build_s']:.1f} s; state {result['state_gb']:.2f} GB, "
        f"packed world {result['packed_world_gb']:.2f} GB, most memory of the process {result['peak_gb']:.2f} GB"
    ]
    for name, row in result["runs"].items():
        lines.append(f"{name:18s}{row['seconds']:8.2f} s ({row['reset_s']:.2f} s of it the beginning), {row['decisions']:,d} decisions")
    return lines


def _reference(result: dict[str, Any]) -> list[str]:
    lines = [f"{'decisions/s':36s}{'reference':>12s}{'compiled':>14s}{'ratio':>8s}{'stepped':>14s}{'ratio':>8s}"]
    for case, row in result.items():
        speeds = f"{row['reference_decisions_per_s']:12,.0f}{row['kernel_decisions_per_s']:14,.0f}{row['ratio']:8,.0f}"
        lines.append(f"{case:36s}{speeds}{row['kernel_stepped_decisions_per_s']:14,.0f}{row['ratio_stepped']:8,.0f}")
    return lines


def _peers(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, row in result["ours"].items():
        wait = f", mean wait {row['mean_wait_s']:,.0f} s" if "mean_wait_s" in row else ""
        lines.append(f"{'ours: ' + name:44s}{row['units_per_s']:14,.0f} /s{wait}")
    for name, row in result["peers"].items():
        if "not_installed" in row:
            lines.append(f"{name:44s}not installed: {row['not_installed']}")
            continue
        if "failed" in row:
            lines.append(f"{name:44s}failed: {row['failed']}")
            continue
        wait = f", mean wait {row['mean_wait_s']:,.0f} s" if "mean_wait_s" in row else ""
        more = f", in a batch x {row['ratio_batched']:,.0f}" if "ratio_batched" in row else ""
        lines.append(f"{name:44s}{row['units_per_s']:14,.0f} /s{wait}; ours ({row['against']}) x {row['ratio']:,.0f}{more}")
        lines.append(f"    counts {row['counts']}")
        lines.append(f"    models {row['models']}")
    return lines


def _profile(result: dict[str, Any]) -> list[str]:
    lines = [f"{name:48s}{value:10,.0f} ns" for name, value in result["ns_per_decision"].items()]
    batches = ", ".join(f"{count}: {value:,.0f}" for count, value in result["ns_per_decision_by_clusters"].items())
    return [*lines, f"play without scores, ns per decision by clusters in the batch: {batches}"]


def _compile(result: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("cold", "warm"):
        row = result[name]
        total = row["reset_s"] + row["observe_and_act_s"]
        lines.append(f"{name}: first calls {total:.1f} s (imports {row['import_s']:.1f} s before them)")
    return [*lines, f"compiled code on disk: {result['cache_mib']['compiled']:.1f} MiB"]


_TABLES = {
    "batch": _batch,
    "features": _features,
    "month": _month,
    "flatness": _flatness,
    "million": _million,
    "reference": _reference,
    "peers": _peers,
    "profile": _profile,
    "compile": _compile,
}
