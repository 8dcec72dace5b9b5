"""The champion as it serves: verified from the registry, or the last good copy of it; and what it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.base import monotone
from models.conformal import AdaptiveIntervals
from models.member import PanelForecaster
from models.series import Panel
from pipelines.workspace import read_json, write_json
from registry.digest import sha256_file
from registry.keys import TrustError, trust_folder
from registry.loading import NoVersionError, VerificationError, believed, load_version, open_package, verify_package
from registry.manifest import MANIFEST_FILE
from registry.signing import refuse_revoked
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
        VerificationError: it fails its checks, and no copy is there or that one fails as well.
        InputError: no registry at ``tracking_uri``, and no copy.
    """
    try:
        loaded = load_version(registered, "forecaster", tracking_uri=tracking_uri, keep=folder / PACKAGE)
    except (VerificationError, InputError) as error:
        if (folder / RECORD).exists():
            return _last_good(registered, folder, error, trust_folder(tracking_uri))
        if isinstance(error, NoVersionError):
            return None
        raise
    # The copy and its record are two files: the digest tells a record that a killed run left of an earlier copy.
    record = {"version": loaded.version, "manifest_sha256": sha256_file(folder / PACKAGE / MANIFEST_FILE)}
    if _read_record(folder) != record:
        write_json(folder / RECORD, record)
    return Champion(loaded.model, loaded.manifest.name, loaded.version)


def _read_record(folder: Path) -> dict[str, str] | None:
    try:
        record = read_json(folder / RECORD)
        return {key: str(record[key]) for key in ("version", "manifest_sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _last_good(registered: str, folder: Path, refusal: Exception, trust: Path) -> Champion:
    """The copy, after the checks that need no registry: digests, name, kind, and that it is the one that the record names; then signature,
    revocation (of its version or its manifest), verdicts and scan."""
    record, package = _read_record(folder), folder / PACKAGE
    try:
        if record is None:
            raise VerificationError(f"{folder / RECORD} cannot be read")
        manifest = verify_package(package, str(package), expected_manifest_sha256=record["manifest_sha256"])
        if (manifest.registered_name, manifest.kind) != (registered, "forecaster"):
            raise VerificationError(f"{package}: is a {manifest.kind} made for '{manifest.registered_name}'")
        refuse_revoked(believed(trust, str(package)), record["manifest_sha256"], registered, record["version"])
        loaded = open_package(package, trust)
    except TrustError as error:
        raise VerificationError(f"{refusal}; and the last good copy cannot serve: {package}: {error}") from refusal
    except (OSError, VerificationError) as error:
        raise VerificationError(f"{refusal}; and the last good copy cannot serve: {error}") from refusal
    return Champion(loaded.model, manifest.name, record["version"], str(refusal))


@dataclass(frozen=True)
class Known:
    """What a forecaster knows of its series: ``ids [N]``, ``ends_ns [N]`` of their last rows."""

    ids: np.ndarray
    ends_ns: np.ndarray


class Served:
    """A forecaster whose correction is kept here and not by itself: members that correct themselves would have to replay weeks of forecasts
    in every new process, and cannot know what was really issued. Given the same correction, it issues what the forecaster would."""

    def __init__(self, forecaster: PanelForecaster) -> None:
        self.forecaster = forecaster
        self.horizon = forecaster.horizon

    @property
    def _panel(self) -> Panel:
        return self.forecaster._known_history()

    def known(self) -> Known:
        """What the next forecast would continue."""
        panel = self._panel
        return Known(np.array(panel.ids, dtype=np.str_), panel.ends_ns)

    def scale(self) -> np.ndarray:
        """Typical change of each series lately ``[N]``, as the forecaster itself measures it."""
        return self.forecaster._scales(self._panel)

    def said(self) -> np.ndarray:
        """Uncorrected quantiles ``[N, H, Q]`` of the next steps of all series, not yet within bounds."""
        return self.forecaster.uncorrected(self._panel, self.horizon)

    def corrected(self, said: np.ndarray, state: AdaptiveIntervals, scale: np.ndarray) -> np.ndarray:
        """What to issue for quantiles ``[N, H, Q]`` of all series that were said, by their ``scale`` ``[N]``."""
        return monotone(self.within_bounds(self.forecaster.corrected(self._panel, said, state, scale)))

    def first_correction(self) -> AdaptiveIntervals:
        """The correction to start with: the member's own replay of the newest rows, where it can."""
        return self.forecaster.correction().continued()

    def within_bounds(self, quantiles: np.ndarray) -> np.ndarray:
        """Quantiles ``[N, H, Q]`` of all series within their physical bounds."""
        return self.forecaster._clip(self._panel, quantiles)

    def frame(self, quantiles: np.ndarray) -> pd.DataFrame:
        """Forecast frame of quantiles ``[N, H, Q]`` of all series."""
        return self.forecaster._forecast_frame(self._panel, quantiles)
