"""What another policy's answers would have cost, from the log of one that acted: off-policy estimates, their intervals, and a refusal.

The *estimand* is the mean cost of a decision, over the questions that the logging policy met, if this one answer were the target's and
everything before and after stayed the logging policy's; ``difference`` is that less what was logged. It is first order in the change of
policy: a target that is followed throughout meets other questions, which no log of single decisions shows (docs/shadow.md measures by how
much that differs). A window in which one policy was drawn for the whole of it is one decision here, and its estimate is of the policy
followed throughout.

| estimate | of a decision with weight w = target's / logging policy's probability of the answer | |
|---|---|---|
| ``dm`` | sum_a target(a) q(x, a) | direct model alone |
| ``ips`` | w c | Horvitz and Thompson 1952 |
| ``snips`` | w c / mean w | Swaminathan and Joachims 2015 |
| ``dr`` | dm + w (c - q(x, taken)) | Dudik, Langford and Li 2011 |
| ``switch_dr`` | as dr where w <= ``switch_weight``, else dm | Wang, Agarwal and Dudik 2017 |

q is cross-fitted: a cluster's decisions are predicted by a model that has not seen the cluster. Decisions of one cluster (a day, a window)
depend on each other; intervals resample or linearise over whole clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from telemetry.errors import InputError

ESTIMATES: tuple[str, ...] = ("dm", "ips", "snips", "dr", "switch_dr")
FOLDS = 5
SUM_TOLERANCE = 1e-6
CLIPPED = 0.03


class NoOverlapError(RuntimeError):
    """The log cannot say what the target would have cost; the message says why."""


@dataclass(frozen=True)
class LoggedDecisions:
    """N decisions with A answers each.

    Attributes:
        propensities: of the logging policy, float64 ``[N, A]``; rows sum to 1.
        action: the answer given, int64 ``[N]``.
        cost_usd: of the decision, float64 ``[N]``.
        cluster: which decisions depend on each other, int64 ``[N]``.
        features: what is known of each answer when it is given, float ``[N, A, F]``.
        scale_usd: how large costs of each decision are, as known when it is taken, float64 ``[N]``; None = all alike.
        size: what estimates are a mean over, above 0, float64 ``[N]``: USD a decision (None, 1 each), or a job or GPU-hour of a decision on
            a whole day. It must not depend on the answer.

    Raises:
        InputError: shapes that do not go together, propensities that are none, or an answer that had none.
    """

    propensities: np.ndarray
    action: np.ndarray
    cost_usd: np.ndarray
    cluster: np.ndarray
    features: np.ndarray
    scale_usd: np.ndarray | None = None
    size: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, answers = self.propensities.shape
        shapes = {name: getattr(self, name).shape for name in ("action", "cost_usd", "cluster")}
        if any(shape != (n,) for shape in shapes.values()) or self.features.shape[:2] != (n, answers) or n == 0:
            raise InputError(f"{n} x {answers} propensities with {shapes}, features {self.features.shape}", where="logged decisions")
        wrong = np.flatnonzero(~(np.abs(self.propensities.sum(axis=1) - 1) <= SUM_TOLERANCE) | (self.propensities < 0).any(axis=1))
        if len(wrong):
            raise InputError(
                f"propensities {self.propensities[wrong[0]].tolist()}", where=f"decision {wrong[0]}", allowed="from 0, with sum 1"
            )
        never = np.flatnonzero(self.taken <= 0)
        if len(never):
            raise InputError(f"answer {self.action[never[0]]} had propensity 0", where=f"decision {never[0]}", allowed="above 0")
        if not np.isfinite(self.cost_usd).all():
            raise InputError("a cost that is not finite", where=f"decision {np.flatnonzero(~np.isfinite(self.cost_usd))[0]}")

    @property
    def taken(self) -> np.ndarray:
        """Propensity of the answer given, float64 ``[N]``."""
        return self.propensities[np.arange(len(self.action)), self.action]

    @property
    def clusters(self) -> int:
        return len(np.unique(self.cluster))

    @property
    def sizes(self) -> np.ndarray:
        """``size``, or 1 each, float64 ``[N]``."""
        return np.ones(len(self.action)) if self.size is None else np.asarray(self.size, dtype=np.float64)


@dataclass(frozen=True)
class Interval:
    """An estimate in USD with its interval."""

    mean: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class OverlapLimits:
    """When a log is refused.

    Attributes:
        unlogged: most of the target's probability that may lie on answers the logging policy never gave.
        effective_share: least effective sample size, as a share of the decisions.
        effective: least effective sample size.
        largest: most that one decision may weigh, as a share of all weights.
        clusters: fewest clusters.
        balance: standard errors (over clusters) by which the mean weight may differ from 1, which it is for true propensities.
    """

    unlogged: float = 0.01
    effective_share: float = 0.02
    effective: float = 100.0
    largest: float = 0.05
    clusters: int = 10
    balance: float = 5.0


@dataclass(frozen=True)
class Overlap:
    """How far the log covers a target.

    Attributes:
        decisions, clusters: in the log.
        effective: effective sample size, (sum w)^2 / sum w^2 (Kish 1965).
        largest_weight, largest_share: of one decision.
        unlogged: mean probability that the target gives to answers of propensity 0.
        mean_weight, mean_weight_se: 1 when the propensities are those that acted.
        agreement: mean probability that the target gives to the answer that was given.
        refusals: why nothing can be concluded; empty = it can.
    """

    decisions: int
    clusters: int
    effective: float
    largest_weight: float
    largest_share: float
    unlogged: float
    mean_weight: float
    mean_weight_se: float
    agreement: float
    refusals: tuple[str, ...]

    @property
    def effective_share(self) -> float:
        return self.effective / self.decisions


@dataclass(frozen=True)
class Evaluation:
    """Estimates of one target.

    Attributes:
        value, difference: by ``ESTIMATES``, USD a decision; the difference is to what was logged.
        logged: mean cost as logged.
    """

    overlap: Overlap
    logged: Interval
    value: dict[str, Interval] = field(default_factory=dict)
    difference: dict[str, Interval] = field(default_factory=dict)


def weights_of(log: LoggedDecisions, target: np.ndarray) -> np.ndarray:
    """Importance weights float64 ``[N]`` of a target's probabilities ``[N, A]``."""
    rows = np.arange(len(log.action))
    return np.asarray(target[rows, log.action] / log.taken)


def overlap_of(log: LoggedDecisions, target: np.ndarray, limits: OverlapLimits | None = None) -> Overlap:
    """Whether the log covers the target whose probabilities are float64 ``[N, A]``."""
    limits, n = limits or OverlapLimits(), len(log.action)
    if target.shape != log.propensities.shape or not (np.abs(target.sum(axis=1) - 1) <= SUM_TOLERANCE).all():
        raise InputError(f"target probabilities {target.shape}", where="overlap", allowed=f"{log.propensities.shape}, rows with sum 1")
    w = weights_of(log, target)
    total = float(w.sum())
    effective = total**2 / float((w**2).sum()) if total > 0 else 0.0
    unlogged = float(np.where(log.propensities > 0, 0.0, target).sum() / n)
    largest = float(w.max() / total) if total > 0 else 1.0
    g = log.clusters
    _, se = _ratio(_sums(log, w[:, None]), _sums(log, np.ones((n, 1))))
    mean_se = float(se[0])
    agreement = float(target[np.arange(n), log.action].mean())
    reasons = []
    if unlogged > limits.unlogged:
        never = f"{unlogged:.1%} of the target's answers were never given by the logging policy, allowed are {limits.unlogged:.1%}"
        reasons.append(never + (" (it never explored)" if (log.propensities.max(axis=1) >= 1 - SUM_TOLERANCE).all() else ""))
    if effective < limits.effective_share * n:
        reasons.append(f"the effective sample is {effective / n:.2%} of the decisions, asked for are {limits.effective_share:.2%}")
    if effective < limits.effective:
        reasons.append(f"the effective sample is {effective:.0f} decisions, asked for are {limits.effective:.0f}")
    if largest > limits.largest:
        reasons.append(f"one decision has {largest:.1%} of all weight, allowed are {limits.largest:.1%}")
    if g < limits.clusters:
        reasons.append(f"{g} independent windows, asked for are {limits.clusters}")
    if unlogged <= limits.unlogged and mean_se > 0 and abs(total / n + unlogged - 1) > limits.balance * mean_se:
        reasons.append(f"weights average {total / n:.3f} ± {mean_se:.3f}, not 1: the logged propensities are not those that acted")
    return Overlap(n, g, effective, float(w.max()), largest, unlogged, total / n, mean_se, agreement, tuple(reasons))


def direct_model(log: LoggedDecisions, kind: str = "lightgbm", *, folds: int = FOLDS, seed: int = 0) -> np.ndarray:
    """Predicted costs of every answer, float64 ``[N, A]``, each cluster by a model of the others; USD.

    The model learns cost over ``scale_usd`` from the features of the answer given, weighted by the scale's square (so that what it
    minimises is in USD), with ratios beyond their ``CLIPPED`` and 1 - ``CLIPPED`` quantiles pulled in: a few late jobs would bend it
    otherwise.

    Raises:
        InputError: an unknown kind, or fewer than two clusters.
    """
    if kind not in ("lightgbm", "ridge", "none"):
        raise InputError(f"direct model '{kind}'", where="off-policy", allowed="lightgbm, ridge, none")
    n, answers, width = log.features.shape
    predicted = np.zeros((n, answers))
    if kind == "none":
        return predicted
    names = np.unique(log.cluster)
    if len(names) < 2:
        raise InputError("one cluster", where="off-policy, direct model", allowed="at least 2", remedy="model=none, or a longer log")
    scale = np.ones(n) if log.scale_usd is None else np.maximum(np.abs(log.scale_usd), 1e-9)
    taken = log.features[np.arange(n), log.action].astype(np.float64)
    order = np.random.default_rng(seed).permutation(names)
    for held in np.array_split(order, min(folds, len(names))):
        test = np.isin(log.cluster, held)
        ratio = log.cost_usd[~test] / scale[~test]
        ratio = np.clip(ratio, *np.quantile(ratio, [CLIPPED, 1 - CLIPPED]))
        fit = _fitted(kind, taken[~test], ratio, scale[~test] ** 2, seed)
        predicted[test] = fit(log.features[test].reshape(-1, width).astype(np.float64)).reshape(-1, answers) * scale[test, None]
    return predicted


def evaluate_target(
    log: LoggedDecisions,
    target: np.ndarray,
    predicted: np.ndarray,
    *,
    limits: OverlapLimits | None = None,
    switch_weight: float = 10.0,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
    refuse: bool = True,
) -> Evaluation:
    """Estimates of the target whose probabilities are float64 ``[N, A]``.

    Args:
        predicted: of :func:`direct_model`.
        samples: of the cluster bootstrap; 0 = linearised intervals only.
        refuse: raise where there is no overlap, else say so in ``overlap.refusals``.

    Raises:
        NoOverlapError: the log does not cover the target.
    """
    overlap = overlap_of(log, target, limits)
    if overlap.refusals and refuse:
        raise NoOverlapError("no overlap: " + "; ".join(overlap.refusals))
    rows, w, cost = np.arange(len(log.action)), weights_of(log, target), log.cost_usd
    plan = (target * predicted).sum(axis=1)
    correction = w * (cost - predicted[rows, log.action])
    columns = {
        "dm": plan,
        "ips": w * cost,
        "snips": w * cost,
        "dr": plan + correction,
        "switch_dr": plan + np.where(w <= switch_weight, correction, 0.0),
    }
    sums = _sums(log, np.column_stack([*columns.values(), cost, w * log.sizes, log.sizes]))
    below = np.column_stack([sums[:, -2] if name == "snips" else sums[:, -1] for name in (*columns, "logged")])
    intervals = _intervals(sums[:, : len(columns) + 1], below, sums[:, -1], level, samples, seed)
    names = [*columns, "logged"]
    return Evaluation(
        overlap,
        intervals[0][names.index("logged")],
        {name: intervals[0][names.index(name)] for name in columns},
        {name: intervals[1][names.index(name)] for name in columns},
    )


def compare_answers(
    log: LoggedDecisions, predicted: np.ndarray, one: int, other: int, *, level: float = 0.95, samples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Cost of answer ``one`` less that of ``other``, for answers that are whole policies drawn by chance: ``snips`` and ``dr``."""
    columns, sizes = [], []
    for answer in (one, other):
        hit = (log.action == answer) / log.propensities[:, answer]
        columns += [hit * log.cost_usd, predicted[:, answer] + hit * (log.cost_usd - predicted[:, answer])]
        sizes += [hit * log.sizes, log.sizes]
    above, below = _sums(log, np.column_stack(columns)), _sums(log, np.column_stack(sizes))
    found = {}
    for at, name in enumerate(("snips", "dr")):
        pair = [at, at + 2]  # differences are to the last column
        _, gaps = _intervals(above[:, pair], below[:, pair], below[:, 3], level, samples, seed)
        found[name] = gaps[0]
    return found


# ---------------------------------------------------------------- intervals


def _sums(log: LoggedDecisions, columns: np.ndarray) -> np.ndarray:
    """Sums of columns ``[N, K]`` over each cluster, ``[G, K]``."""
    _, place = np.unique(log.cluster, return_inverse=True)
    sums = np.zeros((int(place.max()) + 1, columns.shape[1]))
    np.add.at(sums, place, columns)
    return sums


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ratios of the sums of cluster sums ``[G, K]`` and their linearised standard errors ``[K]`` (Cochran 1977, ratio of totals)."""
    g, bottom = len(above), below.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = above.sum(axis=0) / bottom
        residual = (above - ratio * below) / bottom
    spread = np.sqrt(g / max(g - 1, 1) * (residual**2).sum(axis=0)) if g > 1 else np.full(above.shape[1], np.inf)
    return ratio, spread


def effective_clusters(sizes: np.ndarray) -> float:
    """How many clusters of one size are as good as those of ``sizes`` ``[G]``: the worst case of Carter, Schnepel and Steigerwald 2017."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _intervals(
    above: np.ndarray, below: np.ndarray, sizes: np.ndarray, level: float, samples: int, seed: int
) -> tuple[list[Interval], list[Interval]]:
    """Intervals of each ratio and of its difference to the last one (the logged mean), over clusters.

    The wider of two on each side: the linearised one with Student's t of as many degrees as there are effective clusters less 1 (a crowded
    day among thirty leaves few of them), and the percentiles of a cluster bootstrap (Cameron, Gelbach and Miller 2008), which follow the
    skewness of costs.
    """
    g, k = above.shape
    ratio, se = _ratio(above, below)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (above - ratio * below) / below.sum(axis=0)
    gap = scaled - scaled[:, -1:]
    gap_se = np.sqrt(g / max(g - 1, 1) * (gap**2).sum(axis=0)) if g > 1 else np.full(k, np.inf)
    t = float(stats.t.ppf(0.5 + level / 2, max(effective_clusters(sizes) - 1, 1.0)))
    low, high = ratio - t * se, ratio + t * se
    difference = ratio - ratio[-1]
    gap_low, gap_high = difference - t * gap_se, difference + t * gap_se
    if samples and g > 1:
        counts = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), samples)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (counts @ above) / (counts @ below)
        tails = [100 * (0.5 - level / 2), 100 * (0.5 + level / 2)]
        edges = np.nanpercentile(drawn, tails, axis=0)
        gap_edges = np.nanpercentile(drawn - drawn[:, -1:], tails, axis=0)
        low, high = np.minimum(low, edges[0]), np.maximum(high, edges[1])
        gap_low, gap_high = np.minimum(gap_low, gap_edges[0]), np.maximum(gap_high, gap_edges[1])
    values = [Interval(float(ratio[at]), float(low[at]), float(high[at])) for at in range(k)]
    return values, [Interval(float(difference[at]), float(gap_low[at]), float(gap_high[at])) for at in range(k)]


# ---------------------------------------------------------------- direct models


def _fitted(kind: str, x: np.ndarray, y: np.ndarray, weight: np.ndarray, seed: int):
    if kind == "ridge":
        return _ridge(x, y, weight)
    import lightgbm

    model = lightgbm.LGBMRegressor(
        n_estimators=120, learning_rate=0.06, num_leaves=15, min_child_samples=30, subsample=0.8, subsample_freq=1, colsample_bytree=0.7,
        n_jobs=1, random_state=seed, verbose=-1,
    )  # fmt: skip
    return model.fit(x, y, sample_weight=weight).predict


def _ridge(x: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: float = 1e-3):
    """Weighted ridge on standardised features; the penalty is a share of their total weight."""
    share = weight / weight.sum()
    mean, spread = share @ x, np.sqrt(np.maximum(share @ (x - share @ x) ** 2, 1e-12))
    z, level = (x - mean) / spread, float(share @ y)
    slope = np.linalg.solve((z * share[:, None]).T @ z + penalty * np.eye(x.shape[1]), (z * share[:, None]).T @ (y - level))
    return lambda rows: (rows - mean) / spread @ slope + level
