"""The page of verdicts that a reviewer opens beside a run: one self-contained HTML file, readable without network, in light and dark."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.manifest import Manifest
from registry.plain import flatten, plain

PAGE = "verdicts.html"
# What to do about a refusal; gates that are not named here say it in their reason.
_REMEDIES = {
    "skill_over_naive": "Train on more history or other features; until then the naive serves, and loses nothing by it.",
    "beats_champion": "Keep the champion. A challenger that is only as good is no reason to change what works.",
    "coverage": "Look at coverage by step; more calibration origins (backtest.calibration_origins) or a shorter refit help.",
    "decision": "Look at the reserve's plot: the forecast decides worse than the naive at this ratio of costs.",
    "no_leakage": "Do not promote. A feature reads values that are not there yet when the forecast is issued.",
    "seed_stability": "Average over seeds (the ensemble does), train longer, or raise the limit with a reason.",
    "class_sla": "See which class of jobs pays for the gain; raise its weight in the reward.",
    "agent_over_judge": "The best judge serves instead. More weeks of work, or agent=curriculum, may get past it.",
    "latency_and_size": "Fewer members or series a package; or a slower limit, where the runtime can wait.",
    "licence": "Name the licence, replace the data or the package, or write an exception with its reason.",
    "training_data": "Retrain on newer data, or look at what changed: python -m pipelines.watch.",
    "signature": "python -m pipelines.keys list shows which keys are trusted, valid and revoked.",
    "scan": "Do not load it. Find out where the file came from.",
}
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#cf222e}
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.4rem;margin:0 0 .3rem}p{margin:.2rem 0 1rem}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);padding:.45rem .6rem;text-align:left;vertical-align:top}
.passed{color:var(--good);font-weight:600}.refused{color:var(--bad);font-weight:600}
small{opacity:.75}details{margin-top:.2rem}pre{white-space:pre-wrap;font-size:12px;margin:.3rem 0}
img{max-width:100%;background:#fff;border-radius:6px;margin:.6rem 0}
"""


def gate_page(manifest: Manifest, package: Path | None = None, plots: int = 3) -> str:
    """HTML of a sealed package's verdicts, refusals first, with its first ``plots`` pictures from the folder ``package`` inlined."""
    rows = sorted(manifest.gates, key=lambda gate: gate["passed"] is True)
    refused = sum(gate["passed"] is not True for gate in rows)
    outcome = "passed all its gates" if manifest.gates_passed else f"was refused by {refused} of {len(rows)} gates"
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{_text(manifest.name)}: verdicts</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_text(manifest.registered_name)}: {_text(manifest.name)} {outcome}</h1>",
        f"<p>Made {_text(manifest.created)}; data {_text(manifest.data.get('start'))} to {_text(manifest.data.get('end'))}.</p>",
        "<table><thead><tr><th>gate</th><th>verdict</th><th>evidence</th><th>needed</th></tr></thead><tbody>",
        *(_row(gate) for gate in rows),
        "</tbody></table>",
        *(_figures(package, plots) if package is not None else ()),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _row(gate: Mapping[str, Any]) -> str:
    passed = gate["passed"] is True
    word = "passed" if passed else "refused"
    name, evidence = str(gate["gate"]), gate.get("evidence") or {}
    todo = "" if passed or name not in _REMEDIES else f"<br><small>What to do: {_text(_REMEDIES[name])}</small>"
    numbers = json.dumps(plain(flatten(evidence)), indent=1, sort_keys=True)
    more = f"<details><summary><small>numbers</small></summary><pre>{_text(numbers)}</pre></details>" if evidence else ""
    return (
        f"<tr><td>{_text(name)}</td><td class='{word}'>{word}</td><td>{_text(gate['reason'])}{todo}{more}</td>"
        f"<td><small>{_text(gate['threshold'])}</small></td></tr>"
    )


def _figures(package: Path, most: int) -> list[str]:
    found = []
    for path in sorted((package / "plots").glob("*.png"))[:most]:
        encoded = base64.b64encode(path.read_bytes()).decode()
        title = path.stem.replace("_", " ")
        found.append(f"<h2>{_text(title)}</h2><img alt='{_text(title)}' src='data:image/png;base64,{encoded}'>")
    return found


def _text(value: Any) -> str:
    return html.escape(str(value))
