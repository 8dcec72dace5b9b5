"""ARIMA with Fourier terms: fitted by statsmodels, continued by its own innovations.

A seasonal ARIMA at a season of 144 never ends; regression with ARIMA errors on a few sine and cosine terms is the usual answer
(Hyndman and Athanasopoulos, 10.5). Parameters are estimated once; afterwards new observations only pass through the innovations filter,
which is what ``ARIMAResults.append(refit=False)`` computes, at a hundredth of the cost.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from models.base import QUANTILES
from models.intervals import residual_quantiles
from models.member import PanelForecaster, reading
from models.metrics import quantile_loss
from models.series import Panel, forward_fill

PARAMETERS = "arima.json"
BURN_IN = 12


@dataclass(frozen=True)
class ArimaOptions:
    """Options of ``arima``.

    Args:
        orders: candidate (p, d, q); the one with the least quantile loss over the horizon, on the rows before those fitted, is kept.
            Differenced ones are also tried without Fourier terms.
        fourier_terms: sine and cosine pairs of the season, used from two seasons of history on.
        weekly_terms: the same for a week, from two weeks on (frequencies below a day).
        max_rows: newest rows used to fit and to filter.
        max_fits: series fitted at most; the others fall back on empirical persistence and are reported.
    """

    orders: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (2, 0, 1))
    fourier_terms: int = 3
    weekly_terms: int = 0
    max_rows: int = 1152
    max_fits: int = 500


@dataclass(frozen=True)
class ArimaParameters:
    """Regression with ARIMA errors of one series, in units of ``scale``."""

    difference: int
    scale: float
    constant: float
    fourier: list[float]
    ar: list[float]
    ma: list[float]

    def psi_weights(self, horizon: int) -> np.ndarray:
        """Weights of past innovations in the forecast error ``[H]``: error_h = sum over j < h of psi_j e_(t+h-j)."""
        impulse = np.zeros(horizon)
        impulse[0] = 1.0
        psi = lfilter(np.r_[1.0, self.ma], np.r_[1.0, -np.array(self.ar)], impulse)
        return np.cumsum(psi) if self.difference else psi


class Arima(PanelForecaster):
    """Per series ARIMA errors around Fourier terms; quantiles are those of the in-sample h-step errors, renewed at every update."""

    name = "arima"
    per_series = True
    options_class = ArimaOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.parameters: dict[str, ArimaParameters] = {}

    @property
    def history_rows(self) -> int:
        return self.options.max_rows

    def _fit(self, panel: Panel) -> None:
        self.parameters = {}
        rows = self.options.max_rows
        recent = panel.tail(2 * rows)  # the newer half is fitted, the older one judges
        for i, uid in enumerate(recent.ids[: self.options.max_fits]):
            values = forward_fill(recent.values[i])
            reason = self._cannot_fit(values[-rows:])
            if reason:
                self.fallbacks[uid] = reason
                continue
            fitted = self._fit_one(values, self._fourier(recent.times_ns(i), len(values[-rows:])))
            if fitted is None:
                self.fallbacks[uid] = "no candidate order could be estimated"
            else:
                self.parameters[uid] = fitted

    @staticmethod
    def _cannot_fit(values: np.ndarray) -> str:
        if len(values) < 40:
            return f"history of {len(values)} rows is below 40"
        return "constant history" if np.ptp(values) == 0 else ""

    def _fourier(self, times_ns: np.ndarray, known_rows: int) -> np.ndarray:
        """Sine and cosine columns ``[T, K]`` at absolute times, so that any two calls agree."""
        step = times_ns / self.step_ns
        week = 7 * 86_400 * 10**9 / self.step_ns
        terms = []
        if known_rows >= 2 * self.season_length and self.season_length > 2:
            terms += [
                2 * np.pi * k * step / self.season_length for k in range(1, min(self.options.fourier_terms, self.season_length // 2) + 1)
            ]
        if known_rows >= 2 * week and week > self.season_length:
            terms += [2 * np.pi * k * step / week for k in range(1, self.options.weekly_terms + 1)]
        return np.column_stack([f(angle) for angle in terms for f in (np.sin, np.cos)]) if terms else np.zeros((len(times_ns), 0))

    def _fit_one(self, values: np.ndarray, fourier: np.ndarray) -> ArimaParameters | None:
        """Best candidate for ``values`` ``[T]``: each is fitted on the newest rows and judged on the rows before them."""
        rows = self.options.max_rows
        enough = len(values) - rows >= max(self.season_length, 4 * self.horizon)
        judged = slice(0, -rows) if enough else slice(None)  # a short history has to judge itself
        best, best_loss = None, np.inf
        for order in self.options.orders:
            for columns in sorted({fourier.shape[1], 0} if order[1] else {fourier.shape[1]}):
                candidate = estimate(values[-rows:], fourier[-rows:, :columns], order)
                if candidate is None:
                    continue
                path = residual_series(candidate, values[judged], fourier[judged, :columns])
                loss = self._loss(forecast_errors(candidate, path, self.horizon))
                if loss < best_loss:
                    best, best_loss = candidate, loss
        return best

    def _loss(self, errors: np.ndarray) -> float:
        """Mean quantile loss of forecasts whose spread is that of their own errors ``[n, H]``."""
        errors = errors[np.isfinite(errors).all(axis=1)]
        if not len(errors):
            return float("inf")
        spread = residual_quantiles(errors)
        return float(np.mean([quantile_loss(errors[:, h], np.tile(spread[h], (len(errors), 1))).mean() for h in range(self.horizon)]))

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        out = np.empty((len(panel), horizon, len(QUANTILES)))
        for i, uid in enumerate(panel.ids):
            fitted = self.parameters.get(uid)
            if fitted is None:
                reason = self.fallbacks.get(uid, "not fitted: new since the fit, or beyond max_fits")
                out[i] = self._fall_back(panel, i, horizon, reason)
                continue
            values, times_ns = forward_fill(panel.values[i]), panel.times_ns(i)
            future_ns = times_ns[-1] + (1 + np.arange(horizon)) * self.step_ns
            rows = len(fitted.fourier) and 10**9  # the columns are those of the fit, however short the history is now
            fourier = self._fourier(np.r_[times_ns, future_ns], rows)[:, : len(fitted.fourier)]
            path = residual_series(fitted, values, fourier[: len(values)])
            centre = forecast_path(fitted, path, horizon) + fourier[len(values) :] @ np.array(fitted.fourier) + fitted.constant
            errors = forecast_errors(fitted, path, horizon)
            out[i] = fitted.scale * (centre[:, None] + residual_quantiles(errors))
        return out

    def _save_parameters(self, folder: Path) -> None:
        (folder / PARAMETERS).write_text(json.dumps({uid: asdict(p) for uid, p in self.parameters.items()}))

    def _load_parameters(self, folder: Path) -> None:
        with reading(folder):
            stored = json.loads((folder / PARAMETERS).read_text())
            self.parameters = {uid: ArimaParameters(**p) for uid, p in stored.items()}


def estimate(values: np.ndarray, fourier: np.ndarray, order: tuple[int, int, int]) -> ArimaParameters | None:
    """Parameters in two steps: Fourier terms by least squares (on differences where the order differences), then the ARMA part of what is
    left by maximum likelihood of its innovations. None where the second step fails.

    Joint estimation takes ten times as long and moved no forecast that was looked at.
    """
    from statsmodels.tsa.arima.model import ARIMA

    difference = order[1]
    scale = float(np.std(values)) or 1.0
    scaled = values / scale
    design = np.diff(fourier, axis=0) if difference else np.column_stack([fourier, np.ones(len(values))])
    found = np.linalg.lstsq(design, np.diff(scaled) if difference else scaled, rcond=None)[0]
    coefficients = found[: fourier.shape[1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is judged by the forecast errors that the parameters give
        try:
            model = ARIMA(scaled - fourier @ coefficients, order=order, trend="n" if difference else "c")
            result = model.fit(method="innovations_mle")
        except (ValueError, IndexError, ArithmeticError, np.linalg.LinAlgError):
            return None
    named = dict(zip(model.param_names, np.asarray(result.params, dtype=np.float64), strict=True))
    if not np.isfinite([*named.values(), *coefficients]).all():
        return None
    constant = float(named.get("const", 0.0))
    return ArimaParameters(difference, scale, constant, coefficients.tolist(), result.arparams.tolist(), result.maparams.tolist())


def residual_series(parameters: ArimaParameters, values: np.ndarray, fourier: np.ndarray) -> np.ndarray:
    """What the ARMA part has to explain, ``[T]``: scaled values less constant and Fourier terms."""
    return values / parameters.scale - parameters.constant - fourier @ np.array(parameters.fourier)


def innovations(parameters: ArimaParameters, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differenced series and its one-step errors, conditional on zeros before the history."""
    stationary = np.diff(path) if parameters.difference else path
    return stationary, lfilter(np.r_[1.0, -np.array(parameters.ar)], np.r_[1.0, parameters.ma], stationary)


def forecast_path(parameters: ArimaParameters, path: np.ndarray, horizon: int) -> np.ndarray:
    """Conditional mean of the ARMA part for the next ``horizon`` steps, ``[H]``."""
    stationary, errors = innovations(parameters, path)
    p, q = len(parameters.ar), len(parameters.ma)
    known, shocks = np.r_[np.zeros(p), stationary].tolist(), np.r_[np.zeros(q), errors].tolist()
    ahead = []
    for _ in range(horizon):
        value = sum(a * known[-1 - j] for j, a in enumerate(parameters.ar)) + sum(b * shocks[-1 - j] for j, b in enumerate(parameters.ma))
        known.append(value)
        shocks.append(0.0)
        ahead.append(value)
    return path[-1] + np.cumsum(ahead) if parameters.difference else np.array(ahead)


def forecast_errors(parameters: ArimaParameters, path: np.ndarray, horizon: int) -> np.ndarray:
    """In-sample errors of h-step forecasts, ``[n, H]``, NaN where the window is not complete."""
    _, errors = innovations(parameters, path)
    psi = parameters.psi_weights(horizon)
    out = np.full((len(errors), horizon), np.nan)
    for h in range(1, horizon + 1):
        out[h + BURN_IN :, h - 1] = lfilter(psi[:h], [1.0], errors)[h + BURN_IN :]
    return out
