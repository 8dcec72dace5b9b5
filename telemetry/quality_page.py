"""The quality report as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from telemetry.quality_charts import gap_lines, heat_map

MAX_DEVICES = 200
STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6b7d;--line:#dde3ea;--back:#f6f8fa;--card:#fff;--stripe:#eef2f6;
--open:#c8324f;--filled:#2f8f6b}
@media (prefers-color-scheme:dark){:root{--ink:#e5eaf0;--soft:#9fb0c3;--line:#303a47;--back:#12171e;--card:#1a212b;--stripe:#242d39}}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);background:var(--back);margin:0}
main{max-width:76rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}h3{font-size:1rem;margin:1.2rem 0 .4rem;color:var(--soft)}
.lead,.legend,.note{color:var(--soft)}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem 1.1rem;min-width:8.5rem}
.card b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}.card span{color:var(--soft);font-size:.85rem}
.panel{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.2rem 1rem 1rem;margin:.8rem 0;overflow-x:auto}
.panel summary{cursor:pointer;padding:.7rem 0 .3rem;font-weight:600}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child,.text td,.text th{text-align:left}.text td{white-space:normal}
thead th{position:sticky;top:0;white-space:normal;background:var(--card);font-weight:600;vertical-align:bottom}
thead th button{all:unset;cursor:pointer}thead th button:focus-visible{outline:2px solid var(--filled)}
th[aria-sort=ascending] button::after{content:" \\25b4"}th[aria-sort=descending] button::after{content:" \\25be"}
td.zero{color:var(--line)}
svg{width:100%;min-width:44rem;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--ink)}svg text.more{fill:var(--soft)}
.stripe{fill:var(--stripe)}.tick{stroke:var(--line)}.open{fill:var(--open)}.filled{fill:var(--filled)}
.legend span{margin-left:.8rem;white-space:nowrap}.legend i{display:inline-block;width:.9rem;
height:.9rem;border-radius:3px;margin-right:.3rem;vertical-align:-2px}
i.open{background:var(--open)}i.filled{background:var(--filled)}
"""
# Sorting alone: a click on a head sorts its table by that column, numbers by size.
SCRIPT = """
document.querySelectorAll('table.sortable').forEach(function (table) {
  table.querySelectorAll('thead th').forEach(function (head, column) {
    head.querySelector('button').addEventListener('click', function () {
      var down = head.getAttribute('aria-sort') !== 'descending', body = table.tBodies[0];
      table.querySelectorAll('thead th').forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      Array.from(body.rows).sort(function (a, b) {
        var x = a.cells[column].dataset.value, y = b.cells[column].dataset.value;
        var order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""


def page(document: Mapping[str, Any], flaws: Mapping[str, str]) -> str:
    """The page of a report.

    Args:
        document: ``QualityReport.to_dict()``.
        flaws: flaw -> what it means, in the order of the columns.
    """
    sources = document["sources"]
    shown = [flaw for flaw in flaws if flaw in document["total"]]
    heads = ["source", "rows", "flaws", *shown]
    rows = [
        [name, sum(told["rows"].values()), sum(told["total"].values()), *(told["total"].get(flaw, 0) for flaw in shown)]
        for name, told in sources.items()
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>Telemetry quality</title><style>{STYLE}</style></head><body><main>",
        "<h1>Telemetry quality</h1>",
        "<p class='lead'>What was wrong with the exports of the lake, and what was done about it. Times are UTC.</p>",
        _cards(sources, document["total"]),
        "<h2>Sources</h2><div class='panel'>",
        _table(heads, rows),
        "</div>",
        *(_source(name, told, flaws) for name, told in sources.items()),
        "<h2>What each flaw means</h2><div class='panel'><table class='text'><thead><tr><th scope='col'>flaw</th><th scope='col'>count</th>"
        "<th scope='col'>meaning</th><th scope='col'>policy</th></tr></thead><tbody>",
        *(_meaning(flaw, told, document) for flaw, told in flaws.items()),
        f"</tbody></table></div></main><script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def _cards(sources: Mapping[str, Any], total: Mapping[str, int]) -> str:
    rows = sum(sum(told["rows"].values()) for told in sources.values())
    flawed = sum(len([name for name in told["devices"] if name]) for told in sources.values())
    cards = [
        (f"{len(sources):,}", "sources"),
        (f"{rows:,}", "rows kept"),
        (f"{sum(total.values()):,}", "flaws counted"),
        (f"{len(total):,}", "kinds of flaw"),
        (f"{flawed:,}", "devices or nodes with a flaw"),
    ]
    return "<div class='cards'>" + "".join(f"<div class='card'><b>{value}</b><span>{name}</span></div>" for value, name in cards) + "</div>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th scope='col'><button>{html.escape(name.replace('_', ' '))}</button></th>" for name in heads)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table class='sortable'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        shown = html.escape(value, quote=True)
        return f'<td data-value="{shown}">{shown}</td>'
    return f"<td data-value='{value}'>{value:,}</td>" if value else "<td data-value='0' class='zero'>-</td>"


def _source(name: str, told: Mapping[str, Any], flaws: Mapping[str, str]) -> str:
    """Charts, devices and notes of one source."""
    own = [flaw for flaw in flaws if flaw in told["total"]]
    parts = [f"<h2>{html.escape(name)}</h2>"]
    if not own and not told["notes"]:
        return parts[0] + "<p class='note'>Nothing to tell.</p>"
    if chart := heat_map(told["when"]):
        parts.append(f"<div class='panel'><h3>Flaws of each device over time</h3>{chart}</div>")
    if chart := gap_lines(told["gaps"]):
        many = sum(flaws.get("scrape_gap", 0) for flaws in told["devices"].values())
        which = f"the longest {len(told['gaps']):,} of {many:,}" if many > len(told["gaps"]) else f"{len(told['gaps']):,}"
        legend = "<p class='legend'><i class='open'></i>open <span><i class='filled'></i>filled</span></p>"
        parts.append(f"<div class='panel'><h3>Gaps ({which})</h3>{chart}{legend}</div>")
    if told["devices"]:
        devices = sorted(told["devices"].items(), key=lambda item: (-sum(item[1].values()), item[0]))
        rows = [[device or "(file)", sum(found.values()), *(found.get(f, 0) for f in own)] for device, found in devices[:MAX_DEVICES]]
        more = f", the {MAX_DEVICES} with most" if len(devices) > MAX_DEVICES else ""
        kind = "device" if len(devices) == 1 else "devices"
        table = _table(["device", "flaws", *own], rows)
        parts.append(f"<details class='panel'><summary>Flaws of {len(devices):,} {kind}{more}</summary>{table}</details>")
    parts += [f"<p class='note'>{html.escape(what)}: {count:,}</p>" for what, count in told["notes"].items()]
    return "\n".join(parts)


def _meaning(flaw: str, meaning: str, document: Mapping[str, Any]) -> str:
    chosen = sorted({told["policies"][flaw] for told in document["sources"].values() if flaw in told["policies"]})
    count = document["total"].get(flaw, 0)
    cells = (f"<code>{flaw}</code>", f"{count:,}" if count else "-", html.escape(meaning), ", ".join(chosen))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
