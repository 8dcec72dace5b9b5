"""Forecasters by name."""

from __future__ import annotations

from typing import Any

from models.arima import Arima
from models.base import Forecaster
from models.ensemble import Ensemble
from models.lightgbm import LightGbm
from models.lstm import Lstm
from models.naive import EmpiricalPersistence, Persistence, SeasonalNaive
from models.prophet import ProphetForecaster
from telemetry.errors import InputError

FORECASTERS: dict[str, type[Forecaster]] = {
    cls.name: cls for cls in (Persistence, EmpiricalPersistence, SeasonalNaive, Arima, ProphetForecaster, LightGbm, Lstm, Ensemble)
}


def forecaster_class(name: str) -> type[Forecaster]:
    """Class of a forecaster.

    Raises:
        InputError: unknown name; lists the known ones.
    """
    if name not in FORECASTERS:
        raise InputError(f"unknown forecaster {name!r}", where="forecaster", allowed=", ".join(FORECASTERS))
    return FORECASTERS[name]


def make_forecaster(name: str, **options: Any) -> Forecaster:
    """Forecaster ``name`` with ``freq``, ``horizon`` and its options.

    Raises:
        InputError: unknown name or option.
    """
    return forecaster_class(name)(**options)
