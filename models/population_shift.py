"""Whether the newest part of the data that is learned from looks like the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

BINS = 10
DAY = pd.Timedelta(days=1)


def psi(newest: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Population stability index of counts ``[..., B]`` against counts ``[..., B]``: sum of (p - q) ln(p / q) over the bins.

    Half a count is added to each bin, so that an empty one stays finite (Siddiqi 2006, Credit Risk Scorecards).
    """
    p = (newest + 0.5) / (newest.sum(-1, keepdims=True) + 0.5 * newest.shape[-1])
    q = (rest + 0.5) / (rest.sum(-1, keepdims=True) + 0.5 * rest.shape[-1])
    return ((p - q) * np.log(p / q)).sum(-1)


def block_length(span: pd.Timedelta) -> pd.Timedelta:
    """A week where there are at least four of them, else a day: load differs by weekday and hour, and a block should hold all of them."""
    return 7 * DAY if span >= 28 * DAY else DAY


def training_facts(frame: pd.DataFrame, max_psi: float) -> dict[str, Any]:
    """Span, shifts and dead series of ``unique_id, ds, y``.

    Each series is cut into blocks counted back from the end of the frame; the PSI of every block against all others is taken over deciles
    of the whole series. It has drifted when its newest block's is above ``max_psi`` and above that of every earlier block.

    Returns:
        ``span_days, block_days, blocks, series, flat`` (constant throughout), ``dead`` (constant in the newest block only, rows missing
        there count as dead), ``drifted, median_psi`` (of the newest block), ``most_drifted`` (names of up to three).
    """
    end, start = frame["ds"].max(), frame["ds"].min()
    block = block_length(end - start)
    age = ((end - frame["ds"]) // block).to_numpy()  # 0 = newest
    last = int((end - start) // block)  # the oldest block may be cut short: it joins its neighbour
    age = np.minimum(age, max(last - 1, 0))
    flat = dead = 0
    newest: dict[str, float] = {}
    drifted: dict[str, float] = {}
    for name, rows in frame.groupby("unique_id").indices.items():
        values, ages = frame["y"].to_numpy(dtype=float)[rows], age[rows]
        values, ages = values[np.isfinite(values)], ages[np.isfinite(values)]
        if len(values) == 0 or np.ptp(values) == 0:
            flat += 1
            continue
        fresh = values[ages == 0]
        if len(fresh) == 0 or np.ptp(fresh) == 0:
            dead += 1
            continue
        own = _block_psi(values, ages)
        newest[str(name)] = own[0]
        if own[0] > max_psi and own[0] > own[1:].max(initial=-np.inf):
            drifted[str(name)] = own[0]
    return {
        "span_days": (end - start) / DAY,
        "block_days": block / DAY,
        "blocks": int(age.max()) + 1,
        "series": int(frame["unique_id"].nunique()),
        "flat": flat,
        "dead": dead,
        "drifted": len(drifted),
        "median_psi": float(np.median(list(newest.values()))) if newest else 0.0,
        "most_drifted": sorted(drifted, key=lambda name: -drifted[name])[:3],
    }


def _block_psi(values: np.ndarray, ages: np.ndarray) -> np.ndarray:
    """PSI of every block that has rows against all others, newest first ``[K]``; a single block has nothing to differ from: 0."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, values, side="right")
    kept, index = np.unique(ages, return_inverse=True)
    counts = np.zeros((len(kept), len(edges) + 1))
    np.add.at(counts, (index, bins), 1)
    return psi(counts, counts.sum(0) - counts) if len(kept) > 1 else np.zeros(1)
