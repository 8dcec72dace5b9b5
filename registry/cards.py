"""The model card and the short description that a reviewer reads first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from registry.manifest import Manifest
from registry.plain import flatten

_PURPOSE = {
    "workload-forecaster": "Forecasts the load of a GPU cluster (GPUs in demand per pool, requests per second per service), nine "
    "quantiles a step, so that the scheduler can keep just enough capacity awake.",
    "power-forecaster": "Forecasts electrical power (node, pool, site), nine quantiles a step, so that budgets can be kept.",
    "scheduling-policy": "Decides for each waiting job: hold it, or run it in which pool at which power level.",
}
_LIMITS = {
    "forecaster": [
        "It continues the series that it was fitted on; a series that it never saw gets no forecast.",
        "The quantiles hold for conditions like those of the training span; after new hardware or tenants, retrain.",
        "It is no safety device: power limits are enforced by caps on the devices, not by forecasts.",
    ],
    "policy": [
        "It chooses among placements that the mask allows; hard limits (max_watts, capacity, GPU model) are enforced outside it.",
        "Its savings were measured in simulation on the data named below; realised savings depend on how jobs' estimates hold.",
        "It was made for the pools and power levels of its layout; after a change of the cluster, judge it again.",
    ],
}


def limits(kind: str) -> list[str]:
    """What a model of this kind is not for, one sentence each."""
    return list(_LIMITS[kind])


def card_markdown(manifest: Manifest, plots: Sequence[str] = ()) -> str:
    """The whole card; ``plots`` are paths relative to it."""
    parts = [
        f"# {manifest.registered_name}: {manifest.name}",
        _PURPOSE.get(manifest.registered_name, ""),
        "## Verdicts",
        verdict_table(manifest),
        "## Results",
        _table(("metric", "value"), [(key, f"{value:.5g}") for key, value in sorted(manifest.metrics.items())]),
    ]
    for plot in plots:
        title = plot.rsplit("/", 1)[-1].removesuffix(".png").replace("_", " ")
        parts.append(f"![{title}]({plot})")
    parts += [
        "## Training data",
        _table(("fact", "value"), [(key, str(value)) for key, value in manifest.data.items()]),
        "## Limits",
        "\n".join(f"- {line}" for line in _LIMITS[manifest.kind]),
        "## How it was made",
        _table(("fact", "value"), _origin(manifest)),
        "## Configuration",
        _table(("key", "value"), [(key, _cell(value)) for key, value in sorted(flatten(manifest.config).items())]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_markdown(manifest: Manifest, limit: int = 4900) -> str:
    """The description of a version in the MLflow UI: the verdict, how it stands against the champion, all gates, metrics, data."""
    metrics = ", ".join(f"{key} {value:.4g}" for key, value in sorted(manifest.metrics.items())[:8])
    text = "\n\n".join(
        [
            verdict_line(manifest),
            verdict_table(manifest),
            f"Results: {metrics or 'none recorded'}.",
            f"Data: {manifest.data.get('start')} to {manifest.data.get('end')}, {manifest.data.get('rows')} rows, "
            f"sha256 {str(manifest.data.get('sha256'))[:12]}.",
            f"Made {manifest.created} at commit {str(manifest.git.get('commit'))[:12]}; the whole card is `card.md` in the package.",
        ]
    )
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def verdict_line(manifest: Manifest) -> str:
    """The outcome in one paragraph: which gates refused and why, and how it stands against the champion."""
    refused = [gate for gate in manifest.gates if gate["passed"] is not True]
    outcome = "passed its gates" if manifest.gates_passed else "was refused by its gates"
    line = f"**{manifest.name} {outcome}.**"
    if refused:
        line += " Refused: " + "; ".join(f"{gate['gate']} ({gate['reason']})" for gate in refused[:2])
        line += f"; and {len(refused) - 2} more." if len(refused) > 2 else "."
    against = next((gate for gate in manifest.gates if gate["gate"] == "beats_champion" and gate not in refused), None)
    return line + (f" Against the champion: {against['reason']}." if against else "")


def verdict_table(manifest: Manifest) -> str:
    """Gates as a markdown table."""
    rows = [
        (str(gate["gate"]), "passed" if gate["passed"] is True else "**refused**", str(gate["reason"]), str(gate["threshold"]))
        for gate in manifest.gates
    ]
    return _table(("gate", "verdict", "evidence", "needed"), rows)


def _origin(manifest: Manifest) -> list[tuple[str, str]]:
    dirty = " (with uncommitted changes)" if manifest.git.get("dirty") else ""
    return [
        ("created", manifest.created),
        ("commit", f"{manifest.git.get('commit')}{dirty}"),
        ("python", str(manifest.environment.get("python"))),
        ("weights", ", ".join(sorted(name for name in manifest.files if name.startswith("weights/"))) or "none"),
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return "None recorded."
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return text if len(text) <= 300 else text[:296] + " ..."
