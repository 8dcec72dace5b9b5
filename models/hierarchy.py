"""Forecasts of parts and of their sums that agree with each other: GPU -> node -> pool -> site.

What is guaranteed, and what is not. Means and medians add up, each to 1e-6 of the largest value: a parent's is the sum of its children's,
and both lie within the physical bounds. The other quantiles do **not** add up, and must not: the sum of the nodes' q90 is what a site draws
when every node has its bad hour at once. They are quantiles of each series' own distribution; a parent's comes partly from its own
forecast and partly from sums of draws of its children that move together as they did in the past (an empirical copula).

One pass over the nine quantiles of all series at one time step:

1. parents, from the deepest up: quantile average of the own forecast and of the sum of the children's draws;
2. means reconciled by MinTrace (Wickramasuriya et al. 2019, ``hierarchicalforecast``); each distribution is stretched toward its new mean;
3. medians reconciled by the same projection; the other quantiles give way where they would cross.

In 2 and 3 leaves are clipped to their bounds, and what a parent has above its cap is taken from its leaves by their room above the floor.
``docs/forecasts_power.md`` has the measurements that chose each step over its alternatives.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from hierarchicalforecast.methods import MinTrace

from models.base import QUANTILE_COLUMNS, QUANTILES, monotone
from models.distribution import MIDDLE, mean_of, middle_scores, quantiles_of, values_at
from models.metrics import quantile_loss
from models.peaks import rank_scores, thinned
from telemetry.errors import InputError

COPULA_SHARES = (0.5, 0.25, 0.0)
DOUBT = 1e3  # times more variance of parts that are forecast worse than their whole
MOST_DRAWS = 200
CHUNK = 256
FEWEST_DRAWS = 20
SMALLEST_VARIANCE_SHARE = 1e-6
MOST_STRETCH = 0.5
MOST_SWEEPS, ROUNDING = 20, 1e-12
Bounds = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Hierarchy:
    """A forest of series: every parent is the sum of its children.

    Attributes:
        ids: parents before their children, children in the order of their parents, all parents before all leaves.
        parents: child -> parent, only among ``ids``.
        summing: ``[N, B]``, 1 where leaf b (row ``N - B + b``) is a part of series n.
        children: rows of the children of each parent row.
    """

    ids: tuple[str, ...]
    parents: dict[str, str]
    summing: np.ndarray = field(repr=False, compare=False)
    children: tuple[tuple[int, ...], ...] = field(repr=False, compare=False)

    @classmethod
    def of(cls, parents: Mapping[str, str], ids: Sequence[str] | None = None) -> Hierarchy:
        """The forest of a child -> parent mapping.

        Args:
            parents: what is part of what.
            ids: series that there are; a parent of which a child is missing is not the sum of the others, so it becomes a leaf and its
                children stand alone. None: all that the mapping names.

        Raises:
            InputError: a series that is a part of itself.
        """
        known = dict.fromkeys([*parents.values(), *parents] if ids is None else ids)
        broken = {parent for child, parent in parents.items() if child not in known}
        kept = {child: parent for child, parent in parents.items() if child in known and parent in known and parent not in broken}
        paths = {uid: _path(uid, kept) for uid in known}
        inner = set(kept.values())
        order = sorted(known, key=lambda uid: (uid not in inner, len(paths[uid]), paths[uid]))
        row = {uid: i for i, uid in enumerate(order)}
        leaves = [uid for uid in order if uid not in inner]
        summing = np.zeros((len(order), len(leaves)))
        for column, leaf in enumerate(leaves):
            at: str | None = leaf
            while at is not None:
                summing[row[at], column] = 1.0
                at = kept.get(at)
        below: list[list[int]] = [[] for _ in inner]
        for child, parent in kept.items():
            below[row[parent]].append(row[child])
        return cls(tuple(order), kept, summing, tuple(tuple(rows) for rows in below))

    @property
    def n_parents(self) -> int:
        """Series that are sums."""
        return len(self.children)

    @property
    def heights(self) -> np.ndarray:
        """How far above its deepest leaf each series is, ``[N]``; 0 for leaves."""
        heights = np.zeros(len(self.ids), dtype=np.int64)
        for k in range(self.n_parents - 1, -1, -1):
            heights[k] = 1 + heights[list(self.children[k])].max()
        return heights

    def by_height(self) -> list[list[int]]:
        """Rows of the parents, those right above leaves first."""
        heights = self.heights[: self.n_parents]
        return [list(np.flatnonzero(heights == height)) for height in range(1, int(heights.max(initial=0)) + 1)]

    def incoherence(self, values: np.ndarray) -> np.ndarray:
        """Parent minus the sum of its children, ``[..., n_parents]``, for ``values [..., N]``."""
        return np.stack([values[..., k] - values[..., list(rows)].sum(axis=-1) for k, rows in enumerate(self.children)], axis=-1)

    def limits(self, bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
        """Floors and caps ``[N]`` that can hold together: a parent's are no wider than the sums of its children's.

        Raises:
            InputError: the children's floors are above their parent's cap, or the other way round.
        """
        pairs = [bounds.get(uid, (None, None)) for uid in self.ids]
        floors = np.array([-np.inf if low is None else float(low) for low, _ in pairs])
        caps = np.array([np.inf if high is None else float(high) for _, high in pairs])
        for k in range(self.n_parents - 1, -1, -1):
            rows = list(self.children[k])
            low, high = max(floors[k], floors[rows].sum()), min(caps[k], caps[rows].sum())
            if low > high:
                raise InputError(
                    f"bounds of {self.ids[k]!r} are {floors[k]:g} to {caps[k]:g}, those of its parts add up to {floors[rows].sum():g} to "
                    f"{caps[rows].sum():g}",
                    where="bounds",
                    allowed="bounds that can hold together",
                )
            floors[k], caps[k] = low, high
        return floors, caps

    def projection(self, variances: np.ndarray) -> np.ndarray:
        """MinTrace ``[B, N]`` from forecasts of all series to coherent leaves, for variances ``[N]`` of their errors."""
        if not self.n_parents:
            return np.eye(len(self.ids))
        least = SMALLEST_VARIANCE_SHARE * max(float(np.max(variances)), 1e-12)
        scaled = np.maximum(variances, least) / float(np.max(np.maximum(variances, least)))
        errors = np.diag(np.sqrt(scaled * len(scaled)))  # errors whose mean squares are the variances
        model = MinTrace("wls_var")
        model.fit(S=self.summing, y_hat=np.zeros((len(scaled), 1)), y_insample=errors, y_hat_insample=np.zeros_like(errors))
        return np.asarray(model.P)

    def coherent(self, values: np.ndarray, projection: np.ndarray, floors: np.ndarray, caps: np.ndarray) -> np.ndarray:
        """Values ``[..., N]`` that add up and keep the bounds of :meth:`limits`, near the given ones by ``projection``."""
        first = self.n_parents
        low, high = floors[first:], caps[first:]
        leaves = np.clip(values @ projection.T, low, high)
        for _ in range(MOST_SWEEPS):
            kept = True
            for k in range(self.n_parents - 1, -1, -1):
                own = np.flatnonzero(self.summing[k])
                total = leaves[..., own].sum(axis=-1)
                excess = total - np.clip(total, floors[k], caps[k])
                if excess.any():
                    kept = kept and bool(np.abs(excess).max() <= ROUNDING * np.abs(total).max())
                    leaves[..., own] = _shared_out(leaves[..., own], excess, low[own], high[own])
            if kept:
                break
        return leaves @ self.summing.T


def _shared_out(leaves: np.ndarray, excess: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Leaves ``[..., b]`` with ``excess [...]`` (negative: a lack) taken from their sum, from each by its share of the room."""
    over = excess[..., None] > 0
    room = np.where(over, leaves - low, high - leaves)
    open_ended = np.isinf(room)
    weight = np.where(open_ended.any(axis=-1, keepdims=True), open_ended.astype(float), np.where(open_ended, 0.0, room))
    total = weight.sum(axis=-1, keepdims=True)
    return leaves - excess[..., None] * np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)


def _path(uid: str, parents: Mapping[str, str]) -> tuple[str, ...]:
    """From the root down to ``uid``."""
    seen = [uid]
    while seen[-1] in parents:
        if parents[seen[-1]] in seen:
            raise InputError(f"{uid!r} is a part of itself", where="hierarchy", allowed="a forest")
        seen.append(parents[seen[-1]])
    return tuple(reversed(seen))


@dataclass(frozen=True)
class Reconciler:
    """What makes forecasts of all levels agree.

    Attributes:
        parents: child -> parent.
        bounds: ``{unique_id: (floor, cap)}``.
        scores: normal scores ``[D]`` of past times by series: how series move together. Empty without enough of them.
        shares: by series that is a sum, how much of its quantiles is taken from its children's draws.
    """

    parents: dict[str, str]
    bounds: dict[str, Sequence[float | None]]
    scores: dict[str, np.ndarray]
    shares: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fit(cls, forecasts: pd.DataFrame, parents: Mapping[str, str], bounds: Bounds | None = None) -> Reconciler:
        """How series move together, and how far their sums are to be trusted, from past forecasts with ``y``.

        The share of the children's draws is the one of ``COPULA_SHARES`` that lost least, summed over all parents at the same height
        (nodes of GPUs, pools of nodes, ...): parts that are forecast worse than their whole do not spoil it.

        Args:
            forecasts: ``unique_id, ds, origin, q10 ... q90, y``.
        """
        known = forecasts.dropna(subset=["y"])
        quantiles, y = known[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64), known["y"].to_numpy(dtype=np.float64)
        ids, rows, _ = _row_matrix(known)
        seen = (rows >= 0).sum(axis=0) >= FEWEST_DRAWS
        scores: dict[str, np.ndarray] = {}
        if seen.any():
            drawn = np.random.default_rng(0).standard_normal(rows.shape)  # a missing cell moves by itself
            drawn = np.where(rows >= 0, middle_scores(quantiles, y)[rows], drawn)
            ranked = rank_scores(thinned(drawn[:, seen], MOST_DRAWS))
            scores = {str(uid): ranked[:, k] for k, uid in enumerate(ids[seen])}
        fitted = cls(dict(parents), dict(bounds or {}), scores)
        return cls(fitted.parents, fitted.bounds, scores, fitted._learned_shares(ids, rows, quantiles, y))

    def _learned_shares(self, ids: np.ndarray, rows: np.ndarray, quantiles: np.ndarray, y: np.ndarray) -> dict[str, float]:
        """Share of each parent, from the deepest up; only times at which all series are known are looked at."""
        hierarchy = Hierarchy.of(self.parents, [str(uid) for uid in ids])
        column = {uid: k for k, uid in enumerate(ids)}
        whole = rows[(rows >= 0).all(axis=1)][:, [column[uid] for uid in hierarchy.ids]]
        if len(whole) < FEWEST_DRAWS or not self.scores:
            return {}
        table, came = quantiles[whole].copy(), y[whole]  # [T, N, Q], [T, N]
        shares: dict[str, float] = {}
        for parents in hierarchy.by_height():
            summed = np.stack([self._summed(hierarchy, table, k) for k in parents], axis=1)  # [T, p, Q]
            losses = [
                quantile_loss(came[:, parents].ravel(), _mixed(share, summed, table[:, parents]).reshape(-1, len(QUANTILES))).sum()
                for share in COPULA_SHARES
            ]
            best = COPULA_SHARES[int(np.argmin(losses))]
            table[:, parents] = _mixed(best, summed, table[:, parents])
            shares |= {hierarchy.ids[k]: best for k in parents}
        return shares

    def apply(self, forecasts: pd.DataFrame) -> pd.DataFrame:
        """Coherent forecasts.

        Args:
            forecasts: ``unique_id, ds, q10 ... q90``, other columns are kept; ``origin`` tells issues apart where there are several.

        Returns:
            The same rows in the same order, with new quantiles and ``mean``. A parent is bound to its children at those times at which all
            of them have a forecast.

        Raises:
            InputError: two forecasts of one series for one time and origin.
        """
        out = forecasts.reset_index(drop=True)
        ids, rows, issue = _row_matrix(out)
        column = {uid: k for k, uid in enumerate(ids)}
        patterns, place = np.unique(rows >= 0, axis=0, return_inverse=True)
        values = out[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64)
        new, means = values.copy(), np.empty(len(out))
        for number, present in enumerate(patterns):
            hierarchy = Hierarchy.of(self.parents, list(ids[present]))
            order = [column[uid] for uid in hierarchy.ids]
            for at in np.unique(issue[place == number]):
                picked = rows[(place == number) & (issue == at)][:, order]  # [T, N]
                new[picked], means[picked] = self.reconcile(hierarchy, values[picked])
        out[list(QUANTILE_COLUMNS)] = new
        out["mean"] = means
        return out

    def reconcile(self, hierarchy: Hierarchy, quantiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coherent forecasts of one issue.

        Variances for MinTrace are those that the forecasts themselves claim, on average over the issue: a series that is sure of its
        value stays where it is, and the doubtful ones give way.

        Args:
            quantiles: ``[T, N, Q]`` in the order of ``hierarchy.ids``.

        Returns:
            Quantiles ``[T, N, Q]`` and means ``[T, N]``.
        """
        floors, caps = hierarchy.limits(self.bounds)
        low, high = floors[:, None], caps[:, None]
        mixed = np.clip(self._with_copula(hierarchy, quantiles), low, high)
        projection = hierarchy.projection(np.mean((mixed[..., -1] - mixed[..., 0]) ** 2, axis=0) * self._doubts(hierarchy))
        means = hierarchy.coherent(mean_of(mixed), projection, floors, caps)
        moved = np.clip(monotone(_toward_mean(mixed, means)), low, high)
        medians = hierarchy.coherent(moved[..., MIDDLE], projection, floors, caps)[..., None]
        moved[..., :MIDDLE] = np.minimum(moved[..., :MIDDLE], medians)
        moved[..., MIDDLE + 1 :] = np.maximum(moved[..., MIDDLE + 1 :], medians)
        moved[..., MIDDLE] = medians[..., 0]
        return moved, means

    def _doubts(self, hierarchy: Hierarchy) -> np.ndarray:
        """Factors on the variances ``[N]``: below a parent that takes nothing from its parts, the parts give way to it."""
        doubts = np.ones(len(hierarchy.ids))
        for k, rows in enumerate(hierarchy.children):
            doubts[list(rows)] = doubts[k] * (DOUBT if self.shares.get(hierarchy.ids[k]) == 0.0 else 1.0)
        return doubts

    def _scores_of(self, uid: str, count: int) -> np.ndarray:
        """Scores of one series; one that the past windows did not hold moves by itself."""
        if uid in self.scores:
            return self.scores[uid]
        draws = np.random.default_rng(zlib.crc32(uid.encode())).standard_normal(count)
        return rank_scores(draws)

    def _with_copula(self, hierarchy: Hierarchy, quantiles: np.ndarray) -> np.ndarray:
        """Parents averaged with the sum of their children's draws; as they are where no dependence was learned."""
        if not self.scores or not hierarchy.n_parents:
            return quantiles
        mixed = quantiles.copy()
        for k in range(hierarchy.n_parents - 1, -1, -1):
            share = self.shares.get(hierarchy.ids[k], COPULA_SHARES[0])
            if share:
                mixed[:, k] = _mixed(share, self._summed(hierarchy, mixed, k), mixed[:, k])
        return mixed

    def _summed(self, hierarchy: Hierarchy, quantiles: np.ndarray, parent: int) -> np.ndarray:
        """Quantiles ``[T, Q]`` of the sum of a parent's children, drawn together by the ranks of past errors."""
        rows, count = list(hierarchy.children[parent]), len(next(iter(self.scores.values())))
        scores = np.stack([self._scores_of(hierarchy.ids[row], count) for row in rows])  # [C, D]
        out = np.empty((len(quantiles), len(QUANTILES)))
        for begin in range(0, len(quantiles), CHUNK):
            part = slice(begin, begin + CHUNK)
            out[part] = quantiles_of(values_at(quantiles[part][:, rows], scores).sum(axis=1))
        return out

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        return {
            "parents": self.parents,
            "bounds": {uid: list(pair) for uid, pair in self.bounds.items()},
            "scores": {uid: values.tolist() for uid, values in self.scores.items()},
            "shares": self.shares,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, dict]) -> Reconciler:
        """What :meth:`to_json` gave."""
        scores = {uid: np.array(values) for uid, values in stored["scores"].items()}
        return cls(dict(stored["parents"]), dict(stored["bounds"]), scores, dict(stored["shares"]))


def _mixed(share: float, summed: np.ndarray, own: np.ndarray) -> np.ndarray:
    return share * summed + (1.0 - share) * own


def _toward_mean(quantiles: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Quantiles ``[..., Q]`` moved half way toward ``means [...]``: the half on that side of the median is stretched, by ``MOST_STRETCH``
    at most.

    Nothing is shifted, so an atom (a GPU that idles, most of the time) stays where it is; half way, because stretching also widens.
    """
    shift = 0.5 * (means - mean_of(quantiles))[..., None]
    away = quantiles - quantiles[..., MIDDLE, None]
    away = np.where(shift > 0, np.maximum(away, 0.0), np.minimum(away, 0.0))
    reach = mean_of(away)[..., None]  # what the mean moves by when this half becomes twice as wide
    return quantiles + np.clip(np.divide(shift, reach, out=np.zeros_like(shift), where=reach != 0), 0.0, MOST_STRETCH) * away


def _row_matrix(forecasts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Series ids ``[N]``, the row number of each at each issue and time ``[T, N]`` (-1: none), and the issue's number ``[T]``."""
    keys = pd.DataFrame({"origin": forecasts["origin"].to_numpy() if "origin" in forecasts else 0, "ds": forecasts["ds"].to_numpy()})
    time = keys.groupby(["origin", "ds"], sort=False).ngroup().to_numpy()
    series, ids = pd.factorize(forecasts["unique_id"].to_numpy(dtype=object), sort=True)
    rows = np.full((int(time.max(initial=-1)) + 1, len(ids)), -1, dtype=np.int64)
    rows[time, series] = np.arange(len(forecasts))
    if (rows >= 0).sum() < len(forecasts):
        raise InputError("two forecasts of one series for one time", where="reconciliation", remedy="give an origin column, one per issue")
    issue = np.zeros(len(rows), dtype=np.int64)
    issue[time] = pd.factorize(keys["origin"])[0]
    return ids, rows, issue


def parents_of_places(places: pd.DataFrame, ids: Sequence[str]) -> dict[str, str]:
    """Child -> parent of power series by an inventory ``node, pool, site`` (empty = not known) and by name.

    ``power/node/NAME`` belongs to ``power/pool/POOL``, else to ``power/site/SITE``; a pool to the site of all its nodes;
    ``power/gpu/NODE/DEVICE`` and ``power/host/NODE`` (the node without its GPUs) to ``power/node/NODE``.
    """
    known = set(ids)
    parents: dict[str, str] = {}
    for pool, names in places[places["pool"] != ""].groupby("pool")["site"].unique().items():
        if len(names) == 1:
            parents[f"power/pool/{pool}"] = f"power/site/{names[0]}"
    for node, pool, site in places[["node", "pool", "site"]].drop_duplicates("node").itertuples(index=False):
        parents[f"power/node/{node}"] = f"power/pool/{pool}" if pool else f"power/site/{site}"
    for uid in known:
        parts = uid.split("/")
        if parts[:2] in (["power", "gpu"], ["power", "host"]) and len(parts) > 2:
            parents[uid] = f"power/node/{parts[2]}"
    return {child: parent for child, parent in parents.items() if child in known and parent in known}
