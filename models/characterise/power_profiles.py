"""What classes draw over their time: quantiles of one GPU's watts and joules by relative job time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.job_profiles import JobProfile

PARTS = 10
QUANTILES = (0.1, 0.5, 0.9)
LEAST_READINGS, LEAST_JOBS = 3, 5
COLUMNS = (
    "workload_class",
    "part",
    "jobs",
    *(f"watts_q{int(100 * q)}" for q in QUANTILES),
    *(f"joules_q{int(100 * q)}" for q in QUANTILES),
)


def power_profiles(profiles: Sequence[JobProfile], classes: Sequence[str]) -> pd.DataFrame:
    """Rows `COLUMNS`, a class and tenth of job time each; ``joules`` are those drawn by one GPU from the start to the end of the part.

    Args:
        classes: class of each profile; others than the five are left out, as are jobs with fewer than ``LEAST_READINGS`` readings of watts
            and classes with fewer than ``LEAST_JOBS`` jobs.
    """
    rows = []
    for kind in WORKLOAD_CLASSES:
        own = [_parts(p) for p, k in zip(profiles, classes, strict=True) if k == kind and np.isfinite(p.power_w).sum() >= LEAST_READINGS]
        if len(own) < LEAST_JOBS:
            continue
        watts, joules = (np.array(part) for part in zip(*own, strict=True))  # [jobs, PARTS]
        for part in range(PARTS):
            levels = [*np.quantile(watts[:, part], QUANTILES), *np.quantile(joules[:, part], QUANTILES)]
            rows.append(dict(zip(COLUMNS, [kind, part, len(own), *map(float, levels)], strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _parts(profile: JobProfile) -> tuple[np.ndarray, np.ndarray]:
    """Mean watts of each tenth of the time, and joules up to its end; a reading stands for the time since the one before. ``[PARTS]``."""
    known = np.isfinite(profile.power_w)
    ends, watts = profile.seconds[known], profile.power_w[known]
    length_s = max(profile.elapsed_s, float(ends[-1]))
    energy = np.concatenate([[0.0], np.cumsum(np.diff(np.concatenate([[0.0], ends])) * watts)])
    # After the last reading it is taken to go on.
    times, energy = np.concatenate([[0.0], ends, [length_s + 1e-6]]), np.append(energy, energy[-1] + (length_s - ends[-1]) * watts[-1])
    edges = np.linspace(0.0, length_s, PARTS + 1)
    drawn = np.interp(edges, times, energy)
    return np.diff(drawn) / (length_s / PARTS), drawn[1:]
