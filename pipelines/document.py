"""``python -m pipelines.document``: the pages of ``docs/`` that are written from the code."""

from __future__ import annotations

import os
from pathlib import Path

from envs.observation import CANDIDATE_FEATURES, GLOBAL_FEATURES, LIMIT, N_CANDIDATE_FEATURES, ObservationLayout
from pipelines.telemetry_page import telemetry_page
from pipelines.traces_page import traces_page

OBSERVATION_PAGE = Path("docs/observation.md")
TRACES_PAGE = Path("docs/traces.md")
TELEMETRY_PAGE = Path("docs/telemetry.md")


def observation_page() -> str:
    """Every value of an observation by its place, for any number of pools and levels, and one layout spelled out."""
    f, example = N_CANDIDATE_FEATURES, ObservationLayout(2, 2)
    lines = [
        "# The observation",
        "",
        "Written by `python -m pipelines.document` from `envs/observation.py`; do not edit.",
        "",
        f"One float32 row, every value within [-{LIMIT:g}, {LIMIT:g}]. With P pools and L power levels there are",
        "A = 1 + P L candidate actions: action 0 holds the job in question, action 1 + p L + l runs it in pool p at level l.",
        "A candidate that the mask excludes is all zeros.",
        "",
        f"Candidate a fills places {f} a to {f} a + {f - 1}:",
        "",
        "| place | name | meaning |",
        "|---|---|---|",
        *(f"| {f} a + {i} | `{name}` | {meaning} |" for i, (name, meaning) in enumerate(CANDIDATE_FEATURES)),
        "",
        f"The job, the queue and the hour follow from place {f} A on; the row has {f} A + {len(GLOBAL_FEATURES)} values:",
        "",
        "| place | name | meaning |",
        "|---|---|---|",
        *(f"| {f} A + {i} | `{name}` | {meaning} |" for i, (name, meaning) in enumerate(GLOBAL_FEATURES)),
        "",
        f"With 2 pools and 2 levels (A = {example.n_candidates}, {example.size} values), index by index:",
        "",
        "| index | name |",
        "|---|---|",
        *(f"| {index} | `{name}` |" for index, name, _ in example.describe()),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the pages."""
    pages = ((OBSERVATION_PAGE, observation_page()), (TRACES_PAGE, traces_page()), (TELEMETRY_PAGE, telemetry_page()))
    for path, page in pages:
        fresh = path.with_suffix(".new")
        fresh.write_text(page)
        os.replace(fresh, path)
        print(f"written: {path}")


if __name__ == "__main__":
    main()
