"""Price, carbon intensity, renewable share and temperature of two synthetic sites, hourly.

West is shaped like a system with much solar: a midday trough and a steep evening ramp in price and carbon (the duck curve).
East is a windier one: cheap nights, spells of wind that last days. The shapes are ours; no row is taken from a real system.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from envs.sample.settings import DAY_S, PRICE_EVENT, WIND_LULL, SampleSettings, local_hour, local_weekday
from envs.sample.workload import slow_noise

HISTORY_DAYS = 7
TAIL_DAYS = 7


def make_grid(settings: SampleSettings) -> pd.DataFrame:
    """The canonical grid table from 7 days before the period to 7 days after it, for windows that need history and run-out."""
    rng = settings.rng("grid")
    second = np.arange(-HISTORY_DAYS * 24, (settings.days + TAIL_DAYS) * 24) * 3600
    time = settings.start_time + pd.to_timedelta(second, unit="s")
    frames = [_west(rng, second, settings), _east(rng, second, settings)]
    for name, frame in zip(("west", "east"), frames, strict=True):
        frame.insert(0, "site", name)
        frame.insert(0, "time", time)
    table = pd.concat(frames).sort_values(["time", "site"], kind="stable").reset_index(drop=True)
    return table.round({"price_usd_per_kwh": 5, "carbon_g_per_kwh": 1, "renewable_fraction": 3, "temperature_c": 1})


def _bump(hour: np.ndarray, peak_h: float, width_h: float) -> np.ndarray:
    return np.exp(-0.5 * (((hour - peak_h + 12) % 24 - 12) / width_h) ** 2)


def _daily(rng: np.random.Generator, second: np.ndarray, rho: float, sigma: float) -> np.ndarray:
    """One AR(1) value a day, linear in between: weather that lasts."""
    days = int((second[-1] - second[0]) // DAY_S) + 2
    return np.interp((second - second[0]) / DAY_S, np.arange(days), slow_noise(rng, days, rho, sigma))


def _event(second: np.ndarray, settings: SampleSettings, event: tuple[str, str, str]) -> np.ndarray:
    return (second >= settings.second_of(event[1])) & (second < settings.second_of(event[2]))


def _frame(price: np.ndarray, carbon: np.ndarray, renewable: np.ndarray, temperature: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "price_usd_per_kwh": np.clip(price, -0.03, 1.2),
            "carbon_g_per_kwh": np.clip(carbon, 15, 900),
            "renewable_fraction": np.clip(renewable, 0.0, 1.0),
            "temperature_c": temperature,
        }
    )


def _west(rng: np.random.Generator, second: np.ndarray, settings: SampleSettings) -> pd.DataFrame:
    hour, weekend = local_hour(second, "west"), local_weekday(second, "west") >= 5
    count = len(second)
    season = 1 + 0.004 * second / DAY_S  # days lengthen after the solstice
    sun = np.exp(-0.5 * (np.abs(hour - 12.3) / 2.4) ** 4) * np.clip(0.78 + _daily(rng, second, 0.6, 0.22), 0.12, 1.0) * season
    load = 0.62 + 0.13 * _bump(hour, 8.0, 2.2) + 0.30 * _bump(hour, 18.6, 2.6) - 0.06 * weekend + 0.025 * slow_noise(rng, count, 0.9, 1.0)
    net = load - 0.55 * sun
    scarcity = _event(second, settings, PRICE_EVENT) * np.clip(net, 0, None) * 0.35
    spikes = (rng.random(count) < 0.012) * rng.exponential(0.09, size=count) * _bump(hour, 18.5, 3.0)
    price = (
        0.012 + 0.085 * np.clip(net, 0, None) ** 1.25 + 0.045 * (net - 0.5) + 0.006 * slow_noise(rng, count, 0.8, 1.0) + spikes + scarcity
    )
    renewable = 0.22 + 0.40 * sun / np.maximum(load, 0.3) + 0.03 * slow_noise(rng, count, 0.95, 1.0)
    carbon = 470 * (1 - np.clip(renewable, 0, 0.95)) * (0.82 + 0.30 * np.clip(net, 0, 1)) + 9 * slow_noise(rng, count, 0.8, 1.0)
    temperature = (
        11.0 + 0.05 * second / DAY_S + 5.5 * _bump(hour, 14.5, 4.5) + _daily(rng, second, 0.75, 3.0) + 0.3 * rng.standard_normal(count)
    )
    return _frame(price, carbon, renewable, temperature)


def _east(rng: np.random.Generator, second: np.ndarray, settings: SampleSettings) -> pd.DataFrame:
    hour, weekend = local_hour(second, "east"), local_weekday(second, "east") >= 5
    count = len(second)
    wind = np.clip(0.5 + slow_noise(rng, count, 0.975, 0.26) + 0.10 * _bump(hour, 2.0, 4.0), 0.02, 1.0)
    wind = np.where(_event(second, settings, WIND_LULL), wind * 0.15, wind)
    load = 0.55 + 0.20 * _bump(hour, 9.0, 3.0) + 0.24 * _bump(hour, 18.0, 3.0) - 0.07 * weekend + 0.03 * slow_noise(rng, count, 0.9, 1.0)
    net = load - 0.42 * wind
    spikes = (rng.random(count) < 0.010) * rng.exponential(0.12, size=count) * (net > 0.4)
    price = 0.018 + 0.13 * np.clip(net, 0, None) ** 1.5 + 0.05 * (net - 0.35) + 0.005 * slow_noise(rng, count, 0.75, 1.0) + spikes
    renewable = 0.10 + 0.48 * wind + 0.06 * np.exp(-0.5 * (np.abs(hour - 12.5) / 2.2) ** 4) + 0.02 * slow_noise(rng, count, 0.9, 1.0)
    carbon = 160 + 330 * np.clip(net, 0, 1.1) + 8 * slow_noise(rng, count, 0.85, 1.0)
    temperature = (
        1.0 + 0.06 * second / DAY_S + 4.0 * _bump(hour, 14.5, 4.5) + _daily(rng, second, 0.7, 5.0) + 0.3 * rng.standard_normal(count)
    )
    return _frame(price, carbon, renewable, temperature)
