"""Intervals that keep their coverage while the world drifts: adaptive conformal inference over the nine quantiles.

Per horizon band and quantile two things are kept, both updated once per time step with the rows whose value has become known:

1. *where the quantile should have been*: a histogram of scores ``(y - q) / unit`` that forgets exponentially (non-exchangeable
   conformal prediction, Barber et al. 2023). ``unit`` is the row's own half width on the quantile's side, so that a correction stretches
   wide rows more than narrow ones. Rows that are narrower than a small share of their series' scale are kept apart, with that share as
   their unit: they open again by themselves when they miss, and do not stretch the others.
2. *what was promised*: the running sum of nominal minus observed share of values below the quantile as it was issued. It shifts the
   level at which the histogram is read (the alpha of adaptive conformal inference, Gibbs and Candes 2021; the integral term of conformal
   PID control, Angelopoulos et al. 2023), so that misses during a change are paid back and the long-run share is nominal.

On planted drift (``python -m benchmarks.adaptive_intervals``) the first alone lags, online gradient steps lag as much, and mixing several
rates by their loss chases noise; the two together hold every band within two points. The correction moves the eight outer quantiles; the
median follows only a bias beyond ``MEDIAN_DEAD_BAND`` half widths, without which a level shift would leave one side nothing to cover.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from scipy.stats import norm

from models.base import QUANTILES, monotone
from telemetry.errors import InputError

LEVELS = np.asarray(QUANTILES)
N_QUANTILES = len(QUANTILES)
MIDDLE = N_QUANTILES // 2
MEDIAN_DEAD_BAND = 0.1
LARGEST_SCORE = 100.0
SIDE_BINS = 48
_REACH = np.sinh(np.linspace(0.0, np.arcsinh(4.0 * LARGEST_SCORE), SIDE_BINS + 1)) / 4.0  # finest near 0, up to LARGEST_SCORE
_OUTWARD = np.maximum(_REACH, 1e-4)
EDGES = np.concatenate([-_OUTWARD[::-1], _OUTWARD])  # the bin around 0 holds exact hits
N_BINS = len(EDGES) - 1
FRESH_STEPS = 10.0
MASS_DECIMALS = 7


@dataclass(frozen=True)
class AdaptiveOptions:
    """How fast intervals adapt.

    Args:
        memory_steps: time steps over which scores are remembered (exponentially).
        gain: shift of a quantile's level per time step and unit of missed share.
        largest_shift: of a level; bounds what has to be paid back.
        narrow_share: half widths below this share of the series' scale count as narrow.
        prior_rows: rows of a calibration slice that weigh as much as trust in the quantiles as they are.
    """

    memory_steps: float = 150.0
    gain: float = 0.01
    largest_shift: float = 0.3
    narrow_share: float = 0.02
    prior_rows: int = 100

    def __post_init__(self) -> None:
        if not (self.memory_steps >= 1 and 0 <= self.gain <= 1 and 0 <= self.largest_shift < 1 and self.narrow_share > 0):
            raise InputError(
                f"{self}", where="adaptive intervals", allowed="memory_steps >= 1, gain and largest_shift from 0 to 1, narrow_share > 0"
            )


class AdaptiveIntervals:
    """Online correction of quantiles, pooled over all series; one small state.

    Shapes: B horizon bands, C = 2 B cells (rows of ordinary width, then narrow ones), Q = 9 quantiles, K bins.
    """

    def __init__(self, n_bands: int, options: AdaptiveOptions | None = None) -> None:
        """A state that changes nothing yet; see :meth:`fit` for one that has seen a calibration slice."""
        if n_bands < 1:
            raise InputError(f"{n_bands} bands", where="adaptive intervals", allowed="at least 1")
        self.n_bands, self.options = n_bands, options or AdaptiveOptions()
        cells = 2 * n_bands
        self._mass = np.tile(_nominal_mass(), (cells, 1, 1))  # [C, Q, K] share of scores
        self._shift = np.zeros((cells, N_QUANTILES))  # of the level
        self._steps = np.full(cells, FRESH_STEPS)  # time steps that the histogram stands for
        self._rows = np.zeros(cells)  # typical rows per time step
        self._coverage, self._issued, self._base = (np.zeros(n_bands) for _ in range(3))
        self._seen = np.zeros(n_bands, dtype=np.int64)  # time steps
        self._corrections = self._read()

    @classmethod
    def fit(
        cls,
        actual: np.ndarray,
        quantiles: np.ndarray,
        bands: np.ndarray,
        *,
        scale: np.ndarray | float = 0.0,
        n_bands: int | None = None,
        options: AdaptiveOptions | None = None,
    ) -> Self:
        """State after a calibration slice.

        Args:
            actual: ``[n]`` values that the model was not fitted on, NaN where unknown.
            quantiles: ``[n, Q]`` its quantiles for them.
            bands: ``[n]`` horizon band of each row, from 0.
            scale: ``[n]`` or one number: typical change of the row's series, in the unit of y; 0 = unknown: zero widths stay as they are.
            n_bands: bands in all; by default as many as occur.
            options: see :class:`AdaptiveOptions`.
        """
        bands = np.asarray(bands, dtype=np.int64)
        state = cls(n_bands if n_bands is not None else int(bands.max(initial=0)) + 1, options)
        rows = _Rows(actual, quantiles, bands, scale, state)
        for cell, count, mass in rows.histograms():
            trust = count / (count + state.options.prior_rows)
            state._mass[cell] = (1.0 - trust) * state._mass[cell] + trust * mass
            state._steps[cell] = max(FRESH_STEPS, trust * state.options.memory_steps)
        state._settle()
        return state

    def observe(
        self,
        actual: np.ndarray,
        quantiles: np.ndarray,
        bands: np.ndarray,
        *,
        scale: np.ndarray | float = 0.0,
        issued: np.ndarray | None = None,
    ) -> Self:
        """Learn from the rows of one time step: call once per step, in time order.

        Args:
            actual: ``[n]`` values that became known at this step, of any series and horizon step.
            quantiles: ``[n, Q]`` what the model had said of them, uncorrected.
            bands: ``[n]`` their horizon bands.
            scale: as in :meth:`fit`.
            issued: ``[n, Q]`` the corrected quantiles that were issued; by default what would be issued now.
        """
        rows = _Rows(actual, quantiles, np.asarray(bands, dtype=np.int64), scale, self)
        if issued is None:
            issued = self._move(rows.quantiles, rows.cells, rows.units)
        else:
            issued = np.asarray(issued, dtype=np.float64)[rows.kept]
        self._count(rows, issued)
        low, high = rows.shares_below(issued)  # [C, Q]: below, and below or equal
        missed = LEVELS - np.clip(LEVELS, low, high)  # values equal to a quantile may count on either side
        missed[:, MIDDLE] = 0.0
        limit, slowest = self.options.largest_shift, 1.0 / self.options.memory_steps
        for cell, count, mass in rows.histograms():
            usual = self._rows[cell] or count
            weight = min(1.0, count / usual)  # a step of few rows says less
            rate = weight * max(slowest, 1.0 / (self._steps[cell] + 1.0))
            self._mass[cell] += rate * (mass - self._mass[cell])
            self._steps[cell] += weight
            self._rows[cell] = usual + 0.05 * (count - usual)
            self._shift[cell] = np.clip(self._shift[cell] + weight * self.options.gain * missed[cell], -limit, limit)
        self._settle()
        return self

    def apply(
        self,
        quantiles: np.ndarray,
        bands: np.ndarray,
        *,
        scale: np.ndarray | float = 0.0,
        floor: np.ndarray | float | None = None,
        cap: np.ndarray | float | None = None,
    ) -> np.ndarray:
        """Corrected quantiles.

        Args:
            quantiles: ``[..., H, Q]``, non-decreasing along the last axis.
            bands: ``[H]`` horizon band of each step.
            scale: broadcasts to ``[..., H]``, e.g. ``[N, 1]``; as in :meth:`fit`.
            floor, cap: physical bounds, broadcasting to ``[..., H]``.

        Returns:
            ``[..., H, Q]``, non-decreasing and within the bounds.
        """
        quantiles = np.asarray(quantiles, dtype=np.float64)
        rows = np.broadcast_to(bands, quantiles.shape[:-1])
        units, narrow = _units(quantiles, np.broadcast_to(scale, rows.shape), self.options.narrow_share)
        moved = self._move(quantiles, self._checked_bands(rows) + self.n_bands * narrow, units)
        if floor is not None or cap is not None:
            low, high = (
                np.broadcast_to(bound, rows.shape)[..., None]
                for bound in (-np.inf if floor is None else floor, np.inf if cap is None else cap)
            )
            moved = np.clip(moved, low, high)
        return moved

    def report(self) -> list[dict[str, float | int | None]]:
        """Per band: coverage of the issued 80 % intervals and their width relative to the uncorrected ones, over the remembered steps."""
        return [
            {
                "band": band,
                "steps": int(seen),
                "coverage80": float(self._coverage[band]) if seen else None,
                "width80_ratio": float(self._issued[band] / self._base[band]) if self._base[band] > 0 else None,
            }
            for band, seen in enumerate(self._seen)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain types; :meth:`from_json` gives a state that behaves exactly alike."""
        arrays = {name: getattr(self, f"_{name}").tolist() for name in _ARRAYS}
        return {"n_bands": self.n_bands, "options": asdict(self.options), **arrays}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave.

        Raises:
            InputError: something is missing, unknown or of another shape.
        """
        try:
            known = {f.name for f in fields(AdaptiveOptions)}
            if set(stored["options"]) != known:
                raise KeyError(f"options {', '.join(sorted(stored['options']))}")
            state = cls(int(stored["n_bands"]), AdaptiveOptions(**stored["options"]))
            for name in _ARRAYS:
                mine = getattr(state, f"_{name}")
                array = np.array(stored[name], dtype=mine.dtype)
                if array.shape != mine.shape or not np.isfinite(array).all():
                    raise ValueError(f"{name} has shape {array.shape}, not {mine.shape}, or is not finite")
                setattr(state, f"_{name}", array)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"no saved state ({error})", where="adaptive intervals", remedy="remove it and start afresh") from error
        state._corrections = state._read()
        return state

    # --- inside -------------------------------------------------------------------------------------------------------------------------

    def _checked_bands(self, bands: np.ndarray) -> np.ndarray:
        if bands.size and not (bands.min() >= 0 and bands.max() < self.n_bands):
            raise InputError(f"bands {bands.min()} to {bands.max()}", where="adaptive intervals", allowed=f"0 to {self.n_bands - 1}")
        return bands

    def _move(self, quantiles: np.ndarray, cells: np.ndarray, units: np.ndarray) -> np.ndarray:
        return monotone(quantiles + self._corrections[cells] * units)

    def _settle(self) -> None:
        self._mass = np.round(self._mass, MASS_DECIMALS)  # so that JSON keeps it exactly and stays small
        self._corrections = self._read()

    def _read(self) -> np.ndarray:
        """Corrections in units, ``[C, Q]``: the histograms' quantiles at the shifted levels."""
        cumulative = np.cumsum(self._mass, axis=-1)
        level = np.clip(LEVELS + self._shift, 0.005, 0.995) * cumulative[..., -1]
        at = np.minimum((cumulative < level[..., None]).sum(axis=-1), N_BINS - 1)
        share = np.take_along_axis(self._mass, at[..., None], -1)[..., 0]
        above = np.take_along_axis(cumulative, at[..., None], -1)[..., 0] - level
        inside = 1.0 - np.clip(above / np.maximum(share, 1e-12), 0.0, 1.0)
        found = EDGES[at] + inside * (EDGES[at + 1] - EDGES[at])
        found[at == SIDE_BINS] = 0.0
        median = found[:, MIDDLE]
        found[:, MIDDLE] = np.sign(median) * np.maximum(np.abs(median) - MEDIAN_DEAD_BAND, 0.0)
        return found

    def _count(self, rows: _Rows, issued: np.ndarray) -> None:
        """Running coverage and widths for the report."""
        unit = rows.units[:, MIDDLE]
        inside = (rows.actual >= issued[:, 0]) & (rows.actual <= issued[:, -1])
        for band in range(self.n_bands):
            own = rows.cells % self.n_bands == band
            if not own.any():
                continue
            self._seen[band] += 1
            rate = max(1.0 / self.options.memory_steps, 1.0 / self._seen[band])
            new = (
                inside[own],
                (issued[own, -1] - issued[own, 0]) / unit[own],
                (rows.quantiles[own, -1] - rows.quantiles[own, 0]) / unit[own],
            )
            for kept, value in zip((self._coverage, self._issued, self._base), new, strict=True):
                kept[band] += rate * (value.mean() - kept[band])


_ARRAYS = ("mass", "shift", "steps", "rows", "coverage", "issued", "base", "seen")


class _Rows:
    """Usable rows of a call, with their cells, units and scores."""

    def __init__(
        self, actual: np.ndarray, quantiles: np.ndarray, bands: np.ndarray, scale: np.ndarray | float, state: AdaptiveIntervals
    ) -> None:
        actual, quantiles = np.asarray(actual, dtype=np.float64), np.asarray(quantiles, dtype=np.float64)
        if quantiles.shape != (len(actual), N_QUANTILES) or bands.shape != actual.shape:
            raise InputError(
                f"actual {actual.shape}, quantiles {quantiles.shape}, bands {bands.shape}",
                where="adaptive intervals",
                allowed=f"[n], [n, {N_QUANTILES}] and [n]",
            )
        units, narrow = _units(quantiles, np.broadcast_to(scale, actual.shape), state.options.narrow_share)
        self.kept = np.isfinite(actual) & np.isfinite(quantiles).all(axis=1) & (units.min(axis=1, initial=np.inf) > 0)
        self.actual, self.quantiles, self.units = actual[self.kept], quantiles[self.kept], units[self.kept]
        self.cells = (state._checked_bands(bands) + state.n_bands * narrow)[self.kept]
        self.n_cells = 2 * state.n_bands

    def histograms(self) -> list[tuple[int, int, np.ndarray]]:
        """Per cell that has rows: cell, rows, and share of scores per bin ``[Q, K]``."""
        scores = np.clip((self.actual[:, None] - self.quantiles) / self.units, -LARGEST_SCORE, LARGEST_SCORE)
        bins = np.clip(np.searchsorted(EDGES, scores, side="right") - 1, 0, N_BINS - 1)
        flat = (self.cells[:, None] * N_QUANTILES + np.arange(N_QUANTILES)) * N_BINS + bins
        counts = np.bincount(flat.ravel(), minlength=self.n_cells * N_QUANTILES * N_BINS).reshape(self.n_cells, N_QUANTILES, N_BINS)
        rows = np.bincount(self.cells, minlength=self.n_cells)
        return [(int(cell), int(rows[cell]), counts[cell] / rows[cell]) for cell in np.flatnonzero(rows)]

    def shares_below(self, issued: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per cell, share of values below each issued quantile, and below or equal, ``[C, Q]``."""
        distance = self.actual[:, None] - issued
        equal = 1e-9 * self.units
        rows = np.maximum(np.bincount(self.cells, minlength=self.n_cells), 1)[:, None]
        flat = self.cells[:, None] * N_QUANTILES + np.arange(N_QUANTILES)
        low, high = (
            np.bincount(flat[under], minlength=self.n_cells * N_QUANTILES).reshape(self.n_cells, N_QUANTILES)
            for under in (distance < -equal, distance <= equal)
        )
        return low / rows, high / rows


def _units(quantiles: np.ndarray, scale: np.ndarray, narrow_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit of each row's scores ``[..., Q]``, and which rows are narrow ``[...]``."""
    lower, upper = quantiles[..., MIDDLE] - quantiles[..., 0], quantiles[..., -1] - quantiles[..., MIDDLE]
    half = (lower + upper) / 2.0
    least = narrow_share * np.maximum(scale, half)
    narrow = half < narrow_share * scale
    sides = np.stack([np.maximum(lower, least), np.maximum(half, least), np.maximum(upper, least)], axis=-1)
    sides = np.where(narrow[..., None], least[..., None], sides)
    return sides[..., np.sign(np.arange(N_QUANTILES) - MIDDLE) + 1], narrow


def _nominal_mass() -> np.ndarray:
    """Scores of a Gaussian whose quantiles are right, ``[Q, K]``: reading it at the nominal levels corrects nothing."""
    scores = norm.ppf(LEVELS)
    edges = EDGES.copy()
    edges[0], edges[-1] = -np.inf, np.inf
    mass = np.diff(norm.cdf(scores[:, None] + scores[-1] * edges), axis=1)
    return np.round(mass, MASS_DECIMALS)
