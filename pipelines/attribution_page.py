"""The report of an attribution: one HTML page with its pictures inside, and the same as JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from telemetry.attribution import Attribution
from telemetry.reconciliation import Reconciliation

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#222;margin:2rem auto;max-width:75rem;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;font-size:13px;font-variant-numeric:tabular-nums}
td,th{border:1px solid #ddd;padding:.25rem .6rem;text-align:right}th{background:#fafafa}
td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
img{max-width:100%}.note{color:#6b6b6b}.cards{display:flex;flex-wrap:wrap;gap:10px;margin:1rem 0}
.card{border:1px solid #e3e3e3;border-radius:8px;padding:8px 14px}
.card b{display:block;font-size:20px}.card span{color:#6b6b6b;font-size:12px}
"""
TITLES = {
    "kind": "Jobs and remainders", "site": "Sites", "team": "Teams", "project": "Projects", "workload_class": "Workload classes",
    "node": "Nodes",
}  # fmt: skip
MEANING = {
    "idle": "what nobody held: GPUs without a job, and their part of the node's idle watts",
    "unattributed": "GPUs that were busy although no label and no single job of the job table says for whom",
    "overhead": "watts of nodes above idle, beside their GPUs, while nobody held any of those",
}
MOST_ROWS = 40


def report_json(
    found: Attribution, sums: pd.DataFrame, checked: Reconciliation, settings: Mapping[str, Any], rows_priced: float
) -> dict[str, Any]:
    """All numbers of the page as plain types."""
    check = found.devices.checks
    return {
        "settings": dict(settings),
        "start": found.grid.starts[0].isoformat(),
        "end": found.grid.ends[-1].isoformat(),
        "intervals": len(found.grid),
        "nodes": len(found.nodes),
        "kwh": float(found.node_j.sum() / 3.6e6),
        "known_share_of_node_time": found.known_share,
        "priced_share_of_energy": rows_priced,
        "totals": [{key: _plain(value) for key, value in row.items()} for row in sums.to_dict("records")],
        "labels": {name: round(value, 6) for name, value in found.hours.items()},
        "counts": {name: int(count) for name, count in sorted(found.counts.items())},
        "cross_checks": [{key: _plain(value) for key, value in row.items()} for row in check.to_dict("records")],
        "reconciliation": checked.to_dict(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value


def report_html(
    report: Mapping[str, Any], sums: pd.DataFrame, jobs: pd.DataFrame, checked: Reconciliation, images: Mapping[str, bytes]
) -> str:
    """The page; ``images`` are PNG by title."""
    kind = sums[sums["by"] == "kind"].set_index("name")
    whole = kind[["kwh", "cost_usd", "carbon_kg"]].sum(min_count=1)
    cards = [("kWh", _number(whole["kwh"])), ("USD", _number(whole["cost_usd"])), ("kg CO2e", _number(whole["carbon_kg"]))]
    cards += [(name, f"{_number(kind['share_percent'].get(name, 0.0))} %") for name in ("job", "idle", "unattributed", "overhead")]
    cards += [("of the nodes' time is known", f"{100 * report['known_share_of_node_time']:.2f} %")]
    cards += [("of the energy has a price", f"{100 * report['priced_share_of_energy']:.1f} %")]
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Energy attribution</title><style>{STYLE}</style></head><body>",
        f"<h1>Energy attribution</h1><p class='note'>{report['start']} to {report['end']}, {report['nodes']:,} nodes, "
        f"{report['intervals']:,} intervals. IT energy as measured at the nodes, without PUE.</p>",
        "<div class='cards'>" + "".join(f"<div class='card'><b>{v}</b><span>{html.escape(n)}</span></div>" for n, v in cards) + "</div>",
        "<ul>" + "".join(f"<li><b>{name}</b>: {html.escape(text)}</li>" for name, text in MEANING.items()) + "</ul>",
    ]
    for title, image in images.items():
        parts.append(f"<h2>{html.escape(title)}</h2><img alt='{html.escape(title)}' src='data:image/png;base64,{_base64(image)}'>")
    for by, title in TITLES.items():
        parts += [f"<h2>{title}</h2>", _table(sums[sums["by"] == by].drop(columns="by"))]
    parts += ["<h2>Largest jobs</h2>", _table(jobs)]
    parts += [
        "<h2>Labels and repairs</h2>",
        _pairs({f"GPU hours {name}": value for name, value in report["labels"].items()}),
        _pairs(report["counts"]),
    ]
    parts += ["<h2>How far the sources disagree</h2>", checked.to_html()]
    return "\n".join([*parts, "</body></html>\n"])


def _base64(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:,.2f}"


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th scope='col'>{html.escape(str(name).replace('_', ' '))}</th>" for name in frame)
    body = []
    for row in frame.head(MOST_ROWS).itertuples(index=False):
        cells = (_number(v) if isinstance(v, float) else html.escape(str(v)) for v in row)
        body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    more = f"<p class='note'>{len(frame) - MOST_ROWS:,} more in the tables.</p>" if len(frame) > MOST_ROWS else ""
    return f"<table><tr>{head}</tr>{''.join(body)}</table>{more}"


def _pairs(values: Mapping[str, float]) -> str:
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:,.4g}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def to_text(report: Mapping[str, Any]) -> str:
    """JSON of the report."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"
