"""How well intervals hold their coverage under planted drift: static against adaptive forms; ``python -m benchmarks.adaptive_intervals``.

Every method gets the same forecasts, is calibrated on the first 150 issue times, learns of a value when it is there, and is judged on
everything issued after the change: 80 % coverage per horizon band (near, middle, far), the worst day, width and quantile loss relative to
the static form. Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.drift_worlds import CASES, HORIZON, SEASON, STEPS, DriftWorld, drift_world
from models.base import QUANTILES, monotone
from models.conformal import AdaptiveIntervals, AdaptiveOptions
from pipelines.workspace import write_json

BANDS = (STEPS - 1) * 3 // HORIZON
LEVELS = np.asarray(QUANTILES)
CALIBRATION = 150


class Method(Protocol):
    """What is compared: the part of AdaptiveIntervals that it takes."""

    def observe(self, actual: np.ndarray, quantiles: np.ndarray, bands: np.ndarray, *, scale: Any, issued: Any) -> Any:
        """One time step."""

    def apply(self, quantiles: np.ndarray, bands: np.ndarray, *, scale: Any) -> np.ndarray:
        """Corrected quantiles."""


class Offsets:
    """Static calibration: one offset per band and quantile in half widths of the row (CQR-r, Sesia and Candes 2020)."""

    def __init__(self, actual: np.ndarray, quantiles: np.ndarray, bands: np.ndarray) -> None:
        scores = self.scores(actual, quantiles)
        self.offsets = np.stack([[np.quantile(scores[bands == b, j], q) for j, q in enumerate(QUANTILES)] for b in range(3)])
        self.spread = np.stack([np.abs(scores[bands == b] - self.offsets[b]).mean(axis=0) for b in range(3)])

    @staticmethod
    def scores(actual: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
        """``[n, Q]`` distance from each quantile in half widths."""
        return (actual[:, None] - quantiles) / ((quantiles[:, -1:] - quantiles[:, :1]) / 2.0)

    def observe(self, actual: np.ndarray, quantiles: np.ndarray, bands: np.ndarray, *, scale: Any, issued: Any) -> Any:
        """Nothing is learnt."""

    def apply(self, quantiles: np.ndarray, bands: np.ndarray, *, scale: Any) -> np.ndarray:
        """Offset quantiles."""
        return monotone(quantiles + self.offsets[bands] * (quantiles[..., -1:] - quantiles[..., :1]) / 2.0)


class GradientSteps(Offsets):
    """Quantile tracking: a step of ``rate`` mean absolute scores per missed share (Gibbs and Candes 2021 in score space)."""

    def __init__(self, rate: float, *rows: np.ndarray) -> None:
        super().__init__(*rows)
        self.rate = rate

    def observe(self, actual: np.ndarray, quantiles: np.ndarray, bands: np.ndarray, *, scale: Any, issued: Any) -> Any:
        scores = self.scores(actual, quantiles)
        for band in np.unique(bands):
            own = scores[bands == band] - self.offsets[band]
            self.spread[band] += 0.03 * (np.abs(own).mean(axis=0) - self.spread[band])
            self.offsets[band] += self.rate * self.spread[band] * (LEVELS - (own <= 0).mean(axis=0))


class MixedRates(Offsets):
    """Trackers of several rates, mixed by their discounted loss (AgACI, Zaffran et al. 2022)."""

    def __init__(self, *rows: np.ndarray) -> None:
        super().__init__(*rows)
        self.members = [GradientSteps(rate, *rows) for rate in (0.02, 0.05, 0.1, 0.2, 0.5)]
        self.losses = np.zeros((len(self.members), 3, len(QUANTILES)))

    def observe(self, actual: np.ndarray, quantiles: np.ndarray, bands: np.ndarray, *, scale: Any, issued: Any) -> Any:
        scores = self.scores(actual, quantiles)
        for member, loss in zip(self.members, self.losses, strict=True):
            for band in np.unique(bands):
                error = scores[bands == band] - member.offsets[band]
                loss[band] += 0.02 * (np.maximum(LEVELS * error, (LEVELS - 1.0) * error).mean(axis=0) - loss[band])
            member.observe(actual, quantiles, bands, scale=scale, issued=issued)
        weights = np.exp(-20.0 * (self.losses / np.maximum(self.losses.mean(axis=0), 1e-9) - 1.0))
        self.offsets = (weights * np.stack([m.offsets for m in self.members])).sum(axis=0) / weights.sum(axis=0)


def _adaptive(**options: float) -> Callable[..., AdaptiveIntervals]:
    return lambda actual, quantiles, bands: AdaptiveIntervals.fit(actual, quantiles, bands, options=AdaptiveOptions(**options))


METHODS: dict[str, Callable[..., Method]] = {
    "static": Offsets,
    "gradient .05": lambda *rows: GradientSteps(0.05, *rows),
    "gradient .2": lambda *rows: GradientSteps(0.2, *rows),
    "mixed rates": MixedRates,
    "memory only": _adaptive(gain=0.0),
    "level only": _adaptive(memory_steps=1e6),
    "adaptive": _adaptive(),
    "adaptive, fast": _adaptive(memory_steps=50.0),
    "adaptive, slow": _adaptive(memory_steps=400.0),
    "adaptive, weak": _adaptive(gain=0.003),
}


def follow(world: DriftWorld, make: Callable[..., Method]) -> np.ndarray:
    """Issued quantiles ``[T, S, H, Q]`` of a method that lives through a world; nothing before the calibration is corrected."""
    length, n_series = world.actual.shape[:2]
    first = world.actual[:CALIBRATION].reshape(-1), world.quantiles[:CALIBRATION].reshape(-1, len(QUANTILES))
    method = make(*first, np.tile(BANDS, CALIBRATION * n_series))
    issued = world.quantiles.copy()
    for now in range(CALIBRATION, length):
        ahead = STEPS[now - STEPS >= CALIBRATION]  # values of ``now`` were forecast at ``now - ahead``
        if len(ahead):
            at = (now - ahead)[:, None], np.arange(n_series), (ahead - 1)[:, None]
            rows = (values[at].reshape(-1, *values.shape[3:]) for values in (world.actual, world.quantiles, issued))
            actual, quantiles, told = rows
            bands, scale = np.repeat(BANDS[ahead - 1], n_series), np.tile(world.scale, len(ahead))
            method.observe(actual, quantiles, bands, scale=scale, issued=told)
        issued[now] = method.apply(world.quantiles[now], BANDS, scale=world.scale[:, None])
    return issued


def judged(world: DriftWorld, issued: np.ndarray) -> dict[str, Any]:
    """Coverage per band, of the worst and best day, width and loss (both in units of the series' scale) after the change."""
    actual, issued = world.actual[world.start :], issued[world.start :]
    inside = (actual >= issued[..., 0]) & (actual <= issued[..., -1])
    days = [inside[i : i + SEASON].mean() for i in range(0, len(inside) - SEASON + 1, SEASON)]
    error = actual[..., None] - issued
    loss = np.maximum(LEVELS * error, (LEVELS - 1.0) * error).mean(axis=(0, 2, 3)) / world.scale
    width = (issued[..., -1] - issued[..., 0]).mean(axis=(0, 2)) / world.scale
    return {
        "coverage": [float(inside[..., b == BANDS].mean()) for b in range(3)],
        "worst_day": float(min(days)),
        "best_day": float(max(days)),
        "width": float(width.mean()),
        "loss": float(loss.mean()),
        "crossings": int((np.diff(issued, axis=-1) < 0).sum()),
    }


def compare(kind: str, drift: str, n_series: int, worlds: int, names: list[str]) -> dict[str, dict[str, Any]]:
    """Every method on the same worlds, averaged over them."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for seed in range(worlds):
        world = drift_world(kind, drift, n_series, seed=seed)
        for name in names:
            begun = time.perf_counter()
            result = judged(world, follow(world, METHODS[name]))
            rows[name].append({**result, "seconds": time.perf_counter() - begun})
    mean = {name: {key: np.mean([r[key] for r in results], axis=0).tolist() for key in results[0]} for name, results in rows.items()}
    for result in mean.values():
        result["off_by"] = max(abs(value - 0.8) for value in result["coverage"])
        result["loss_ratio"] = result["loss"] / mean[names[0]]["loss"]
        result["width_ratio"] = result["width"] / mean[names[0]]["width"]
    return mean


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, nargs="+", default=[1, 30], help="series pooled in one state")
    parser.add_argument(
        "--worlds", type=int, default=240, help="series in all per case: worlds of S series are drawn until there are so many"
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/adaptive_intervals.json"))
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for n_series in arguments.series:
        print(f"\n{n_series} series in one state")
        print(f"{'drift':<26}{'method':<15}{'near':>7}{'middle':>8}{'far':>7}{'worst day':>11}{'width':>8}{'loss':>7}")
        for kind, drift in CASES:
            rows = compare(kind, drift, n_series, max(1, min(12, arguments.worlds // n_series)), arguments.methods)
            result[f"{n_series}/{kind}/{drift}"] = rows
            for name, row in rows.items():
                near, middle, far = row["coverage"]
                mark = " " if row["off_by"] <= 0.02 else "*"
                print(
                    f"{kind + ', ' + drift:<26}{name:<15}{near:>7.3f}{middle:>8.3f}{far:>7.3f}{mark}{row['worst_day']:>10.2f}"
                    f"{row['width_ratio']:>8.2f}{row['loss_ratio']:>7.3f}",
                    flush=True,
                )
    print("\n* a band is off 0.80 by more than 0.02; width and loss relative to the first method")
    write_json(arguments.out, result)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
