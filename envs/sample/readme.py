"""``data/sample/README.md``: how each file was made, with the figures of the run that made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envs.sample.settings import (
    DEADLINE_RUSH,
    HOLIDAYS,
    NODE_FAILURE,
    PRICE_EVENT,
    SERVICE_OUTAGE,
    WARMUP_DAYS,
    WIND_LULL,
    SampleSettings,
)

TEMPLATE_FILE = Path(__file__).with_name("readme_template.md")


def readme_text(settings: SampleSettings, version: int, planted: Mapping[str, Mapping[str, int]], jobs_by_site: Mapping[str, int]) -> str:
    """The README of a generated sample."""
    rows = [f"| `{name}` | {flaw} | {count} |" for name, counts in planted.items() for flaw, count in sorted(counts.items())]
    return TEMPLATE_FILE.read_text().format(
        version=version,
        seed=settings.seed,
        days=settings.days,
        start=settings.start,
        west=jobs_by_site["west"],
        east=jobs_by_site["east"],
        cut=planted["sacct.txt.gz"]["unparseable"],
        holiday=", ".join(HOLIDAYS),
        node=NODE_FAILURE[0],
        node_from=NODE_FAILURE[1],
        node_to=NODE_FAILURE[2],
        out_from=SERVICE_OUTAGE[0],
        out_to=SERVICE_OUTAGE[1],
        rush_from=DEADLINE_RUSH[0],
        rush_to=DEADLINE_RUSH[1],
        warmup=WARMUP_DAYS,
        price_site=PRICE_EVENT[0],
        price_from=PRICE_EVENT[1],
        price_to=PRICE_EVENT[2],
        wind_site=WIND_LULL[0],
        wind_from=WIND_LULL[1],
        wind_to=WIND_LULL[2],
        flaws="\n".join(rows),
    )
