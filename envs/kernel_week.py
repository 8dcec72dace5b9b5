"""Compiled forecast of the planner's rates from the last week (``price_forecast`` ``last_week``).

The rate of an hour to come is a mixture of that hour on the last day, over the last seven days, and a week before it; moved by half of what
the last day lies above the last week, and by what the present hour lies above its own mean of seven days, which fades. Weights and fading
are rounded from least squares on hourly price plus carbon at 100 USD a tonne of 2021 (CAISO, NYISO).
"""

from __future__ import annotations

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_power import HOUR_S
from envs.kernel_scores import DAY_S

DAYS = 7
OF_DAY, OF_MEAN, OF_WEEK = 0.3, 0.4, 0.3
OF_LEVEL, OF_NOW, KEPT_PER_HOUR = 0.5, 0.7, 0.8


@compiled
def _rate(c, row, column):
    return c.f[row + column + 1] - c.f[row + column]


@compiled
def _mean_of_days(c, row, column, day, days):
    """Mean of a column and of the same hour on the days before it, ``days`` in all."""
    total = 0.0
    for n in range(days):
        total += _rate(c, row, column - n * day)
    return total / days


@compiled
def _forecast(c, row, at, ahead, day, days):
    """Rate ``ahead`` columns after the present one, by the days before; fewer than seven where the table does not reach back."""
    column = at + ahead - (ahead + day - 1) // day * day  # the same hour of the last day that is known
    mean = _mean_of_days(c, row, column, day, min(days, column // day + 1))
    known = ahead <= DAYS * day <= at + ahead
    week = _rate(c, row, at + ahead - DAYS * day) if known else mean
    return OF_DAY * _rate(c, row, column) + OF_MEAN * mean + OF_WEEK * week


@compiled
def fill_week_rates(c, row, to):
    """Running sums of a rate over the slots from now on, in USD of a kilowatt: from ``row``, by column, to ``to``, by slot.

    Only columns up to the present one are read.
    """
    step_s, at, now = c.g[fx.STEP_S], c.i[fx.COLUMN], c.i[fx.TIME_S]
    day = DAY_S // step_s
    days = min(DAYS, (at + 1) // day)
    sums, moved = row + at + 1, 0.0
    level = OF_LEVEL * ((c.f[sums] - c.f[sums - day]) / day - (c.f[sums] - c.f[sums - days * day]) / (days * day))
    if at >= DAYS * day:
        moved = OF_NOW * (_rate(c, row, at) - _mean_of_days(c, row, at - day, day, DAYS))
    kept = KEPT_PER_HOUR ** (step_s / HOUR_S)
    left, ahead = step_s - now % step_s, 0
    total, value = 0.0, _rate(c, row, at)
    c.f[to] = 0.0
    for k in range(fx.N_SLOTS):
        rest = fx.SLOT_S
        while rest > 0:
            if left == 0:
                ahead += 1
                moved *= kept
                left = step_s
                value = _forecast(c, row, at, ahead, day, days) + level + moved
            part = min(rest, left)
            total += value * part / HOUR_S
            rest -= part
            left -= part
        c.f[to + k + 1] = total
