"""Probes for leaks: the future is shuffled, scaled or swapped for noise, and what was said before must not change.

Each raises AssertionError at the first difference. ``test_leaks.py`` runs them over every forecaster, and over forecasters that leak on
purpose, so that the probes are known to be able to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd

from models.backtest import BacktestConfig, run_backtest
from models.base import QUANTILE_COLUMNS
from models.member import PanelForecaster
from models.series import Panel, freq_step_ns, validate_series

Q = list(QUANTILE_COLUMNS)


def futures(frame: pd.DataFrame, after: pd.Timestamp) -> Iterator[pd.DataFrame]:
    """The frame with all numbers after a time shuffled, shuffled and scaled, and blown up beyond anything known, covariates too."""
    late = (frame["ds"] > after).to_numpy()
    columns = [column for column in frame.columns if column not in ("unique_id", "ds")]
    for seed, (factor, shift) in enumerate(((1.0, 0.0), (10.0, 0.0), (1e4, 1e6))):
        changed, rng = frame.copy(), np.random.default_rng(seed)
        for column in columns:
            values = changed[column].to_numpy(dtype=float).copy()
            values[late] = rng.permutation(values[late]) * factor + shift
            changed[column] = values
        yield changed


def backtest_forecasts(frame: pd.DataFrame, name: str, options: Mapping[str, object], config: BacktestConfig, freq: str) -> pd.DataFrame:
    """Every forecast of a backtest; a member that failed is an error here."""
    scored = run_backtest(frame, freq, {name: dict(options)}, config).scores[name]
    assert scored.error is None, scored.traceback
    issued = ["origin", "unique_id", "issued_at", "ds", *Q]
    return scored.forecasts[issued].sort_values(issued[:4], ignore_index=True)


def probe_backtest(frame: pd.DataFrame, name: str, options: Mapping[str, object], config: BacktestConfig, freq: str = "10min") -> int:
    """A whole backtest, end to end: what was forecast at every origin up to a cut knows nothing of what came after the cut.

    Returns:
        Forecast rows compared.
    """
    plain = backtest_forecasts(frame, name, options, config, freq)
    issued = np.sort(plain["issued_at"].unique())
    compared = 0
    for cut, variants in ((issued[0], 1), (issued[len(issued) // 2], 3)):
        for changed in list(futures(frame, cut))[-variants:]:
            other = backtest_forecasts(changed, name, options, config, freq)
            ours, theirs = (table[table["issued_at"] <= cut].reset_index(drop=True) for table in (plain, other))
            pd.testing.assert_frame_equal(theirs, ours, check_exact=True)
            compared += len(ours)
    return compared


def probe_issue_rows(
    frame: pd.DataFrame, at_rows: Callable[[Panel, np.ndarray, np.ndarray], np.ndarray], cuts: tuple[int, ...], freq: str = "10min"
) -> None:
    """Something computed at every issue row of a panel (features, replayed forecasts) knows nothing of later rows of the same panel.

    Args:
        frame: series of equal length that start together.
        at_rows: (panel, series numbers ``[n]``, issue rows ``[n]``) -> array of ``n`` rows.
        cuts: rows after which the future changes; all rows up to each cut are compared.
    """
    plain = panel_of(frame, freq)
    length = min(len(values) for values in plain.values)
    for cut in cuts:
        rows = np.tile(np.arange(2, cut + 1), len(plain))
        series = np.repeat(np.arange(len(plain)), cut - 1)
        assert cut < length - 1
        expected = at_rows(plain, series, rows)
        after = pd.Timestamp(int(plain.starts_ns[0] + cut * plain.step_ns))
        for changed in futures(frame, after):
            np.testing.assert_array_equal(at_rows(panel_of(changed, freq), series, rows), expected)


def panel_of(frame: pd.DataFrame, freq: str) -> Panel:
    return Panel.from_frame(validate_series(frame, freq)[0], freq_step_ns(freq))


def probe_known_at_predict(forecaster: PanelForecaster, later: pd.DataFrame) -> None:
    """Covariates handed to ``predict``: observed values of the future, whatever they are, change nothing."""
    plain = forecaster.predict()
    for changed in futures(later, plain["issued_at"].min()):
        pd.testing.assert_frame_equal(forecaster.predict(covariates=changed), plain, check_exact=True)
