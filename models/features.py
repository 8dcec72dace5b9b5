"""Features of the global learners: what is known at an issue time, relative to the last value and in units of the series' recent scale.

A row is a pair (issue row t, horizon step h). Everything in it is read at or before t: lags and window statistics end at t, and a value "k
seasons before the target" is read at t + h - k m with k m >= h. Only the rows asked for are computed, so that a forecast of 10,000 series
costs no more than their last windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property

import numpy as np

from models.series import NS_PER_DAY, Panel, forward_fill
from telemetry.errors import InputError

LAGS = (1, 2, 3, 4, 5, 6, 9, 12, 18, 24, 36, 48, 72)  # steps before the last value
MEAN_WINDOWS = (3, 6, 12, 18, 36, 72)
RANGE_WINDOWS = (6, 18)
ACTIVITY_WINDOWS = (3, 6, 18, 36)
SPREAD_WINDOWS = (6, 36)
SEASONS_BACK = 7
CALENDAR_COLUMNS = 4  # without holidays
SMOOTHING = 2  # neighbours on each side of a value of an earlier season
SEASON_POINTS = 144  # a longer season is read at this many points
CHUNK_ROWS = 16_384
PRIOR_STEPS = 6.0  # observed changes that weigh as much as the pooled scale


def scale_window(season_length: int, horizon: int) -> int:
    """Rows over which the scale of a series is measured: a week below daily frequencies, and enough for the horizon."""
    return max(SEASONS_BACK * season_length, 16 * horizon, 256)


def lookback(season_length: int, horizon: int) -> int:
    """Rows before an issue row that its features may read."""
    return scale_window(season_length, horizon) + SMOOTHING + 2  # which spans the seasons read back on, and whole seasons over the horizon


@dataclass(frozen=True)
class ScalePrior:
    """Typical change of a series of a family in units of its level, learned over all series: the scale of a series without history.

    ``by_family`` falls back on ``overall``.
    """

    overall: float = 0.0
    by_family: Mapping[str, float] | None = None

    def of(self, family: str) -> float:
        return (self.by_family or {}).get(family, self.overall)

    @classmethod
    def learn(cls, scales: np.ndarray, levels: np.ndarray, families: list[str]) -> ScalePrior:
        """From scale and level ``[N]`` of whole series; medians, so that one odd series does not set the others' intervals."""
        usable = (scales > 0) & (levels > 0)
        if not usable.any():
            return cls()
        ratios = np.where(usable, scales / np.where(levels > 0, levels, 1.0), np.nan)
        found = {f: ratios[[g == f for g in families]] for f in set(families)}
        return cls(
            float(np.median(ratios[usable])),
            {f: float(np.nanmedian(r)) for f, r in sorted(found.items()) if np.isfinite(r).any()},
        )


@dataclass(frozen=True)
class IssueTable:
    """Every grid row of every series, one series under the other (``R`` rows)."""

    values: np.ndarray  # [R], gaps forward-filled
    observed: np.ndarray  # [R], False where filled
    position: np.ndarray  # [R], row number within its series
    length: np.ndarray  # [R], rows of its series
    series: np.ndarray  # [R], series number
    scale: np.ndarray  # [R], 0 where the series has not moved within the window
    times_ns: np.ndarray  # [R]
    family: np.ndarray  # [R], number of the series' family, NaN for one unknown at fit
    covariates: np.ndarray  # [R, C], forward-filled, NaN before the first value
    season_length: int
    step_ns: int

    @property
    def first_rows(self) -> np.ndarray:
        """Row of the first value of each series ``[N]``."""
        return np.flatnonzero(self.position == 0)

    @property
    def unit(self) -> np.ndarray:
        """Scale to divide by ``[R]``: 1 where the series has not moved."""
        return np.where(self.scale > 0, self.scale, 1.0)


def trailing_scale(values: np.ndarray, horizon: int, window: int, prior: float | np.ndarray = 0.0) -> np.ndarray:
    """Mean absolute change over one, half and all steps of the horizon within the last ``window`` rows, at every row ``[..., T]``.

    Leans on ``prior`` times the mean level while few changes were seen; 0 for a series that has not moved for the whole horizon twice.

    Args:
        values: ``[..., T]`` without gaps.
        horizon: steps.
        window: rows looked back on.
        prior: typical change in units of the level, one number or ``[..., 1]``.
    """
    n = values.shape[-1]
    total, counted = np.zeros(values.shape), np.zeros(n)
    for h in sorted({1, max(1, horizon // 2), horizon}):
        if n > h:
            change = np.zeros(values.shape)
            change[..., h:] = np.abs(values[..., h:] - values[..., :-h])
            seen = np.minimum(np.maximum(np.arange(n) + 1 - h, 0), window)
            total += _windowed_sum(change, window) / np.maximum(seen, 1)
            counted += seen > 0
    own = total / np.maximum(counted, 1)
    own[own < 1e-9 * np.abs(values)] = 0.0  # what running sums leave of nothing
    rows = np.minimum(np.arange(n) + 1, window)
    level = _windowed_sum(np.abs(values), window) / rows
    weight = (rows - 1) / (rows - 1 + PRIOR_STEPS)
    blended = weight * own + (1.0 - weight) * prior * level
    return np.where((own == 0) & (rows > 2 * horizon), 0.0, blended)


def _windowed_sum(values: np.ndarray, window: int) -> np.ndarray:
    total = np.cumsum(values, axis=-1)
    out = total.copy()
    out[..., window:] -= total[..., :-window]
    return np.maximum(out, 0.0)


def trailing_scales(dense: list[np.ndarray], horizon: int, window: int, priors: np.ndarray) -> list[np.ndarray]:
    """:func:`trailing_scale` of each series, all at once where their lengths are alike."""
    lengths = [len(values) for values in dense]
    if len(dense) * max(lengths) > 2 * sum(lengths):
        return [trailing_scale(values, horizon, window, prior) for values, prior in zip(dense, priors, strict=True)]
    laid_out = np.stack([np.pad(values, (0, max(lengths) - len(values)), mode="edge") for values in dense])
    scales = trailing_scale(laid_out, horizon, window, priors[:, None])
    return [scale[:length] for scale, length in zip(scales, lengths, strict=True)]


def issue_table(
    panel: Panel,
    *,
    season_length: int,
    horizon: int,
    prior: ScalePrior | None = None,
    families: Mapping[str, int] | None = None,
    covariates: tuple[str, ...] = (),
) -> IssueTable:
    """Rows of ``panel`` with the scale known at each.

    Args:
        panel: series.
        season_length: steps in a season.
        horizon: steps.
        prior: scale of series without history.
        families: number of each family known at fit.
        covariates: names of the panel's covariates to carry, in this order; one that the panel lacks is NaN.
    """
    prior, families = prior or ScalePrior(), families or {}
    dense = [forward_fill(values) for values in panel.values]
    lengths = np.array([len(values) for values in dense])
    series = np.repeat(np.arange(len(panel)), lengths)
    window = scale_window(season_length, horizon)
    scale = trailing_scales(dense, horizon, window, np.array([prior.of(family) for family in panel.families]))
    columns = [np.concatenate([_known_so_far(panel.covariate(name, i)) for i in range(len(panel))]) for name in covariates]
    return IssueTable(
        values=np.concatenate(dense),
        observed=~np.isnan(np.concatenate(panel.values)),
        position=np.concatenate([np.arange(n) for n in lengths]),
        length=lengths[series],
        series=series,
        scale=np.concatenate(scale),
        times_ns=np.concatenate([panel.times_ns(i) for i in range(len(panel))]),
        family=np.array([families.get(f, np.nan) for f in panel.families])[series],
        covariates=np.column_stack(columns) if columns else np.empty((len(series), 0)),
        season_length=season_length,
        step_ns=panel.step_ns,
    )


def _known_so_far(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    place = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
    return np.where(place >= 0, values[np.maximum(place, 0)], np.nan)


def issue_features(table: IssueTable, rows: np.ndarray) -> np.ndarray:
    """What is known at issue rows ``[n]`` whatever the step, ``[n, F]`` float32; NaN before the series began."""
    parts = [_issue_chunk(table, rows[i : i + CHUNK_ROWS]) for i in range(0, len(rows), CHUNK_ROWS)]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


def _issue_chunk(table: IssueTable, rows: np.ndarray) -> np.ndarray:
    value, unit = table.values[rows], table.unit[rows]
    stride = max(1, table.season_length // SEASON_POINTS)
    recent = (_window(table, rows, np.arange(max(LAGS), -1, -1)) - value[:, None]) / unit[:, None]  # [n, 73]
    season = (_window(table, rows, stride * np.arange(max(table.season_length // stride, 1), -1, -1)) - value[:, None]) / unit[:, None]
    change = np.abs(np.diff(recent, axis=1))
    zero = -value / unit  # where 0 lies
    columns = [recent[:, -1 - k] for k in LAGS]
    columns += [_mean(recent[:, -k:]) for k in MEAN_WINDOWS]
    columns += [f(recent[:, -k:], axis=1) for k in RANGE_WINDOWS for f in (np.fmin.reduce, np.fmax.reduce)]
    columns += [_mean(change[:, -k:]) for k in ACTIVITY_WINDOWS]
    columns += [_spread(recent[:, -k:]) for k in SPREAD_WINDOWS]
    columns += [_mean(season), _spread(season), np.fmin.reduce(season, axis=1), np.fmax.reduce(season, axis=1)]
    columns += [_mean(np.abs(np.diff(season, axis=1))), _mean(np.where(np.isnan(season), np.nan, season == zero[:, None]))]
    columns += [np.log1p(_unchanged(recent)), -zero, np.log1p(table.position[rows]), table.family[rows]]
    for column in table.covariates.T:
        before = column[rows - np.minimum(6, table.position[rows])]
        columns += [column[rows], column[rows] / unit, (column[rows] - before) / unit]
    return np.column_stack(columns).astype(np.float32)


def _window(table: IssueTable, rows: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Values ``back`` rows before each of ``rows``, ``[n, W]``; NaN before the series began."""
    known = back[None, :] <= table.position[rows][:, None]
    return np.where(known, table.values[np.where(known, rows[:, None] - back[None, :], 0)], np.nan)


def _mean(window: np.ndarray) -> np.ndarray:
    known = ~np.isnan(window)
    return np.where(known, window, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def _spread(window: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(_mean(window**2) - _mean(window) ** 2, 0.0))


def _unchanged(recent: np.ndarray) -> np.ndarray:
    """Steps for which the value has stayed, ``[n]``, as far as the window reaches; ``recent [n, W]`` is relative to the last value."""
    moved = recent[:, ::-1] != 0.0
    return np.where(moved.any(axis=1), np.argmax(moved, axis=1), recent.shape[1])


def seasonal_features(table: IssueTable, rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Values, smoothed values and changes at the target's place in earlier seasons, ``[n, 16]``; NaN before the series began.

    Args:
        table: of the series.
        rows: ``[n]`` issue rows of the table.
        steps: ``[n]`` horizon steps, from 1.
    """
    m, value = table.season_length, table.values[rows]
    least = -(-steps // m)  # seasons back that make the target's counterpart known
    first = rows - table.position[rows]
    levels, smooth, changes = (np.empty((len(rows), SEASONS_BACK)) for _ in range(3))
    for k in range(1, SEASONS_BACK + 1):
        back = np.maximum(k, least) * m
        known = table.position[rows] >= back
        then = np.where(known, rows - back, rows)
        ahead = then + np.where(known, steps, 0)
        unit = np.where(known, table.unit[rows], np.nan)
        around = sum(table.values[np.clip(ahead + j, first, rows)] for j in range(-SMOOTHING, SMOOTHING + 1)) / (2 * SMOOTHING + 1)
        levels[:, k - 1] = (table.values[ahead] - value) / unit
        changes[:, k - 1] = (table.values[ahead] - table.values[then]) / unit
        smooth[:, k - 1] = (around - value) / unit
    singles = [part[:, k] for part in (levels, smooth, changes) for k in (0, 1, SEASONS_BACK - 1)]
    ends = [f(changes, axis=1) for f in (np.fmin.reduce, np.fmax.reduce)]
    return np.column_stack([*singles, _mean(levels), _mean(smooth), _mean(changes), _spread(changes), *ends, _median(smooth)])


def _median(part: np.ndarray) -> np.ndarray:
    """Median of the known values of each row; they fill a row from the left."""
    count = (~np.isnan(part)).sum(axis=1)
    ordered = np.sort(part, axis=1)  # NaN last
    low, high = np.maximum((count - 1) // 2, 0), np.maximum(count // 2, 0)
    place = np.arange(len(part))
    return np.where(count > 0, 0.5 * (ordered[place, low] + ordered[place, np.minimum(high, part.shape[1] - 1)]), np.nan)


def calendar_features(times_ns: np.ndarray, country: str | None = None) -> np.ndarray:
    """Time of day and day of week on circles, and whether the day is a public holiday of ``country``: ``[n, 4]`` or ``[n, 5]``."""
    day = 2 * np.pi * (times_ns % NS_PER_DAY) / NS_PER_DAY
    week = 2 * np.pi * ((times_ns // NS_PER_DAY) % 7) / 7
    columns = [np.sin(day), np.cos(day), np.sin(week), np.cos(week)]
    if country:
        days, place = np.unique(times_ns // NS_PER_DAY, return_inverse=True)
        columns.append(np.isin(days, holiday_days(country, int(days[0]), int(days[-1])))[place])
    return np.column_stack(columns)


def holiday_days(country: str, first: int, last: int) -> np.ndarray:
    """Public holidays of ``country`` (ISO 3166 code) from day ``first`` to ``last``, as days since 1970.

    Raises:
        InputError: unknown country.
    """
    import holidays

    epoch = date(1970, 1, 1)
    begin, end = epoch + timedelta(days=first), epoch + timedelta(days=last)
    try:
        calendar = holidays.country_holidays(country, years=range(begin.year, end.year + 1))
    except NotImplementedError as error:
        raise InputError(f"no holidays known for country {country!r}", where="country", allowed="an ISO 3166 code such as US") from error
    return np.array(sorted((day - epoch).days for day in calendar if begin <= day <= end), dtype=np.int64)


def pair_features(table: IssueTable, rows: np.ndarray, steps: np.ndarray, country: str | None = None) -> np.ndarray:
    """What depends on the step as well, of pairs (issue row, step): ``[n, G]`` float32."""
    target_ns = table.times_ns[rows] + steps * table.step_ns
    return np.column_stack([steps, calendar_features(target_ns, country), seasonal_features(table, rows, steps)]).astype(np.float32)


class Issues:
    """Issue rows with all steps of a horizon: what several learners read, computed once."""

    def __init__(self, table: IssueTable, at: np.ndarray, horizon: int, country: str | None = None) -> None:
        self.table, self.at, self.horizon, self.country = table, at, horizon, country

    def __len__(self) -> int:
        return len(self.at)

    @cached_property
    def known(self) -> np.ndarray:
        """What is known whatever the step, ``[n, F]``."""
        return issue_features(self.table, self.at)

    @cached_property
    def ahead(self) -> np.ndarray:
        """What depends on the step, ``[n, H, G]``."""
        steps = np.tile(np.arange(1, self.horizon + 1), len(self))
        return pair_features(self.table, np.repeat(self.at, self.horizon), steps, self.country).reshape(len(self), self.horizon, -1)

    @property
    def season(self) -> np.ndarray:
        """Scaled change to the value one season before each target, ``[n, H]``; NaN before the series has one."""
        return self.ahead[:, :, 1 + CALENDAR_COLUMNS + bool(self.country)].astype(np.float64)

    @property
    def actual(self) -> np.ndarray:
        """Values that followed, ``[n, H]``; NaN where not observed."""
        place = self.at[:, None] + np.arange(1, self.horizon + 1)
        inside = self.table.position[self.at][:, None] + np.arange(1, self.horizon + 1) < self.table.length[self.at][:, None]
        place = np.where(inside, place, self.at[:, None])
        return np.where(inside & self.table.observed[place], self.table.values[place], np.nan)

    def values(self, change: np.ndarray) -> np.ndarray:
        """Scaled changes ``[n, H, Q]`` as values."""
        return self.table.values[self.at][:, None, None] + self.table.scale[self.at][:, None, None] * change


def design_matrix(table: IssueTable, rows: np.ndarray, steps: np.ndarray, country: str | None = None) -> np.ndarray:
    """All features of pairs (issue row, step), ``[n, F + G]`` float32; rows may repeat."""
    unique, place = np.unique(rows, return_inverse=True)
    return np.column_stack([issue_features(table, unique)[place], pair_features(table, rows, steps, country)])
