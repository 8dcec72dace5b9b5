"""What the results of the forecast benchmark say together: ratios to the better naive and to the best peer, geometric means over data
sets, and ranks over series.

All losses are those of ``models.metrics.quantile_loss`` on the same windows; the ratio of two summed losses is the ratio of the two WQL,
and of two summed scaled losses that of the two SQL. Where series have different units (NAB), the WQL is that of the largest alone.
Intervals come from a circular block bootstrap over origins (``models.metrics.bootstrap_ratio``), drawn anew and independently in each
data set for a geometric mean. Which peer is the best one is settled on the point estimates, not in each draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, studentized_range

from models.backtest import NAIVES
from models.base import QUANTILE_COLUMNS
from models.metrics import quantile_loss, sampled_ratios

LEVEL = 0.95
Losses = dict[str, dict[str, np.ndarray]]  # data set -> forecaster -> loss summed over the series of each origin, [origins]


def origin_losses(forecasts: pd.DataFrame, scales: Mapping[str, float] | None = None) -> np.ndarray:
    """Quantile loss of each origin, summed over its rows, ``[origins]``; with ``scales`` each row's loss is divided by its series' scale.

    Series without a positive scale are then left out.
    """
    loss = quantile_loss(forecasts["y"].to_numpy(), forecasts[list(QUANTILE_COLUMNS)].to_numpy())
    if scales is not None:
        scale = forecasts["unique_id"].map(dict(scales)).to_numpy(dtype=float)
        loss = np.where(scale > 0, loss / np.where(scale > 0, scale, 1.0), 0.0)
    return pd.Series(loss).groupby(forecasts["origin"].to_numpy()).sum().to_numpy()


def same_windows(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    """Whether two forecast frames are about the same rows, issued at the same times."""
    columns = ["unique_id", "issued_at", "ds"]
    first, second = (frame[columns].sort_values(columns, ignore_index=True) for frame in (left, right))
    return first.equals(second)


def geometric_mean(losses: Losses, forecaster: str, reference: Mapping[str, str], sets: Sequence[str]) -> dict[str, float] | None:
    """Geometric mean over data sets of the WQL ratio to ``reference[data set]``, with its interval; None where a part is missing."""
    if not sets or any(forecaster not in losses[data] or reference.get(data) not in losses[data] for data in sets):
        return None
    points, draws = [], []
    for number, data in enumerate(sets):
        ours, theirs = losses[data][forecaster], losses[data][reference[data]]
        points.append(ours.sum() / theirs.sum())
        draws.append(sampled_ratios(ours, theirs, seed=number))
    low, high = np.quantile(np.exp(np.log(draws).mean(axis=0)), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"ratio": float(np.exp(np.log(points).mean())), "low": float(low), "high": float(high)}


def best_of(losses: Mapping[str, np.ndarray], names: Sequence[str]) -> str | None:
    """The one of ``names`` with the least loss."""
    known = [name for name in names if name in losses]
    return min(known, key=lambda name: losses[name].sum()) if known else None


def best_single(losses: Losses, names: Sequence[str], sets: Sequence[str]) -> str | None:
    """The one of ``names`` that is there in every data set and has the least geometric mean of WQL over them."""
    whole = [name for name in names if sets and all(name in losses[data] for data in sets)]
    return min(whole, key=lambda name: sum(float(np.log(losses[data][name].sum())) for data in sets)) if whole else None


def compare(losses: Losses, peers: Sequence[str], headline: Sequence[str]) -> dict[str, Any]:
    """References and ratios of every forecaster.

    Args:
        losses: by data set and forecaster.
        peers: names of peers; of them the best one is taken.
        headline: data sets that count in the geometric means.

    Returns:
        ``better_naive`` and ``best_peer`` by data set, ``best_single_peer`` over all, ``ratios`` (data set -> forecaster ->
        ``naive``/``peer``/``single_peer`` -> ratio, low, high) and ``geometric`` (forecaster -> the same three).
    """
    sets = [data for data in losses if data in headline]
    naive = {data: name for data in losses if (name := best_of(losses[data], NAIVES))}
    peer = {data: name for data in losses if (name := best_of(losses[data], peers))}
    one = best_single(losses, peers, sets)
    single = {data: one for data in losses if one in losses[data]} if one else {}
    references = {"naive": naive, "peer": peer, "single_peer": single}
    names = list(dict.fromkeys(name for table in losses.values() for name in table))
    return {
        "better_naive": naive,
        "best_peer": peer,
        "best_single_peer": one,
        "ratios": {
            data: {
                name: {kind: geometric_mean(losses, name, reference, [data]) for kind, reference in references.items()} for name in table
            }
            for data, table in losses.items()
        },
        "geometric": {
            name: {kind: geometric_mean(losses, name, reference, sets) for kind, reference in references.items()} for name in names
        },
        "data_sets": sets,
    }


def mean_ranks(table: pd.DataFrame) -> pd.Series:
    """Mean rank of each column over the rows, 1 the least loss, ties shared; rows with a gap are left out.

    Args:
        table: loss by (data set, series) and forecaster.
    """
    whole = table.dropna()
    ranks = np.apply_along_axis(rankdata, 1, whole.to_numpy()) if len(whole) else np.full((1, whole.shape[1]), np.nan)
    return pd.Series(ranks.mean(axis=0), index=table.columns).sort_values()


def critical_difference(forecasters: int, cases: int, alpha: float = 0.05) -> float:
    """Difference of mean ranks beyond which two forecasters differ by the Nemenyi test (Demsar 2006, equation in section 3.2.2).

    q_alpha is the studentized range at infinite degrees of freedom over sqrt 2. Series of one data set are not independent cases, so the
    bars are rather too short than too long.
    """
    q = studentized_range.ppf(1 - alpha, forecasters, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(forecasters * (forecasters + 1) / (6 * cases)))


def rank_groups(ranks: pd.Series, difference: float) -> list[tuple[int, int]]:
    """First and last place of each longest run of forecasters, by rank, that do not differ; runs of one are left out."""
    values = ranks.to_numpy()
    runs = [(first, int(np.searchsorted(values, values[first] + difference, side="right")) - 1) for first in range(len(values))]
    longest = [run for k, run in enumerate(runs) if run[1] > run[0] and (k == 0 or run[1] > runs[k - 1][1])]
    return longest
