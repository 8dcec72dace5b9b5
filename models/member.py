"""What every forecaster of the package shares: checked input, a bounded history, physical bounds, and files without executable content."""

from __future__ import annotations

import copy
import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from models.base import QUANTILE_COLUMNS, QUANTILES, Forecaster, monotone
from models.conformal import AdaptiveIntervals
from models.features import trailing_scale
from models.intervals import BANDS, change_quantiles, horizon_bands
from models.series import Panel, default_season_length, forward_fill, freq_step_ns, validate_series
from models.young import YoungSeries, kinds_of
from telemetry.errors import InputError

MANIFEST, HISTORY, YOUNG = "forecaster.json", "history.parquet", "young.json"
AUTO_FLOOR = "auto"
FALLBACK_ROWS = 2048
YOUNG_WINDOWS, CONDITIONED_WINDOWS = 12.0, 1.0  # separate windows that weigh as much as what other series did at that age
NS_PER_HOUR = 3600 * 10**9


@dataclass(frozen=True)
class NoOptions:
    """For members without options of their own."""


class PanelForecaster(Forecaster):
    """A forecaster over a ``Panel``: subclasses give ``_fit``, ``_quantiles`` and, where they have any, their parameters' files.

    Args:
        freq: step of the grid, a pandas frequency of fixed length.
        horizon: longest forecast, in steps.
        season_length: steps in a season; default a day below daily frequencies, else a week.
        seed: of everything random.
        floor: smallest possible value of every series; ``auto`` is 0 for a series that was never negative; None is no floor.
        cap: largest possible value of every series, or None.
        bounds: ``{unique_id: (floor, cap)}``, overriding both; for power: idle and limit in W.
        **options: fields of ``options_class``.
    """

    options_class: ClassVar[type] = NoOptions
    learns_youth: ClassVar[bool] = False  # whether young series lean on what the others did at their age

    def __init__(
        self,
        *,
        freq: str,
        horizon: int,
        season_length: int | None = None,
        seed: int = 0,
        floor: float | str | None = AUTO_FLOOR,
        cap: float | None = None,
        bounds: Mapping[str, Sequence[float | None]] | None = None,
        **options: Any,
    ) -> None:
        self.step_ns = freq_step_ns(freq)
        if horizon < 1:
            raise InputError(f"horizon {horizon} is below 1", where=self.name, allowed="a whole number of steps from 1")
        super().__init__(freq=freq, horizon=horizon, season_length=season_length or default_season_length(freq), seed=seed)
        if isinstance(floor, str) and floor != AUTO_FLOOR:
            raise InputError(f"floor {floor!r}", where=self.name, allowed="a number, 'auto' or none")
        self.floor, self.cap = floor, cap
        self.bounds = {str(uid): _pair(uid, pair) for uid, pair in (bounds or {}).items()}
        self.options = self._checked_options(options)
        self.fallbacks: dict[str, str] = {}
        self.young: YoungSeries | None = None
        self._history: Panel | None = None

    @classmethod
    def _checked_options(cls, options: Mapping[str, Any]) -> Any:
        allowed = [f.name for f in fields(cls.options_class)]
        unknown = sorted(set(options) - set(allowed))
        if unknown:
            common = ["freq", "horizon", "season_length", "seed", "floor", "cap", "bounds"]
            raise InputError(f"unknown option(s) {', '.join(unknown)}", where=cls.name, allowed=", ".join(common + allowed))
        return cls.options_class(**{k: tuple(_tuples(v)) if isinstance(v, list | tuple) else v for k, v in options.items()})

    # --- the contract ---------------------------------------------------------------------------------------------------------------

    def fit(self, series: pd.DataFrame) -> Self:
        table, _ = validate_series(series, self.freq, where=f"{self.name}.fit")
        return self.fit_history(Panel.from_frame(table, self.step_ns))

    def fit_history(self, panel: Panel, young: YoungSeries | None = None) -> Self:
        """``fit`` on checked series whose grids begin and end with an observation; ``young`` as in :meth:`fit_panel`."""
        self.fit_panel(panel, young)
        self._history = panel.tail(self.history_rows)
        return self

    def fit_panel(self, panel: Panel, young: YoungSeries | None = None) -> None:
        """Learn from a panel, without keeping it as history: for a forecaster that is part of another.

        Args:
            panel: series.
            young: what all series did when they were young, where ``panel`` is only some of them; learned from ``panel`` by default.
        """
        self.fallbacks = {}
        self.young = young or self.learn_youth(panel)
        self._fit(panel)

    def learn_youth(self, panel: Panel) -> YoungSeries | None:
        """What series did when they were young; None for a member that does not ask."""
        return YoungSeries.fit(panel, self.horizon, self.season_length, self.seed) if self.learns_youth else None

    def update(self, series: pd.DataFrame) -> Self:
        self._known_history()
        if len(series):
            table, _ = validate_series(series, self.freq, where=f"{self.name}.update")
            self.update_panel(Panel.from_frame(table, self.step_ns))
        return self

    def update_panel(self, newer: Panel) -> Self:
        """``update`` with checked series whose grids begin and end with an observation."""
        self._history = self._known_history().append(newer, keep=self.history_rows)
        return self

    def for_history(self, panel: Panel) -> Self:
        """This forecaster with its parameters over the history of other series, or of some of its own; this one stays as it is."""
        other = copy.copy(self)
        other._history = panel.tail(self.history_rows)
        other.fallbacks = {uid: self.fallbacks[uid] for uid in panel.ids if uid in self.fallbacks}
        return other

    def predict(self, horizon: int | None = None, covariates: pd.DataFrame | None = None) -> pd.DataFrame:
        """Forecast frame; ``covariates`` are accepted and not used. ``horizon`` may not exceed the one given at construction."""
        panel = self._known_history()
        steps = self.horizon if horizon is None else horizon
        if not 1 <= steps <= self.horizon:
            raise InputError(f"horizon {steps}", where=f"{self.name}.predict", allowed=f"1 to {self.horizon}")
        quantiles = monotone(self._clip(panel, self._quantiles(panel, steps)))  # [N, H, Q]
        return self._forecast_frame(panel, quantiles)

    def save(self, folder: Path) -> None:
        """Write the manifest, the history tail and the parameters; the folder appears whole or not at all."""
        history = self._known_history()
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        manifest = {
            "name": self.name,
            "freq": self.freq,
            "horizon": self.horizon,
            "season_length": self.season_length,
            "seed": self.seed,
            "floor": self.floor,
            "cap": self.cap,
            "bounds": {uid: list(pair) for uid, pair in self.bounds.items()},
            "options": asdict(self.options),
            "fallbacks": self.fallbacks,
        }
        with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            staged = Path(temporary) / "staged"
            staged.mkdir()
            (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
            history.to_frame().to_parquet(staged / HISTORY, index=False)
            if self.young is not None:
                (staged / YOUNG).write_text(json.dumps(self.young.to_json()))
            self._save_parameters(staged)
            if folder.exists():
                os.replace(folder, Path(temporary) / "previous")
            os.replace(staged, folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            InputError: a file is missing or unreadable, or belongs to another forecaster.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            history = pd.read_parquet(folder / HISTORY)
        except (OSError, ValueError) as error:
            raise InputError(f"not a saved forecaster: {error}", where=str(folder), remedy="save it again") from error
        name, options, fallbacks = manifest.pop("name", None), manifest.pop("options", {}), manifest.pop("fallbacks", {})
        if name != cls.name:
            raise InputError(f"holds forecaster {name!r}", where=str(folder), allowed=cls.name, remedy="load it with its own class")
        loaded = cls(**manifest, **options)
        loaded._history = Panel.from_frame(history, loaded.step_ns)
        loaded.fallbacks = fallbacks
        if cls.learns_youth:
            with reading(folder):
                loaded.young = YoungSeries.from_json(json.loads((folder / YOUNG).read_text()))
        loaded._load_parameters(folder)
        return loaded

    # --- what members give ----------------------------------------------------------------------------------------------------------

    @property
    def history_rows(self) -> int:
        """Grid points of each series that ``predict`` may look back on; older ones are dropped."""
        return 28 * self.season_length

    @abstractmethod
    def _fit(self, panel: Panel) -> None:
        """Learn parameters from the whole history."""

    def _quantiles(self, panel: Panel, horizon: int) -> np.ndarray:
        """Quantiles ``[N, H, Q]`` of the next ``horizon`` steps of each series of ``panel``."""
        return self.quantiles_at(panel, np.arange(len(panel)), np.array([len(v) - 1 for v in panel.values]), horizon)

    def quantiles_at(self, panel: Panel, series: np.ndarray, rows: np.ndarray, horizon: int) -> np.ndarray:
        """Forecasts issued at earlier rows of ``panel`` with the parameters of the fit, ``[n, H, Q]``; nothing after a row is read.

        Here each history is cut at its row and continued by ``_quantiles``; members override one of the two.

        Args:
            panel: history.
            series: ``[n]`` series numbers.
            rows: ``[n]`` rows within these series, each an observation.
            horizon: steps.
        """
        out = np.empty((len(series), horizon, len(QUANTILES)))
        for row in np.unique(rows).tolist():
            own = np.flatnonzero(rows == row)
            begin = max(row + 1 - self.history_rows, 0)
            out[own] = self._quantiles(panel.select(series[own]).between([begin] * len(own), [row + 1] * len(own)), horizon)
        return out

    def _save_parameters(self, folder: Path) -> None:
        """Write learned parameters; members without any write nothing."""

    def _load_parameters(self, folder: Path) -> None:
        """Read learned parameters."""

    # --- intervals that another keeps, from what was really issued --------------------------------------------------------------------

    def uncorrected(self, panel: Panel, horizon: int) -> np.ndarray:
        """Quantiles ``[N, H, Q]`` of the next steps before any correction, not yet within bounds."""
        return monotone(self._quantiles(panel, horizon))

    def corrected(self, panel: Panel, raw: np.ndarray, state: AdaptiveIntervals, scale: np.ndarray) -> np.ndarray:
        """Quantiles ``[N, H, Q]`` to issue for uncorrected ones, not yet within bounds.

        Args:
            panel: history that ``raw`` continues.
            raw: ``[N, H, Q]`` of ``uncorrected``.
            state: the correction.
            scale: ``[N]`` of ``_scales``.
        """
        return state.apply(raw, horizon_bands(self.horizon)[: raw.shape[1]], scale=scale[:, None])

    def correction(self) -> AdaptiveIntervals:
        """What the history teaches now; nothing for a member that does not correct itself."""
        return AdaptiveIntervals(BANDS)

    def _scales(self, panel: Panel) -> np.ndarray:
        """Typical change of each series lately ``[N]``."""
        rows = max(2 * self.season_length, self.horizon + 1)
        ends = panel.tail(rows).values
        return np.array([trailing_scale(forward_fill(values), self.horizon, rows)[-1] for values in ends])

    # --- shared steps ---------------------------------------------------------------------------------------------------------------

    def _known_history(self) -> Panel:
        if self._history is None:
            raise InputError("used before fit", where=self.name, remedy="call fit or load first")
        return self._history

    def _fall_back(self, panel: Panel, index: int, horizon: int, reason: str) -> np.ndarray:
        """Empirical persistence for one series, ``[H, Q]``; the reason is kept for the report."""
        self.fallbacks[panel.ids[index]] = reason
        values = panel.values[index][-FALLBACK_ROWS:]
        return values[-1] + self._changes(panel, index, values, horizon)

    def _changes(self, panel: Panel, index: int, values: np.ndarray, horizon: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Quantiles ``[H, Q]`` of the changes in ``values`` of a series (after ``rows``, where given), leaning on others' at its age."""
        kinds = kinds_of(panel.ids[index], panel.families[index])
        prior = self.young.change_quantiles(kinds, values, horizon) if self.young is not None else None
        if prior is None:
            return change_quantiles(values, horizon, rows)
        return change_quantiles(values, horizon, rows, YOUNG_WINDOWS if rows is None else CONDITIONED_WINDOWS, prior)

    def _clip(self, panel: Panel, quantiles: np.ndarray) -> np.ndarray:
        floors, caps = self._limits(panel)
        return np.clip(quantiles, floors[:, None, None], caps[:, None, None])

    def _limits(self, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        """Floor and cap of each series ``[N]``."""
        floors, caps = np.full(len(panel), -np.inf), np.full(len(panel), np.inf)
        for i, uid in enumerate(panel.ids):
            floor, cap = self.bounds.get(uid, (self.floor, self.cap))
            if floor == AUTO_FLOOR:
                floor = 0.0 if np.nanmin(panel.values[i]) >= 0 else None
            floors[i] = -np.inf if floor is None else floor
            caps[i] = np.inf if cap is None else cap
        return floors, caps

    def _forecast_frame(self, panel: Panel, quantiles: np.ndarray) -> pd.DataFrame:
        n, horizon, _ = quantiles.shape
        issued = panel.ends_ns
        ds = issued[:, None] + (1 + np.arange(horizon, dtype=np.int64)) * self.step_ns  # [N, H]
        frame = pd.DataFrame(quantiles.reshape(n * horizon, len(QUANTILES)), columns=list(QUANTILE_COLUMNS))
        frame.insert(0, "unique_id", np.repeat(np.array(panel.ids, dtype=object), horizon))
        frame.insert(1, "issued_at", np.repeat(issued, horizon).astype("datetime64[ns]"))
        frame.insert(2, "ds", ds.reshape(-1).astype("datetime64[ns]"))
        frame["model"] = self.name
        return frame


def filled(panel: Panel) -> list[np.ndarray]:
    """Values of each series with gaps forward-filled."""
    return [forward_fill(values) for values in panel.values]


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn a missing or damaged parameter file into an InputError that names the folder."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"damaged forecaster: {type(error).__name__}: {error}", where=str(folder), remedy="save it again") from error


def _pair(uid: str, pair: Sequence[float | None]) -> tuple[float | None, float | None]:
    try:
        floor, cap = pair
    except (TypeError, ValueError) as error:
        raise InputError(f"bounds of {uid!r} are {pair!r}", where="bounds", allowed="[floor, cap]") from error
    if floor is not None and cap is not None and floor > cap:
        raise InputError(f"bounds of {uid!r}: floor {floor} is above cap {cap}", where="bounds")
    return floor, cap


def _tuples(values: Sequence[Any]) -> list[Any]:
    return [tuple(v) if isinstance(v, list | tuple) else v for v in values]
