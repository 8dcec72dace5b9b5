"""``python -m pipelines.attribute``: the energy of the lake's nodes tied to pods, jobs, teams, projects and workload classes.

Rules, precedence and formulae: docs/attribution.md.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from pipelines.attribution_page import report_html, report_json, to_text
from pipelines.attribution_plots import area_figure, residual_figure
from pipelines.cli import build, hydra_command
from pipelines.ingest import LakeConfig
from pipelines.make_sample import write_files
from telemetry.attribution import Attribution, AttributionRules, attribute
from telemetry.attribution_totals import BY, job_totals, totals, with_costs
from telemetry.energy import POWER, RATE, EnergyRules, Grid, interval_energy
from telemetry.errors import InputError
from telemetry.labels import UTILIZATION
from telemetry.lake import Lake
from telemetry.reconciliation import TOLERANCE, Reconciliation, reconcile

SAMPLE_COLUMNS = ("time", "metric", "value", "site", "pool", "node", "device", "pod_uid", "team", "project", "source")
PRINTED = ("kind", "team", "project", "workload_class")
MOST_PRINTED = 12
KEYS = ("lake", "start", "end", "freq", "out", "energy", "attribution", "reconciliation")


@dataclass(frozen=True)
class ReconciliationConfig:
    """Config ``reconciliation``: share of a reading that readings of the same watts may differ by."""

    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"{self.tolerance}", where="reconciliation.tolerance", allowed="more than 0, less than 1")


@dataclass(frozen=True)
class AttributeConfig:
    """The command's configuration."""

    lake: LakeConfig
    freq: str
    out: str
    start: str | None = None
    end: str | None = None
    energy: EnergyRules = field(default_factory=EnergyRules)
    attribution: AttributionRules = field(default_factory=AttributionRules)
    reconciliation: ReconciliationConfig = field(default_factory=ReconciliationConfig)


@dataclass(frozen=True)
class Outcome:
    """What the command found: the rows with costs, the totals, and the comparison of sources."""

    found: Attribution
    rows: pd.DataFrame
    sums: pd.DataFrame
    checked: Reconciliation


def window(lake: Lake, start: str | None, end: str | None, freq: str) -> Grid:
    """The intervals asked for; without a start or an end from the first to the last power sample, on whole intervals.

    Raises:
        InputError: no power in the lake, or a time that is none.
    """
    span = lake.query(f"SELECT min(time) AS first, max(time) AS last FROM samples WHERE metric IN ('{POWER}', '{RATE}')").iloc[0]
    if pd.isna(span["first"]):
        raise InputError("no power samples", where=str(lake.root), remedy="python -m pipelines.ingest")
    first, last = _time(start, "start"), _time(end, "end")
    try:
        if first is None:
            first = (_utc(span["first"]) - pd.Timedelta(1, unit="ns")).floor(freq)
        if last is None:
            last = _utc(span["last"]).ceil(freq)
    except ValueError as error:
        raise InputError(f"{freq!r}", where="freq", allowed="a length of time: 30s, 10min, 1h") from error
    return Grid.of(first.as_unit("ns"), last.as_unit("ns"), freq)


def _utc(time: pd.Timestamp) -> pd.Timestamp:
    return time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")


def _time(text: Any, where: str) -> pd.Timestamp | None:
    if text is None:
        return None
    try:
        time = pd.Timestamp(str(text))
    except ValueError as error:
        raise InputError(f"{text!r} is no time", where=where, allowed="ISO 8601, as in 2026-01-05T00:00") from error
    if pd.isna(time):
        raise InputError(f"{text!r} is no time", where=where, allowed="ISO 8601, as in 2026-01-05T00:00")
    return _utc(time)


def run(config: AttributeConfig) -> Outcome:
    """Read the lake, attribute, compare the sources.

    Raises:
        InputError: nothing to attribute, or a wrong time or length.
    """
    lake = Lake(config.lake.root)
    grid = window(lake, config.start, config.end, config.freq)
    margin = pd.Timedelta(seconds=max(config.energy.max_gap_s, config.energy.max_counter_gap_s))
    samples = lake.table("samples", grid.starts[0] - margin, grid.ends[-1] + margin, SAMPLE_COLUMNS)
    samples = samples[samples["metric"].isin([POWER, RATE, UTILIZATION])]
    jobs = lake.table("jobs", end=grid.ends[-1])
    prices = lake.table("grid", grid.starts[0] - pd.Timedelta(days=1), grid.ends[-1] + pd.Timedelta(days=1))
    found = attribute(samples, jobs, grid, config.energy, config.attribution)
    rows = with_costs(found.rows, prices, grid)
    fine, _ = grid.refined(600.0)
    checked = reconcile(interval_energy(samples, fine, config.energy), config.energy.sources, config.reconciliation.tolerance)
    return Outcome(found, rows, totals(rows, BY), checked)


def files_of(outcome: Outcome, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> content."""
    found, rows = outcome.found, outcome.rows
    table = io.BytesIO()
    rows.to_parquet(table, index=False, compression="zstd")
    jobs = job_totals(rows)
    images = {"Who drew the watts": _png(area_figure(rows, found.grid))}
    residual = residual_figure(outcome.checked, found.grid.starts[0])
    if residual is not None:
        images["What the nodes draw beside their parts"] = _png(residual)
    whole = float(rows["energy_j"].sum())
    priced = float(rows.loc[rows["cost_usd"].notna(), "energy_j"].sum()) / whole if whole > 0 else 0.0
    report = report_json(found, outcome.sums, outcome.checked, settings, priced)
    names = ("energy.png", "residuals.png")
    return {
        "attribution.parquet": table.getvalue(),
        "totals.csv": outcome.sums.to_csv(index=False).encode(),
        "jobs.csv": jobs.to_csv(index=False).encode(),
        "report.json": to_text(report).encode(),
        "report.html": report_html(report, outcome.sums, jobs, outcome.checked, images).encode(),
        **dict(zip(names, images.values(), strict=False)),
    }


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def summary(outcome: Outcome) -> str:
    """Totals with the remainders, repairs, and the doubtful comparisons, as text."""
    lines = []
    for by in PRINTED:
        lines.append(f"{by.replace('_', ' '):<22}{'kWh':>12}{'%':>8}{'USD':>12}{'kg CO2e':>12}")
        table = outcome.sums[outcome.sums["by"] == by]
        for row in table.head(MOST_PRINTED).itertuples():
            money = "".join(f"{'-' if np.isnan(v) else format(v, ',.2f'):>12}" for v in (row.cost_usd, row.carbon_kg))
            lines.append(f"  {row.name:<20}{row.kwh:>12,.2f}{row.share_percent:>8.2f}{money}")
        if len(table) > MOST_PRINTED:
            lines.append(f"  {len(table) - MOST_PRINTED} more in totals.csv")
    hours = ", ".join(f"{name} {value:,.1f}" for name, value in outcome.found.hours.items())
    lines.append(f"GPU hours: {hours}")
    lines += [f"note: {name}: {count:,}" for name, count in sorted(outcome.found.counts.items()) if count]
    for layer, told in outcome.checked.by_layer().items():
        lines.append(
            f"{layer}: {told['comparisons']:,} compared, {told['doubtful']:,} to doubt; {told['parent_kwh']:,.2f} kWh against "
            f"{told['children_kwh']:,.2f} kWh ({told['residual_percent']:+.2f} %)"
        )
    for one in outcome.checked.doubtful()[:10]:
        lines.append(f"doubt: {one.layer} {one.place}: {one.verdict}: {'; '.join(f.evidence for f in one.findings)}")
    return "\n".join(lines)


@hydra_command("attribute")
def main(cfg: DictConfig) -> int:
    """Attribute, write, print."""
    raw: Any = OmegaConf.to_container(cfg, resolve=True)
    config = build(AttributeConfig, {key: raw[key] for key in KEYS}, "attribute")
    outcome = run(config)
    out = Path(config.out)
    write_files(files_of(outcome, asdict(config)), out)
    print(summary(outcome))
    grid, found = outcome.found.grid, outcome.found
    print(
        f"{found.node_j.sum() / 3.6e6:,.2f} kWh of {len(found.nodes):,} nodes from {grid.starts[0]:%Y-%m-%dT%H:%M} to "
        f"{grid.ends[-1]:%Y-%m-%dT%H:%M} UTC, {100 * found.known_share:.2f} % of their time known; report: {out / 'report.html'}"
    )
    return 0


if __name__ == "__main__":
    main()
