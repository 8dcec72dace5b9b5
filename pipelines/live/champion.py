"""The champion as it serves: verified from the registry, or the last good copy of it; and what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS
from models.member import PanelForecaster
from pipelines.workspace import read_json, write_json
from registry.loading import NoVersionError, VerificationError, load_version, open_package
from telemetry.errors import InputError

PACKAGE, RECORD = "package", "champion.json"


@dataclass(frozen=True)
class Champion:
    """A loaded forecaster; ``refusal`` says why the registry's own was not used, and is empty when it was."""

    forecaster: PanelForecaster
    model: str
    version: str
    refusal: str = ""


def load_champion(registered: str, tracking_uri: str, folder: Path) -> Champion | None:
    """The champion of a registered forecaster, with a copy kept in ``folder``; None when nothing was ever promoted.

    Raises:
        VerificationError: it fails its checks and no good copy is there.
        InputError: no registry at ``tracking_uri`` and no good copy.
    """
    try:
        loaded = load_version(registered, "forecaster", tracking_uri=tracking_uri, keep=folder / PACKAGE)
    except (VerificationError, InputError) as error:
        kept = _last_good(folder, str(error))
        if kept is None and isinstance(error, NoVersionError):
            return None
        if kept is None:
            raise
        return kept
    record = {"version": loaded.version, "model": loaded.manifest.name}
    if not (folder / RECORD).is_file() or read_json(folder / RECORD) != record:
        write_json(folder / RECORD, record)
    return Champion(loaded.model, loaded.manifest.name, loaded.version)


def _last_good(folder: Path, refusal: str) -> Champion | None:
    try:
        record = read_json(folder / RECORD)
        loaded = open_package(folder / PACKAGE)
    except (OSError, ValueError, VerificationError):
        return None
    return Champion(loaded.model, str(record["model"]), str(record["version"]), refusal)


@dataclass(frozen=True)
class Known:
    """What a forecaster knows of its series: ``ids [N]``, ``ends_ns [N]`` of their last rows, ``scale [N]`` a typical change of theirs."""

    ids: np.ndarray
    ends_ns: np.ndarray
    scale: np.ndarray


def known(forecaster: PanelForecaster) -> Known:
    """What ``predict`` would continue."""
    panel = forecaster._known_history()
    scale = np.array([_typical_change(values[-2 * forecaster.season_length :], forecaster.horizon) for values in panel.values])
    return Known(np.array(panel.ids, dtype=np.str_), panel.ends_ns, scale)


def _typical_change(values: np.ndarray, horizon: int) -> float:
    """Mean absolute change over half a horizon; 0 when there is none to see."""
    step = max(1, min(horizon // 2, len(values) - 1))
    change = np.abs(values[step:] - values[:-step])
    change = change[~np.isnan(change)]
    return float(change.mean()) if len(change) else 0.0


def within_bounds(forecaster: PanelForecaster, quantiles: np.ndarray) -> np.ndarray:
    """Quantiles ``[N, H, Q]`` of all its series within their physical bounds."""
    return forecaster._clip(forecaster._known_history(), quantiles)


def predicted(forecaster: PanelForecaster, frame: pd.DataFrame, count: int) -> np.ndarray:
    """Quantiles ``[N, H, Q]`` of a forecast frame, in the order of ``known``."""
    return frame[list(QUANTILE_COLUMNS)].to_numpy(dtype=np.float64).reshape(count, forecaster.horizon, len(QUANTILE_COLUMNS))
