"""Drifts planted into real traces: hours to the alarm, and false alarms a month where nothing was planted; ``python -m benchmarks.drift``.

Every series is a cluster of its own with a monitor of its own, and a champion forecasts it that was fitted to its first days. A detector's
threshold is the least of its ladder that stays within the budget of false alarms on the *choosing* series; what is printed is of the
*judging* series. After an alarm a rule learns anew what is normal, as it would of a retrained champion; an undisturbed trace that changes
by itself alarms, and counts as false.
Prints tables, writes JSON and draws the delays.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift_replay import LOAD_PLANTS, NONE, PER_DAY, PLANTS, POWER_PLANTS, Watched, aligned, replay
from benchmarks.forecast_data import check_traces, load_data, traces_root
from models.drift.detectors import Detector
from models.drift.rules import Rule, judge
from pipelines.workspace import write_json
from registry.plots import PALETTE, new_figure

# name: days of the trace, days of training, days of service before the drift
DATA = {"helios_running": (30, 8, 9.0), "nab": (14, 4, 6.0), "servegen": (13, 4, 6.0), "azure_vm": (29, 8, 9.0)}
REFERENCE_BLOCKS, MONTH_BLOCKS = 40, 30 * PER_DAY
IDLE_W, WATTS_PER_GPU, METER_NOISE = 300.0, 250.0, 0.01
CUSUM = (4.0, 6.0, 8.0, 10.0, 13.0, 16.0, 20.0, 30.0, 50.0)
LADDERS: dict[str, tuple[str, Detector, tuple[float, ...]]] = {
    "loss ratio, cusum": ("loss_ratio", Detector("cusum", 1.0), CUSUM),
    "loss ratio, page_hinkley": ("loss_ratio", Detector("page_hinkley", 1.0), CUSUM),
    "loss ratio, adwin": ("loss_ratio", Detector("adwin", 0.1), (0.2, 0.05, 0.01, 2e-3, 5e-4, 1e-4, 1e-5, 1e-7)),
    "loss ratio, kswin": ("loss_ratio", Detector("kswin", 0.1), (0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)),
    "loss, cusum": ("loss", Detector("cusum", 1.0), CUSUM),
    "coverage, betting": ("miss", Detector("betting", 1.0), (100.0, 300.0, 1e3, 3e3, 1e4, 1e5, 1e6, 1e8)),
    "bias, cusum": ("bias", Detector("cusum", 1.0, "both"), CUSUM),
    "level, cusum": ("level", Detector("cusum", 1.0, "both"), CUSUM),
    "PSI, above": ("psi", Detector("above", 1.0), (1.0, 1.1, 1.25, 1.5, 2.0, 3.0)),
    "power residual, cusum": ("power", Detector("cusum", 1.0, "both"), CUSUM),
}
RETRAIN = ("loss ratio, cusum", "loss, cusum", "coverage, betting", "power residual, cusum")
WARN = ("bias, cusum", "PSI, above")
SHIPPED_NAME, WITH_WARNINGS = "**rules that retrain**", "**and those that warn**"


def choosing(data: str, number: int) -> bool:
    """Whether a series is one that thresholds are chosen on: NAB, and every other virtual cluster of Helios."""
    return data == "nab" or (data.startswith("helios") and number % 2 == 0)


def rule_of(name: str, threshold: float) -> Rule:
    signal, detector, _ = LADDERS[name]
    detector = replace(detector, threshold=threshold)
    return Rule(name, signal, detector, reference_blocks=REFERENCE_BLOCKS, cooldown_blocks=3 * PER_DAY)


def alarms_of(rule: Rule, one: Watched) -> tuple[tuple[int, ...], int]:
    """Alarms, and how many blocks were judged: after an alarm what is normal is learnt anew, as of the champion that retraining brings."""
    if rule.signal not in one.blocks:
        return (), 0
    blocks, values = one.blocks.index.to_numpy(), one.blocks[rule.signal].to_numpy()
    alarms, judged_blocks = [], 0
    while len(blocks):
        told = judge(rule, blocks, values, PER_DAY)
        end = int(np.searchsorted(blocks, told.alarms[0], side="right")) if told.alarms else len(blocks)
        judged_blocks += int(np.isfinite(told.path[:end]).sum())
        alarms += list(told.alarms[:1])
        blocks, values = blocks[end:], values[end:]
    return tuple(alarms), judged_blocks


def false_alarms(rule: Rule, quiet: list[Watched]) -> tuple[int, float]:
    """Alarms on series without a drift, and in how many months of judged blocks."""
    found = [alarms_of(rule, one) for one in quiet]
    return sum(len(alarms) for alarms, _ in found), sum(blocks for _, blocks in found) / MONTH_BLOCKS


def choose(name: str, quiet: list[Watched], budget: float) -> Rule:
    """The most sensitive threshold within ``budget`` false alarms a month; the least sensitive of all when none is."""
    for threshold in LADDERS[name][2]:
        rule = rule_of(name, threshold)
        alarms, months = false_alarms(rule, quiet)
        if alarms <= budget * months:
            return rule
    return rule_of(name, LADDERS[name][2][-1])


def delays(alarms: list[tuple[int, ...]], drifted: list[Watched]) -> np.ndarray:
    """Hours from start to the first alarm at or after it; NaN where none came."""
    hours = 24.0 / PER_DAY
    found = [min((b + 1 - one.start for b in own if b >= one.start), default=np.nan) for own, one in zip(alarms, drifted, strict=True)]
    return np.array(found, dtype=np.float64) * hours


def judged_rows(rules: dict[str, list[Rule]], quiet: list[Watched], drifted: list[Watched]) -> list[dict[str, Any]]:
    """One row per set of rules: false alarms a month, and per drift and size the share found and the median delay in hours.

    A set alarms when one of its rules does; its alarms within three days of one another are one.
    """
    rows = []
    for name, own in rules.items():
        found = {id(one): [alarms_of(rule, one) for rule in own] for one in (*quiet, *drifted)}
        told = {key: _merged([alarms for alarms, _ in parts]) for key, parts in found.items()}
        # Rules of a set learn anew at times of their own: the set watches while any of them does.
        months = sum(max(blocks for _, blocks in found[id(one)]) for one in quiet) / MONTH_BLOCKS
        count = sum(len(told[id(one)]) for one in quiet)
        row: dict[str, Any] = {"rules": name, "false_alarms": count, "months": months, "per_month": count / months, "drifts": {}}
        row["thresholds"] = {rule.name: rule.detector.threshold for rule in own}
        for plant, (_, sizes, _) in PLANTS.items():
            for size in sizes:
                ones = [one for one in drifted if (one.plant, one.size) == (plant, size)]
                ones = [one for one in ones if any(rule.signal in one.blocks for rule in own)]
                if ones:
                    hours = delays([told[id(one)] for one in ones], ones)
                    found = np.isfinite(hours)
                    median = float(np.median(hours[found])) if found.any() else None
                    row["drifts"][f"{plant} {size:g}"] = {"series": len(ones), "found": float(found.mean()), "median_h": median}
        rows.append(row)
    return rows


def _merged(parts: list[tuple[int, ...]]) -> tuple[int, ...]:
    out: list[int] = []
    for block in sorted(b for part in parts for b in part):
        if not out or block - out[-1] > 3 * PER_DAY:
            out.append(block)
    return tuple(out)


def by_chance(rules: list[Rule], quiet: list[Watched]) -> float:
    """Share of undisturbed copies that alarm after the time at which the others drift: what detection has to be compared with."""
    told = [_merged([alarms_of(rule, one)[0] for rule in rules]) for one in quiet]
    return float(np.isfinite(delays(told, quiet)).mean())


def load_all(root: Path, made: Path, names: list[str], champion: str, seed: int) -> tuple[list[Watched], list[Watched]]:
    """Watched copies of all data sets: (choosing, judging); of Helios also as watts of its running GPUs, replayed."""
    parts: tuple[list[Watched], list[Watched]] = ([], [])
    for name in names:
        days, train, start = DATA[name]
        wide = aligned(load_data(name, root, made)[["unique_id", "ds", "y"]], days)
        sides = [[s for n, s in enumerate(wide) if choosing(name, n) is side] for side in (True, False)]
        for out, series in zip(parts, sides, strict=True):
            if series:
                out += replay(name, wide[series], None, train, int(start), champion, seed)
            if series and name.startswith("helios"):
                drawn = IDLE_W + WATTS_PER_GPU * wide[series]
                drawn.columns = [f"power {s}" for s in series]
                noise = np.random.default_rng(seed).normal(size=drawn.shape)
                out += replay(f"{name}, replayed watts", drawn * (1.0 + METER_NOISE * noise), drawn, train, int(start), champion, seed)
    return parts


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The table in Markdown: false alarms, then found / median hours by drift and size."""
    keys = list(dict.fromkeys(key for row in rows for key in row["drifts"]))
    lines = [f"| rules | false alarms a month | {' | '.join(keys)} |", "|---" * (len(keys) + 2) + "|"]
    for row in rows:
        cells = []
        for key in keys:
            cell = row["drifts"].get(key)
            text = "-" if cell is None else f"{cell['found']:.0%}"
            cells.append(text if cell is None or cell["median_h"] is None else f"{text}, {cell['median_h']:.0f} h")
        lines.append(f"| {row['rules']} | {row['per_month']:.2f} ({row['false_alarms']} in {row['months']:.1f}) | {' | '.join(cells)} |")
    return lines


def figure_of(rows: list[dict[str, Any]], chance: float) -> Any:
    """Left: share found by drift and size, of the rules that retrain and with those that warn; right: median hours where found."""
    sets = [next(row for row in rows if row["rules"] == name) for name in (SHIPPED_NAME, WITH_WARNINGS)]
    labels = list(sets[0]["drifts"])
    figure, panels = new_figure(11.0, 4.8, ncols=2)
    left, right = panels[0]
    at = np.arange(len(labels))
    for number, (row, told) in enumerate(zip(sets, ("rules that retrain", "and those that warn"), strict=True)):
        own, place = [row["drifts"][key] for key in labels], at + 0.4 * number - 0.2
        label = f"{told}: {row['per_month']:.2f} false alarms a month"
        left.barh(place, [cell["found"] for cell in own], height=0.38, color=PALETTE[number], label=label)
        right.barh(place, [cell["median_h"] or 0.0 for cell in own], height=0.38, color=PALETTE[number])
    left.axvline(chance, color=PALETTE[3], linestyle="--", label=f"no drift, rules that retrain: {chance:.0%}")
    left.set_xlabel("share of series in which it was found")
    left.set_xlim(0, 1)
    left.legend(loc="upper right", fontsize=8)
    right.set_xlabel("median hours from start to alarm, where found")
    for axes, names in ((left, labels), (right, [""] * len(at))):
        axes.set_yticks(at, names)
        axes.invert_yaxis()
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), default=list(DATA), help="data sets")
    parser.add_argument("--champion", default="lightgbm", help="forecaster that is watched")
    parser.add_argument("--budget", type=float, default=0.6, help="false alarms a month that a rule may have on the choosing series")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/drift.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/drift.png"))
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=RuntimeWarning)
    root, begun = traces_root(), time.perf_counter()
    check_traces(root)
    with tempfile.TemporaryDirectory(prefix="joulewise-drift-") as made:
        chosen_on, judged_on = load_all(root, Path(made), options.data, options.champion, options.seed)
    quiet = [one for one in chosen_on if one.plant == NONE]
    rules = {name: [choose(name, quiet, options.budget)] for name in LADDERS}
    rules[SHIPPED_NAME] = [rules[name][0] for name in RETRAIN]
    rules[WITH_WARNINGS] = [rules[name][0] for name in (*RETRAIN, *WARN)]
    undisturbed, drifted = [one for one in judged_on if one.plant == NONE], [one for one in judged_on if one.plant != NONE]
    rows = judged_rows(rules, undisturbed, drifted)
    on_chosen = judged_rows({SHIPPED_NAME: rules[SHIPPED_NAME]}, quiet, [one for one in chosen_on if one.plant != NONE])[0]
    chance = by_chance(rules[SHIPPED_NAME], undisturbed)
    # A load has no power residual and a power series other drifts: one table each.
    for title, plants in (("drifts of load", LOAD_PLANTS), ("drifts of power", POWER_PLANTS)):
        shown = [{**row, "drifts": {k: v for k, v in row["drifts"].items() if k.startswith(plants)}} for row in rows]
        print(f"\n{title}\n\n" + "\n".join(table_lines([row for row in shown if row["drifts"]])))
    print(f"\nshipped rules: {chance:.0%} of undisturbed series alarm after the time of the drift; on the choosing series "
          f"{on_chosen['per_month']:.2f} false alarms a month ({on_chosen['false_alarms']} in {on_chosen['months']:.1f})")  # fmt: skip
    print("thresholds: " + ", ".join(f"{name} {own[0].detector.threshold:g}" for name, own in rules.items() if len(own) == 1))
    print(f"{len(chosen_on) + len(judged_on)} copies, {time.perf_counter() - begun:.0f} s")
    settings = {key: str(value) for key, value in vars(options).items()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {"settings": settings, "rows": rows, "by_chance": chance, "choosing": on_chosen})
    options.plot.parent.mkdir(parents=True, exist_ok=True)
    figure_of(rows, chance).savefig(options.plot, dpi=110)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
