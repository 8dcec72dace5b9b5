"""What came, against what was issued: one row of numbers per *block*, a stretch of time of one horizon.

Losses of forecasts issued every ten minutes overlap by all but one step, so two neighbours are nearly the same number and any detector that
takes them for independent alarms all day. Blocks are disjoint: of all issues that forecast a value, the first one of its block counts, and
each value counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS
from models.metrics import MEDIAN, quantile_loss

SIGNALS = ("loss", "loss_ratio", "miss", "bias", "level", "psi")
FLOOR = 0.1  # of a scale: what a block's loss and the naive's are raised by, so that a flat block has a ratio near 1 and no logarithm of 0
LEAST_WIDTH = 0.1  # of a scale: a narrower interval is taken to be as wide, when errors are measured in its widths
BINS = 10
MOST_PSI_STEPS = 144


@dataclass(frozen=True)
class Training:
    """What a series was like before its champion was issued for the first time.

    Attributes:
        scale: mean absolute change over one horizon, in the unit of y; 1 where it never changed.
        mean, deviation: of its values.
        edges: inner tenths of its values, each once.
        shares: of its values in the cells between them.
    """

    scale: float
    mean: float
    deviation: float
    edges: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray, horizon: int) -> Training:
        """From values ``[n]`` in time order; NaN are left out."""
        change = np.abs(values[horizon:] - values[:-horizon]) if len(values) > horizon else np.empty(0)
        change, known = change[np.isfinite(change)], values[np.isfinite(values)]
        scale = float(change.mean()) if len(change) else 0.0
        deviation = float(known.std()) if len(known) else 0.0
        mean = float(known.mean()) if len(known) else 0.0
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.zeros(1)
        shares = cell_shares(known, edges)
        return cls(scale if scale > 0 else max(deviation, 1.0), mean, deviation, tuple(edges.tolist()), tuple(shares.tolist()))


def cell_shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of ``values [n]`` in each of the ``len(edges) + 1`` cells, half a count added; a value at an edge is in the lower one."""
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
    return counts / counts.sum()


def psi(values: np.ndarray, edges: np.ndarray, shares: np.ndarray) -> float:
    """Population stability index of ``values [n]`` against ``shares`` of the cells between ``edges``: sum of (p - e) ln(p / e).

    Source: N. Siddiqi, Credit Risk Scorecards (2006): below 0.1 alike, above 0.25 another population; for *independent* values.
    """
    now = cell_shares(values, edges)
    return float(((now - shares) * np.log(now / shares)).sum())


def chosen_rows(forecasts: pd.DataFrame, step_ns: int, horizon: int) -> pd.DataFrame:
    """Rows that count, with their ``block`` (number of horizons since the epoch): by series and block of issue the first issue; a value
    that two of these forecast counts for the later one."""
    issued = forecasts["issued_at"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    rows = forecasts.assign(_issued=issued, block=issued // (step_ns * horizon))
    first = rows.groupby(["unique_id", "block"], sort=False)["_issued"].transform("min")
    rows = rows[rows["_issued"] == first].sort_values(["unique_id", "ds", "_issued"], kind="stable")
    return rows.drop_duplicates(["unique_id", "ds"], keep="last").drop(columns="_issued")


def score_blocks(rows: pd.DataFrame, observed: pd.DataFrame, training: dict[str, Training], step_ns: int) -> pd.DataFrame:
    """One row of signals per block, over all series.

    Args:
        rows: of :func:`chosen_rows`: ``unique_id, issued_at, ds, block, q10 ... q90``, times UTC without zone.
        observed: ``unique_id, ds, y``.
        training: by series; rows of other series are left out.
        step_ns: of the grid.

    Returns:
        Index ``block``, columns ``rows`` (values that came) and ``SIGNALS``:

        - ``loss``: ln of the mean quantile loss in scales;
        - ``loss_ratio``: ln of that over the mean absolute loss of persistence on the same rows, which hard hours raise as well;
        - ``miss``: share outside [q10, q90];
        - ``bias``: mean of (y - q50) in interval widths, each within +-3;
        - ``level``: mean of (y - training mean) in training deviations, each within +-10;
        - ``psi``: mean over series of the PSI of the last day of values against training.
    """
    rows = rows[rows["unique_id"].isin(list(training))]
    index = pd.MultiIndex.from_frame(observed[["unique_id", "ds"]])
    known = pd.Series(observed["y"].to_numpy(dtype=np.float64), index=index)
    known = known[~known.index.duplicated(keep="last")]
    y = known.reindex(pd.MultiIndex.from_frame(rows[["unique_id", "ds"]])).to_numpy()
    last = known.reindex(pd.MultiIndex.from_frame(rows[["unique_id", "issued_at"]])).to_numpy()
    usable = np.isfinite(y) & np.isfinite(last)
    rows, y, last = rows[usable], y[usable], last[usable]
    if not len(rows):
        return pd.DataFrame(columns=["rows", *SIGNALS], index=pd.Index([], name="block", dtype=np.int64), dtype=np.float64)
    by_series = {uid: (one.scale, one.mean, one.deviation) for uid, one in training.items()}
    scale, mean, deviation = np.array([by_series[uid] for uid in rows["unique_id"]]).T
    quantiles = rows[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64)
    width = np.maximum(quantiles[:, -1] - quantiles[:, 0], LEAST_WIDTH * scale)
    parts = pd.DataFrame(
        {
            "block": rows["block"].to_numpy(),
            "rows": 1.0,
            "loss": quantile_loss(y, quantiles) / scale,
            "naive": np.abs(y - last) / scale,
            "miss": ((y < quantiles[:, 0]) | (y > quantiles[:, -1])).astype(np.float64),
            "bias": np.clip((y - quantiles[:, MEDIAN]) / width, -3.0, 3.0),
            "level": np.clip((y - mean) / np.where(deviation > 0, deviation, scale), -10.0, 10.0),
        }
    )
    groups = parts.groupby("block")
    out = groups.mean()
    out["rows"] = groups.size().astype(np.float64)
    out["loss_ratio"] = np.log((out["loss"] + FLOOR) / (out["naive"] + FLOOR))
    out["loss"] = np.log(out["loss"] + FLOOR)
    ends = rows.groupby("block")["ds"].max()
    out["psi"] = _psi_by_block(known, training, ends, step_ns)
    return out[["rows", *SIGNALS]]


def _psi_by_block(known: pd.Series, training: dict[str, Training], ends: pd.Series, step_ns: int) -> pd.Series:
    """Mean PSI over series of the day that ends with each block."""
    total, count = np.zeros(len(ends)), np.zeros(len(ends))
    at_ns = ends.to_numpy().astype("datetime64[ns]").astype(np.int64)
    span_ns = MOST_PSI_STEPS * step_ns
    for uid, own in known.groupby(level=0, sort=False):
        one = training.get(str(uid))
        if one is None or one.deviation == 0:
            continue
        times = own.index.get_level_values(1).to_numpy().astype("datetime64[ns]").astype(np.int64)
        order = np.argsort(times)
        times, values = times[order], own.to_numpy()[order]
        edges, shares = np.array(one.edges), np.array(one.shares)
        for k, end in enumerate(at_ns):
            low, high = np.searchsorted(times, (end - span_ns, end), side="right")
            if 2 * (high - low) >= MOST_PSI_STEPS:
                total[k] += psi(values[low:high], edges, shares)
                count[k] += 1
    return pd.Series(np.divide(total, count, out=np.zeros_like(total), where=count > 0), index=ends.index)
