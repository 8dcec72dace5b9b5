"""Ways to make quantiles of several levels agree, side by side: those of hierarchicalforecast and our own (``models.hierarchy``)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
from hierarchicalforecast.methods import BottomUp, MinTrace

from models.base import QUANTILE_COLUMNS, monotone
from models.distribution import MIDDLE, mean_of, values_at
from models.hierarchy import Hierarchy, Reconciler

Q = list(QUANTILE_COLUMNS)
LEVELS = [20, 40, 60, 80]
SAMPLES = 200


class Case:
    """Forecasts of one part on a full grid: ``quantiles [O, H, N, Q]`` and ``y [O, H, N]`` in the order of the hierarchy."""

    def __init__(self, frame: pd.DataFrame, hierarchy: Hierarchy) -> None:
        origins = np.sort(frame["origin"].unique())
        column = {uid: k for k, uid in enumerate(hierarchy.ids)}
        self.frame, self.hierarchy = frame, hierarchy
        self.place = (
            np.searchsorted(origins, frame["origin"].to_numpy()),
            frame["step"].to_numpy() - 1,
            frame["unique_id"].map(column).to_numpy(),
        )
        shape = (len(origins), int(frame["step"].max()), len(column))
        self.quantiles = np.full((*shape, len(Q)), np.nan)
        self.quantiles[self.place] = frame[Q].to_numpy()
        self.y = np.full(shape, np.nan)
        self.y[self.place] = frame["y"].to_numpy()

    def with_quantiles(self, quantiles: np.ndarray) -> pd.DataFrame:
        """The frame with other quantiles."""
        return self.frame.assign(**dict(zip(Q, monotone(quantiles[self.place]).T, strict=True)))


def _errors(past: Case) -> np.ndarray:
    """Errors of the means ``[N, O x H]``."""
    return (past.y - mean_of(past.quantiles)).reshape(-1, past.y.shape[-1]).T


def _each_quantile(method: str) -> Callable[[Case, Case], np.ndarray]:
    """Every quantile projected by itself, as if all series were always at the same quantile."""

    def reconciled(past: Case, case: Case) -> np.ndarray:
        errors = _errors(past)
        model = MinTrace(method)
        model.fit(S=case.hierarchy.summing, y_hat=np.zeros((len(errors), 1)), y_insample=errors, y_hat_insample=np.zeros_like(errors))
        return (case.hierarchy.summing @ model.P) @ case.quantiles

    return reconciled


def _bottom_up_comonotone(past: Case, case: Case) -> np.ndarray:
    first = case.hierarchy.n_parents
    return case.hierarchy.summing @ case.quantiles[:, :, first:]


def _bottom_up_copula(past: Case, case: Case) -> np.ndarray:
    """Leaves drawn together by the ranks of past errors; every parent is the sum of its leaves' draws."""
    hierarchy, first = case.hierarchy, case.hierarchy.n_parents
    scores = Reconciler.fit(past.frame, hierarchy.parents).scores
    together = np.stack([scores[uid] for uid in hierarchy.ids[first:]])  # [B, D]
    out = np.empty_like(case.quantiles)
    for k, table in enumerate(case.quantiles):
        draws = np.einsum("nb,hbd->hnd", hierarchy.summing, values_at(table[:, first:], together))
        out[k] = np.moveaxis(np.quantile(draws, np.arange(1, 10) / 10, axis=-1), 0, -1)
    return out


def _library_intervals(method: str) -> Callable[[Case, Case], np.ndarray]:
    """Means by MinTrace (``normality``) or BottomUp (``permbu``) with the library's Gaussian margins around them."""

    def reconciled(past: Case, case: Case) -> np.ndarray:
        errors = _errors(past)
        sigma = np.sqrt(np.nanmean((past.y - mean_of(past.quantiles)) ** 2, axis=0)).T  # [N, H]
        out = np.empty_like(case.quantiles)
        tags = {str(k): np.array(rows) for k, rows in enumerate(_by_depth(case.hierarchy))}
        for k, table in enumerate(case.quantiles):
            model = MinTrace("mint_shrink") if method == "normality" else BottomUp()
            means = mean_of(table).T  # [N, H]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = model.fit_predict(
                    S=case.hierarchy.summing,
                    y_hat=means,
                    y_insample=errors,
                    y_hat_insample=np.zeros_like(errors),
                    sigmah=sigma,
                    level=LEVELS,
                    intervals_method=method,
                    num_samples=SAMPLES,
                    seed=0,
                    tags=tags,
                )
            bands = found["quantiles"]  # [N, H, 8] at 10 .. 40, 60 .. 90 %
            out[k] = np.concatenate([bands[..., :MIDDLE], found["mean"][..., None], bands[..., MIDDLE:]], axis=-1).transpose(1, 0, 2)
        return out

    return reconciled


def _by_depth(hierarchy: Hierarchy) -> list[list[int]]:
    depths: dict[int, list[int]] = {}
    for row, uid in enumerate(hierarchy.ids):
        depth, at = 0, uid
        while at in hierarchy.parents:
            depth, at = depth + 1, hierarchy.parents[at]
        depths.setdefault(depth, []).append(row)
    return [depths[depth] for depth in sorted(depths)]


WAYS: dict[str, Callable[[Case, Case], np.ndarray]] = {
    "none": lambda past, case: case.quantiles,
    "each q, wls_struct": _each_quantile("wls_struct"),
    "each q, wls_var": _each_quantile("wls_var"),
    "each q, mint_shrink": _each_quantile("mint_shrink"),
    "bottom up, each q": _bottom_up_comonotone,
    "bottom up, copula": _bottom_up_copula,
    "normality, mint_shrink": _library_intervals("normality"),
    "permbu": _library_intervals("permbu"),
}
