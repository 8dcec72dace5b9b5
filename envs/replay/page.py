"""``replay.html``: one page, read offline, that tells what a policy did in a window and why it cost that."""

from __future__ import annotations

from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from plotly.offline import get_plotlyjs

from envs.replay.causes import CAUSES, PARTS, REJECTIONS
from envs.replay.episode import Episode
from envs.replay.figures import figure_of
from envs.replay.power import CATEGORIES
from envs.replay.recompute import UNITS, job_gpus
from envs.replay.style import CATEGORY_COLOURS, lasting, words
from envs.replay.timeline import Clock

MOST_ROWS = 300
STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#222;margin:0 auto;max-width:1500px;padding:18px 26px 60px}
h1{font-size:23px;margin:0 0 2px}h2{font-size:17px;margin:34px 0 6px;border-bottom:1px solid #e3e3e3;padding-bottom:3px}
.sub,.note{color:#6b6b6b}
.note{max-width:1050px;margin:4px 0 8px}.bad{color:#c4161c}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:16px 0 4px}
.card{border:1px solid #e3e3e3;border-radius:8px;padding:8px 14px;min-width:112px}
.card b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.card span{color:#6b6b6b;font-size:12px}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:3px 10px;text-align:right;border-bottom:1px solid #eee}
th{font-weight:600;background:#fafafa;position:sticky;top:0}
th:first-child,td:first-child,td.l,th.l{text-align:left}
tr.sum td{font-weight:600;border-top:1px solid #999}
.scroll{max-height:480px;overflow:auto;border:1px solid #eee}
.cols{display:flex;flex-wrap:wrap;gap:8px 50px;align-items:flex-start}
i.sw{display:inline-block;width:10px;height:10px;margin-right:7px;border:1px solid #bbb}code{background:#f4f4f4;padding:0 4px}
"""


def page_of(episode: Episode, *, with_files: bool = True) -> str:
    """The whole page.

    Args:
        with_files: the files of ``envs.replay.episode.files_of`` lie beside it.
    """
    facts = episode.facts
    figure, notes = figure_of(episode)
    chart = figure.to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, config={"responsive": True, "displaylogo": False}
    )
    title = f"Replay: {facts.policy} on {facts.cluster}"
    end = facts.window_start + pd.Timedelta(seconds=episode.history.end_s)
    sections = (
        f"<h1>{escape(title)}</h1>",
        f'<div class="sub">{facts.window_start:%a %d %b %Y %H:%M} to {end:%a %d %b %Y %H:%M} UTC, when the last job ended '
        f"({lasting(episode.history.end_s)}). {escape(_source(episode))}</div>",
        _warnings(episode),
        _cards(episode),
        _section(
            "Hour by hour",
            chart,
            "All panels share one time axis (UTC): drag sideways to zoom, double-click to return; hover for details; click a name in the "
            "legend to hide it. A bar lies on the GPUs that a job held; paler = at a lower power level; an outlined white bar = placed, "
            f"waiting for its node. Filled areas are means over bins of {_bin_words(episode)}; their area is the total.",
            notes,
        ),
        _section("Why it cost that", _bill(episode), _BILL_NOTE),
        _section("Service", _service(episode), _SERVICE_NOTE),
        _section("Missed objectives and their causes", _misses(episode), _MISS_NOTE),
        _section(
            "Power levels chosen", _levels(episode), "GPU hours of runs; utilisation is occupancy, so a lower level makes a run longer."
        ),
        _section("Policy and cluster", _settings(episode)),
        _section("Files beside this page", _files(episode)) if with_files else "",
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body>{''.join(sections)}</body></html>"
    )


_BILL_NOTE = (
    "A running job is charged its own watts and its share of its nodes' idle watts, with PUE. <i>idle</i> is what awake nodes drew beyond "
    "that: GPUs that nobody held. The price paid is the mean over the kWh; compare it with the plain mean over the time of the window to "
    "see whether work went to cheap hours and sites."
)
_SERVICE_NOTE = (
    "A job violates its objective when it starts later than its class allows (<i>late start</i>), ends after its deadline, or is rejected. "
    "Wait = first start - submission; slowdown is bounded."
)
_MISS_NOTE = (
    "Causes come from the event log and from the free GPUs of every instant: the time from submission to the start (or end) is taken "
    "apart, and the largest part is named. <i>Alone</i> = without that part the objective would have been met; else several parts came "
    "together."
)


def _section(title: str, body: str, note: str = "", notes: list[str] | None = None) -> str:
    told = "".join(f'<p class="note">{text}</p>' for text in (note, *(escape(text) for text in notes or [])) if text)
    return f"<h2>{escape(title)}</h2>{told}{body}"


def _source(episode: Episode) -> str:
    about = episode.about
    return f"Jobs: {about['jobs']}; grid: {about.get('grid', 'unknown')}." if "jobs" in about else ""


def _warnings(episode: Episode) -> str:
    return "".join(f'<p class="bad">{escape(str(text))}</p>' for text in episode.about.get("warnings", ()))


def _bin_words(episode: Episode) -> str:
    row = episode.power.iloc[0]
    return lasting(int(row["end_s"] - row["begin_s"]))


def number(value: Any, digits: int = 2) -> str:
    """Grouped digits; a dash for what is not defined."""
    return "-" if value is None or pd.isna(value) else f"{value:,.{digits}f}"


def share(value: Any) -> str:
    return "-" if value is None or pd.isna(value) else f"{100 * value:,.1f} %"


def _cards(episode: Episode) -> str:
    t = episode.totals["window"]
    big = 0 if t["energy_kwh"] >= 1000 else 1
    cards = (
        (number(t["energy_kwh"], big), "kWh, PUE included"),
        (number(t["cost_usd"]), "USD for energy"),
        (number(t["carbon_kg"], 1), "kg CO2e"),
        (share(t["sla_violation_rate"]), f"of {t['jobs_submitted']:,} jobs missed an objective"),
        (f"{t['late_starts']:,} / {t['missed_deadlines']:,} / {t['jobs_rejected']:,}", "late starts / missed deadlines / rejected"),
        (f"{_time(t['mean_wait_s'])} / {_time(t['p95_wait_s'])}", "wait: mean / 95th percentile"),
        (share(t["gpu_utilization"]), f"of {t['gpus']:,} GPUs occupied"),
        (number(t["penalty_usd"]), "USD of SLA penalties"),
        (number(t["objective_usd"]), "USD, weighted objective"),
    )
    return (
        '<div class="cards">' + "".join(f'<div class="card"><b>{value}</b><span>{label}</span></div>' for value, label in cards) + "</div>"
    )


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else lasting(seconds)


def table(head: list[str], rows: list[list[str]], *, left: int = 1, total: bool = False) -> str:
    """An HTML table; cells are HTML. The first ``left`` columns are words; the last row is set apart when it is a total."""
    cells = "".join(f"<th{' class=l' if i < left else ''}>{name}</th>" for i, name in enumerate(head))
    lines = []
    for place, row in enumerate(rows):
        mark = ' class="sum"' if total and place == len(rows) - 1 else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td{' class=l' if i < left else ''}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>")
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


# ---------------------------------------------------------------- the bill


def _bill(episode: Episode) -> str:
    sums = episode.power.groupby("category")[list(UNITS)].sum().reindex([*CATEGORIES])
    head = ["drawn by", "kWh", "share", "USD", "share", "kg CO2e", "USD/kWh paid", "g/kWh emitted"]
    rows = [
        _bill_row(f'<i class="sw" style="background:{CATEGORY_COLOURS[name]}"></i>{words(name)}', row, sums.sum())
        for name, row in sums.iterrows()
        if row.abs().sum() > 0
    ]
    rows.append(_bill_row("all", sums.sum(), sums.sum()))
    by_site = episode.power.groupby("site")[list(UNITS)].sum().reindex(list(episode.facts.sites))
    plain = _plain_means(episode)
    site_rows = [[*_bill_row(escape(str(name)), row, by_site.sum()), *plain[str(name)]] for name, row in by_site.iterrows()]
    site_head = ["site", *head[1:], "plain mean USD/kWh", "plain mean g/kWh"]
    return f'<div class="cols">{table(head, rows, total=True)}{table(site_head, site_rows)}</div>'


def _bill_row(name: str, row: pd.Series, whole: pd.Series) -> list[str]:
    kwh, usd, kg = (float(row[unit]) for unit in UNITS)
    per = (usd / kwh, 1000 * kg / kwh) if kwh else (None, None)
    of = [value / float(whole[unit]) if whole[unit] else None for value, unit in ((kwh, "energy_kwh"), (usd, "cost_usd"))]
    return [name, number(kwh, 1), share(of[0]), number(usd), share(of[1]), number(kg, 1), number(per[0], 4), number(per[1], 0)]


def _plain_means(episode: Episode) -> dict[str, list[str]]:
    """Means of price and intensity over the window's time: what a constant load would have paid and emitted."""
    facts = episode.facts
    steps = np.arange(-(-max(1, episode.history.end_s) // facts.step_s))
    told = {}
    for index, site in enumerate(facts.sites):
        rows = facts.grid[facts.grid["site"] == index].sort_values("step")
        at = np.minimum(steps, len(rows) - 1)
        price, carbon = (rows[name].to_numpy()[at].mean() for name in ("price_usd_per_kwh", "carbon_kg_per_kwh"))
        told[site] = [number(price, 4), number(1000 * carbon, 0)]
    return told


# ---------------------------------------------------------------- service


def _service(episode: Episode) -> str:
    head = [
        "class",
        "jobs",
        "violated",
        "late starts",
        "missed deadlines",
        "rejected",
        "mean wait",
        "95 % wait",
        "slowdown",
        "GPU hours",
        "kWh",
        "USD",
        "penalty USD",
    ]
    rows = [_service_row(words(name), row) for name, row in episode.totals["classes"].items()]
    whole = episode.totals["window"] | {"busy_gpu_hours": sum(row["busy_gpu_hours"] for row in episode.totals["classes"].values())}
    for unit in ("energy_kwh", "cost_usd"):  # of jobs alone, without idle nodes
        whole[unit] = sum(row[unit] for row in episode.totals["classes"].values())
    return table(head, [*rows, _service_row("all jobs (without idle nodes)", whole)], total=True)


def _service_row(name: str, row: dict[str, Any]) -> list[str]:
    counts = [f"{row[key]:,}" for key in ("late_starts", "missed_deadlines", "jobs_rejected")]
    waits = [_time(row["mean_wait_s"]), _time(row["p95_wait_s"]), number(row["mean_bounded_slowdown"], 1), number(row["busy_gpu_hours"], 0)]
    money = [number(row["energy_kwh"], 1), number(row["cost_usd"]), number(row["penalty_usd"])]
    return [name, f"{row['jobs_submitted']:,}", share(row["sla_violation_rate"]), *counts, *waits, *money]


def _misses(episode: Episode) -> str:
    misses = episode.misses
    if misses.empty:
        return "<p>No job missed its objective.</p>"
    return f"{_miss_summary(misses)}<p></p>{_miss_table(episode)}"


def _miss_summary(misses: pd.DataFrame) -> str:
    kinds = [name for name in ("late_start", "missed_deadline", "rejected") if (misses["miss"] == name).any()]
    counts = misses.pivot_table(index="cause", columns="miss", values="job", aggfunc="size", fill_value=0).reindex(columns=kinds)
    alone = misses.groupby("cause")["alone"].sum()
    order = counts.sum(axis=1).sort_values(ascending=False).index
    told = CAUSES | REJECTIONS
    rows = [
        [words(str(cause)), escape(told.get(str(cause), "")), *(f"{counts.loc[cause, kind]:,}" for kind in kinds), f"{int(alone[cause]):,}"]
        for cause in order
    ]
    return table(["main cause", "meaning", *(words(kind) for kind in kinds), "alone"], rows, left=2)


def _miss_table(episode: Episode) -> str:
    shown, clock = episode.misses.head(MOST_ROWS), Clock(episode.facts.window_start)
    head = [
        "job",
        "class",
        "missed",
        "main cause",
        "where its time went",
        "objective lost at (UTC)",
        "missed by",
        "alone",
        "penalty of the job, USD",
    ]
    times = [at.replace("T", " ") for at in clock.at(shown["at_s"])]
    rows = [
        [
            escape(str(row["job_id"])),
            words(row["workload_class"]),
            words(row["miss"]),
            words(row["cause"]),
            _parts(row),
            at,
            "-" if row["miss"] == "rejected" else lasting(row["over_s"]),
            "yes" if row["alone"] else "no",
            number(row["penalty_usd"]),
        ]
        for row, at in zip(shown.to_dict("records"), times, strict=True)
    ]
    left = len(episode.misses) - len(shown)
    note = f'<p class="note">The {MOST_ROWS} costliest; {left:,} more are in <code>misses.parquet</code>.</p>' if left > 0 else ""
    return f'{note}<div class="scroll">{table(head, rows, left=5)}</div>'


def _parts(row: dict[str, Any]) -> str:
    """The parts of a miss, largest first."""
    if row["miss"] == "rejected":
        return escape(REJECTIONS.get(row["cause"], ""))
    parts = sorted(((row[f"{part}_s"], part) for part in PARTS if row[f"{part}_s"] >= 1), reverse=True)
    told = ", ".join(f"{words(part)} {lasting(seconds)}" for seconds, part in parts)
    if row["miss"] == "missed_deadline":
        told += f"{'; ' if told else ''}needs {lasting(row['needed_run_s'])} by estimate at the fastest place"
    return told


# ---------------------------------------------------------------- settings and files


def _levels(episode: Episode) -> str:
    facts, segments = episode.facts, episode.history.segments
    if segments.empty:
        return "<p>Nothing ran.</p>"
    job, pool = (segments[name].to_numpy(dtype=np.int64) for name in ("job", "pool"))
    hours = job_gpus(facts, job, pool) * (segments["end_s"] - segments["begin_s"]).to_numpy() / 3600.0
    frame = pd.DataFrame({"class": facts.jobs["workload_class"].to_numpy()[job], "pool": facts.pools["name"].to_numpy()[pool]})
    frame = frame.assign(level=segments["level"].to_numpy(), hours=hours)
    head = [f"{100 * fraction:g} % of the power limit" for fraction in facts.level_fractions]
    tables = []
    for by in ("class", "pool"):
        sums = frame.pivot_table(index=by, columns="level", values="hours", aggfunc="sum", fill_value=0.0)
        sums = sums.reindex(columns=range(len(head)), fill_value=0.0)
        rows = [
            [words(str(name)) if by == "class" else escape(str(name)), *(number(value, 0) for value in row)]
            for name, row in sums.iterrows()
        ]
        tables.append(table([by, *head], rows))
    return f'<div class="cols">{"".join(tables)}</div>'


def _settings(episode: Episode) -> str:
    facts = episode.facts
    settings = [[words(name), escape(str(value))] for name, value in asdict(facts.settings).items()]
    weights = [[words(name), f"{value:g}"] for name, value in asdict(facts.reward).items()]
    names = [
        "name",
        "site",
        "gpu_model",
        "nodes",
        "gpus_per_node",
        "node_idle_w",
        "gpu_idle_w",
        "node_sleep_w",
        "wake_latency_s",
        "wake_power_w",
    ]
    pools = facts.pools.assign(site=[facts.sites[site] for site in facts.pools["site"]])[names]
    rows = [[escape(str(value)) if isinstance(value, str) else f"{value:g}" for value in row] for row in pools.itertuples(index=False)]
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in episode.about.get("notes", ()))
    told = escape(str(episode.about.get("policy_summary", "")))
    return (
        (f"<p>{told}</p>" if told else "")
        + f'<div class="cols">{table(["policy setting", "value"], settings)}{table(["objective weight", "value"], weights)}'
        f"{table([words(name) for name in names], rows, left=3)}</div>" + (f"<ul>{notes}</ul>" if notes else "")
    )


def _files(episode: Episode) -> str:
    seats = ", <code>seats.parquet</code> (node and GPU of every worker)" if episode.seats is not None else ""
    return (
        "<p><code>events.parquet</code> (the event log with names; its metadata hold window, policy and weights) and the tables "
        "<code>jobs</code>, <code>grid</code>, <code>pools</code>, <code>curves</code>, <code>loads.parquet</code> are all that the "
        "totals depend on: <code>envs.replay.episode.tell_again(folder)</code> makes them anew, without the simulator. Derived, for "
        "your own queries: <code>totals.json</code>, <code>outcomes.parquet</code> (each job's times, kWh, USD, kg), "
        f"<code>misses.parquet</code>, <code>power.parquet</code>, <code>stays.parquet</code> and <code>segments.parquet</code>{seats}. "
        "Places are indices, times seconds from the window's start.</p>"
    )
