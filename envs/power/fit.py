"""A GPU model's watts by utilisation, power limit and workload class, fitted from telemetry with its uncertainty.

::

    demand(u, class) = idle + context + active x gain(class) x shape(u)       in use; never above the board's limit
    demand(0)        = idle, or idle + context where a job holds the GPU
    watts            = what the limit leaves of the demand (`envs.power.caps`)

Readings whose job is known give the curve of the classes; all others give the curve of the *mix*, whose shape also holds who uses little.
Models with few rows borrow shape and level from the others and from the data sheet (`fit_models`): a prior is worth a few rows, so that
data overrules it. Uncertainty is of two kinds: *of the curve*, by a bootstrap over blocks of time, which readings that follow each other
share, and *of a reading*, by quantiles of the relative residuals of blocks that the fit had not seen (split conformal).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from envs.power.caps import CapCurve
from envs.power.readings import (
    IDLE_U,
    LIKELY_ACTIVE_SHARE,
    Board,
    Rows,
    best_lag,
    blocks_of,
    capped,
    lagged,
    minutes_of,
    rows_in_use,
    split_idle,
)
from envs.power.shape import EARLY, LINEAR, Prior, Shape, design, fit_rows, pooled_shape, shape_of, solve

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
U_BINS = np.array([0.0, IDLE_U, 0.2, 0.4, 0.6, 0.8, 1.0])
GAIN_ROWS = 20.0
LEAST_CAP_ROWS, LEAST_IDLE_ROWS, LEAST_CLASS_ROWS, LEAST_BIN_ROWS = 50, 10, 100, 40
DRAWS = 80
LINE, ZEUS_CAP = Shape(), CapCurve()
SURE_ROWS = 10.0  # idle, once read, counts as so many times the rows in use


@dataclass(frozen=True)
class Curve:
    """``base + active x shape``. ``draws``: base and ramps of the bootstrap, watts, ``[DRAWS, 1 + K]``."""

    active_w: float
    shape: Shape
    draws: np.ndarray


@dataclass(frozen=True)
class DeviceFit:
    """The fitted curves of one GPU model.

    Attributes:
        context_w: what an allocated, unused GPU draws above idle; 0 where readings without use do not fall apart in two.
        mix: the curve of readings whose job is not known.
        classes: the curve that ``gain`` scales.
        gain: class -> factor; a class that is not named is the mix.
        class_rows: class -> rows of its own.
        lag_steps: readings that watts follow utilisation by.
        rest: quantiles ``LEVELS`` of watts / curve - 1 by utilisation bin, ``[bins, levels]``.
    """

    board: Board
    idle_w: float
    context_w: float
    mix: Curve
    classes: Curve
    gain: Mapping[str, float]
    class_rows: Mapping[str, int]
    cap: CapCurve
    lag_steps: int
    rows: int
    minutes: float
    devices: int
    rest: np.ndarray

    @property
    def base_w(self) -> float:
        """Watts of a GPU with a context that computes nothing."""
        return self.idle_w + self.context_w

    def watts(
        self, utilization: np.ndarray | float, limit_w: np.ndarray | float = np.inf, kind: str = "", *, held: bool = False
    ) -> np.ndarray:
        """Watts at a utilisation under a limit (none: the board's own), elementwise; ``held``: an unused GPU has a context."""
        curve = self.classes if kind in self.gain else self.mix
        demand = self.base_w + curve.active_w * self.gain.get(kind, 1.0) * curve.shape(utilization)
        return np.where((np.asarray(utilization) <= IDLE_U) & (not held), self.idle_w, self.limited(demand, limit_w))

    def limited(self, demand: np.ndarray, limit_w: np.ndarray | float) -> np.ndarray:
        """What a limit leaves of a demand; never above the board's own limit, never below idle."""
        limit = np.nan_to_num(np.asarray(limit_w, dtype=np.float64), nan=np.inf, posinf=np.inf)
        own = np.minimum(demand, self.board.limit_w)
        left = np.maximum(self.cap.watts(own, limit), np.minimum(self.idle_w, own))
        return np.where(capped(limit, self.board), left, own)

    def curve_band(self, utilization: np.ndarray, limit_w: float = np.inf, kind: str = "") -> np.ndarray:
        """5 and 95 % of the curve itself over the bootstrap, ``[2, N]``."""
        curve = self.classes if kind in self.gain else self.mix
        demand = curve.draws @ design(utilization, self.gain.get(kind, 1.0)).T
        return np.quantile(self.limited(demand, limit_w), [0.05, 0.95], axis=0)

    def quantiles(self, utilization: np.ndarray, limit_w: np.ndarray | float = np.inf, kind: str = "") -> np.ndarray:
        """Quantiles ``LEVELS`` of a reading, ``[N, levels]``, never below 0."""
        utilization = np.asarray(utilization, dtype=np.float64)
        return np.maximum(self.watts(utilization, limit_w, kind)[:, None] * (1.0 + self.rest[u_bin(utilization)]), 0.0)


@dataclass(frozen=True)
class Belief:
    """What is believed of a model before its readings.

    Attributes:
        active_share: active watts as a share of ``limit - idle``.
        ratios: class -> active watts relative to the mix's.
    """

    mix: Shape = LINE
    classes: Shape = LINE
    active_share: float = LIKELY_ACTIVE_SHARE
    ratios: Mapping[str, float] | None = None
    cap: CapCurve = ZEUS_CAP


def u_bin(utilization: np.ndarray) -> np.ndarray:
    """Index of the bin of ``U_BINS`` that a utilisation lies in."""
    return np.clip(np.searchsorted(U_BINS, utilization, side="left") - 1, 0, len(U_BINS) - 2)


def fit_device(table: pd.DataFrame, board: Board, belief: Belief | None = None, seed: int = 0) -> DeviceFit:
    """Fit one model.

    Args:
        table: the columns of `envs.power.readings.COLUMNS`, a row a reading, sorted by device and time; ``limit_w`` NaN = the board's own.
    """
    known = belief or Belief()
    table = table.reset_index(drop=True)
    lag = best_lag(table, board)
    moved = lagged(table, lag)
    model = _fitted(moved, board, known, seed, DRAWS)
    model = replace(model, lag_steps=lag, minutes=minutes_of(table), devices=int(table["device"].nunique()))
    odd = blocks_of(moved["time"]) % 2 == 1
    rest = _relative(model, moved)
    for half in (odd, ~odd):
        if half.any() and not half.all():
            rest[~half] = _relative(_fitted(moved[half].reset_index(drop=True), board, known, seed, 0), moved[~half])
    return replace(model, rest=_rest(rest, moved["utilization"].to_numpy()))


def _fitted(table: pd.DataFrame, board: Board, known: Belief, seed: int, draws: int) -> DeviceFit:
    """The curves of readings without a lag; nothing yet of what single readings do."""
    unused = table["utilization"].to_numpy() <= IDLE_U
    idle_w, context_w, _ = split_idle(table["power_w"].to_numpy()[unused], table["held"].to_numpy(dtype=bool)[unused])
    told = int(unused.sum()) >= LEAST_IDLE_ROWS
    idle_w = idle_w if told else board.idle_w
    rows = rows_in_use(table, board, known.cap)
    sure = SURE_ROWS * max(len(rows.watts), 1) if told else 2.0
    prior = Prior(idle_w + context_w, known.active_share * (board.limit_w - board.idle_w), known.mix, idle_rows=sure)
    linked = rows.kind != ""
    mix, base_w = _curve(rows if linked.all() else rows.where(~linked), {}, prior, board, seed, draws)
    if not told:
        idle_w = max(base_w - context_w, 0.0)
    gain, counts = dict(known.ratios or {}), {str(k): int((rows.kind == k).sum()) for k in sorted(set(rows.kind[linked]))}
    classes = Curve(mix.active_w, known.classes, _as_shape(mix.draws, known.classes))
    if linked.sum() >= LEAST_CLASS_ROWS:
        prior = replace(prior, shape=known.classes)
        for _ in range(3):
            # One kind of work is concave; else its factor and a late rise could not be told apart.
            classes, _ = _curve(rows.where(linked), gain, prior, board, seed, draws, concave=True)
            gain = _gains(rows.where(linked), classes, idle_w + context_w, dict(known.ratios or {}))
    nothing = np.zeros((len(U_BINS) - 1, len(LEVELS)))
    model = DeviceFit(board, idle_w, context_w, mix, classes, gain, counts, known.cap, 0, len(table), 0.0, 0, nothing)
    return replace(model, cap=_cap(model, table, unused))


def _curve(
    rows: Rows, gain: Mapping[str, float], prior: Prior, board: Board, seed: int, count: int, *, concave: bool = False
) -> tuple[Curve, float]:
    """The curve of rows and its base watts, and a bootstrap over their blocks."""
    X, y = _design(rows, gain), rows.watts / board.limit_w
    if concave:
        X[:, 1 + len(EARLY) :] = 0.0
    found, weight = fit_rows(X, rows.watts, prior, board.limit_w)
    names = np.unique(rows.block)
    K = len(LINEAR) + 1
    grams, sides = np.zeros((len(names), K, K)), np.zeros((len(names), K))
    for number, name in enumerate(names):
        at = rows.block == name
        weighted = X[at] * weight[at][:, None]
        grams[number], sides[number] = X[at].T @ weighted, weighted.T @ y[at]
    gram0, side0 = prior.gram(board.limit_w)
    rng = np.random.default_rng(seed)
    draws = np.tile(found, (max(count, 1), 1))
    for number in range(count if len(names) else 0):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)).astype(np.float64)
        draws[number] = solve(gram0 + np.tensordot(times, grams, 1), side0 + times @ sides)
    return Curve(float(found[1:].sum() * board.limit_w), shape_of(found), draws * board.limit_w), float(found[0] * board.limit_w)


def _design(rows: Rows, gain: Mapping[str, float]) -> np.ndarray:
    factors = np.ones(len(rows.kind))
    for kind in set(rows.kind):
        factors[rows.kind == kind] = gain.get(kind, 1.0)
    return design(rows.utilization, factors)


def _as_shape(draws: np.ndarray, shape: Shape) -> np.ndarray:
    """Draws of the same levels in another shape."""
    return np.column_stack([draws[:, 0], draws[:, 1:].sum(axis=1)[:, None] * np.asarray(shape.weights)])


def _gains(rows: Rows, curve: Curve, base_w: float, prior: Mapping[str, float]) -> dict[str, float]:
    """Factor of each class, the median of readings, pulled to the prior's as by ``GAIN_ROWS`` rows; classes of the prior without rows
    follow the others' scale."""
    ramped = curve.active_w * curve.shape(rows.utilization)
    ratio = (rows.watts - base_w) / np.maximum(ramped, 1e-6)
    own: dict[str, float] = {}
    for kind in sorted(set(rows.kind)):
        at = rows.kind == kind
        # Readings at little use say little of the factor.
        clear = at & (rows.utilization >= min(0.2, float(np.quantile(rows.utilization[at], 0.5))))
        count = float(clear.sum())
        own[str(kind)] = max((count * float(np.median(ratio[clear])) + GAIN_ROWS * prior.get(kind, 1.0)) / (count + GAIN_ROWS), 0.01)
    shared = [own[kind] / prior[kind] for kind in own if prior.get(kind, 0.0) > 0]
    scale = float(np.median(shared)) if shared else 1.0
    return {**{kind: value * scale for kind, value in prior.items()}, **own}


def _demand(model: DeviceFit, table: pd.DataFrame) -> np.ndarray:
    """Watts without a limit, ``[N]``."""
    out = np.empty(len(table))
    u, kinds = table["utilization"].to_numpy(), table["kind"].to_numpy(dtype=object)
    for kind in set(kinds):
        out[kinds == kind] = model.watts(u[kinds == kind], np.inf, str(kind), held=True)
    return out


def _cap(model: DeviceFit, table: pd.DataFrame, unused: np.ndarray) -> CapCurve:
    """The cap curve of readings under limits, if there are enough."""
    limits = table["limit_w"].to_numpy(dtype=np.float64)
    low = capped(limits, model.board) & ~unused
    if low.sum() < LEAST_CAP_ROWS:
        return model.cap
    return CapCurve.fit(_demand(model, table[low]), limits[low], table["power_w"].to_numpy()[low], model.cap)


def _relative(model: DeviceFit, table: pd.DataFrame) -> np.ndarray:
    """Watts / curve - 1 of each reading, ``[N]``."""
    unheld = (table["utilization"].to_numpy() <= IDLE_U) & ~table["held"].to_numpy(dtype=bool)
    level = np.where(unheld, model.idle_w, model.limited(_demand(model, table), table["limit_w"].to_numpy(dtype=np.float64)))
    return np.asarray(table["power_w"].to_numpy(dtype=np.float64) / np.maximum(level, 1e-9) - 1.0)


def _rest(rest: np.ndarray, utilization: np.ndarray) -> np.ndarray:
    """Quantiles of relative residuals ``[N]`` by utilisation bin; bins with few readings take those of all in use."""
    used = utilization > IDLE_U
    where, busy = u_bin(utilization), rest[used] if used.any() else rest
    out = np.empty((len(U_BINS) - 1, len(LEVELS)))
    for number in range(len(out)):
        own = rest[where == number]
        out[number] = conformal_quantiles(own if len(own) >= LEAST_BIN_ROWS else busy)
    return out


def conformal_quantiles(rest: np.ndarray) -> np.ndarray:
    """Quantiles ``LEVELS`` of ``[N]`` with the finite-sample step outward of split conformal prediction."""
    if not len(rest):
        return np.zeros(len(LEVELS))
    outward = np.array([np.clip(level + np.sign(level - 0.5) / (len(rest) + 1), 0.0, 1.0) for level in LEVELS])
    return np.quantile(rest, outward)


def fit_models(
    tables: Mapping[str, pd.DataFrame],
    boards: Mapping[str, Board],
    ratios: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> dict[str, DeviceFit]:
    """Fit all models: each alone, then each again with the shapes and the active share that the *others* have as its belief.

    Args:
        tables: model -> readings, as for `fit_device`.
        ratios: model -> class -> active watts relative to the mix's, believed where no reading's job is known.
    """
    ratios = ratios or {}
    alone = {name: fit_device(table, boards[name], Belief(ratios=ratios.get(name)), seed) for name, table in tables.items()}
    fitted = {}
    for name, table in tables.items():
        others = [fit for other, fit in alone.items() if other != name]
        linked = [fit for fit in others if sum(fit.class_rows.values()) >= LEAST_CLASS_ROWS]
        shares = [LIKELY_ACTIVE_SHARE, *(fit.mix.active_w / (fit.board.limit_w - fit.board.idle_w) for fit in others)]
        belief = Belief(
            pooled_shape([fit.mix.shape for fit in others], [fit.rows for fit in others]),
            pooled_shape([fit.classes.shape for fit in linked], [sum(fit.class_rows.values()) for fit in linked]),
            float(np.mean(shares)),
            ratios.get(name),
        )
        fitted[name] = fit_device(table, boards[name], belief, seed)
    return fitted
