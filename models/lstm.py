"""LSTM over all series, all quantiles and all steps at once (torch), anchored on the last value and in units of the recent scale."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.features import Issues, IssueTable
from models.global_learner import GlobalLearner
from models.member import reading
from models.sampling import sample_issues

PARAMETERS, WEIGHTS = "lstm.json", "lstm.safetensors"
CLIP_UNITS = 8.0  # inputs beyond this many units of scale are squashed
MAX_FAMILIES = 16
HELD_WINDOWS = 1500


@dataclass(frozen=True)
class LstmOptions:
    """Options of ``lstm``.

    Args:
        window: past steps read by the recurrent part.
        stride: past steps read at once; each further one costs an input, not a step of the recursion.
        hidden: width of the network.
        max_windows: training windows sampled per epoch.
        epochs: at most; training stops earlier.
        patience: epochs without a better held-out loss before it stops; the best weights are kept.
        batch: windows in a batch.
        learning_rate: of Adam.
        holdout_fraction: newest share of each series kept from training, for stopping and for the widths.
        country: ISO 3166 code whose public holidays are an input; None for none.
    """

    window: int = 48
    stride: int = 3
    hidden: int = 48
    max_windows: int = 8_000
    epochs: int = 10
    patience: int = 2
    batch: int = 128
    learning_rate: float = 3e-3
    holdout_fraction: float = 0.15
    country: str | None = None


@dataclass(frozen=True)
class Windows:
    """Inputs and targets of ``n`` windows."""

    past: np.ndarray  # [n, W / stride, stride] changes from the last value
    static: np.ndarray  # [n, F]
    future: np.ndarray  # [n, H, G] calendar and earlier seasons at each target
    target: np.ndarray  # [n, H] scaled change


class Lstm(GlobalLearner):
    """Recurrent encoder of the recent past, one head for every step and quantile."""

    name = "lstm"
    options_class = LstmOptions

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.network: Any = None

    def learn(self, table: IssueTable, cut: np.ndarray) -> None:
        from models.lstm_network import train

        earlier = self._earlier()
        self.network = None
        rng = np.random.default_rng(self.seed)
        learn = sample_issues(table, cut, self.horizon, 3 * self.options.max_windows, rng)
        held = sample_issues(table, table.length[table.first_rows], self.horizon, len(table.values), rng)
        held = held[table.position[held] >= cut[table.series[held]]]
        if len(learn) < 64 or len(held) < 8:
            return
        held = rng.choice(held, size=min(len(held), HELD_WINDOWS), replace=False)
        learned, stopped = (self._windows(Issues(table, rows, self.horizon, self.options.country), targets=True) for rows in (learn, held))
        self.network = train(learned, stopped, self.options, self.seed, earlier)

    def _earlier(self) -> Any:
        """The network whose weights training starts from; None for a cold start."""
        if self.warm_start is None:
            return None
        with reading(self.warm_start):
            self.load_learned(self.warm_start)
        return self.network

    def _windows(self, issues: Issues, *, targets: bool) -> Windows:
        table, rows, horizon = issues.table, issues.at, issues.horizon
        value, unit = table.values[rows][:, None], table.unit[rows][:, None]
        stride = self.options.stride
        back = np.arange(self.options.window // stride * stride - 1, -1, -1)
        source = rows[:, None] - np.minimum(back, table.position[rows][:, None])  # the first value repeats before the series began
        past = _squash((table.values[source] - value) / unit).reshape(len(rows), -1, stride)
        family = table.family[rows][:, None] == np.arange(min(len(self.families), MAX_FAMILIES))
        ahead = issues.ahead[:, :, 1:]
        step = np.broadcast_to((np.arange(1, horizon + 1) / self.horizon)[:, None], (len(rows), horizon, 1))
        known = np.isfinite(ahead[:, :, -1:])
        target = (table.values[rows[:, None] + 1 + np.arange(horizon)] - value) / unit if targets else np.zeros((len(rows), horizon))
        return Windows(
            past.astype(np.float32),
            np.column_stack([_squash(np.nan_to_num(issues.known)), family]).astype(np.float32),
            np.concatenate([_squash(np.nan_to_num(ahead)), known, step, np.sqrt(step)], axis=2).astype(np.float32),
            target.astype(np.float32),
        )

    def changes(self, issues: Issues) -> np.ndarray | None:
        from models.lstm_network import predict

        return None if self.network is None else predict(self.network, self._windows(issues, targets=False))

    def save_learned(self, folder: Path) -> None:
        stored: dict[str, Any] = {"trained": self.network is not None}
        if self.network is not None:
            from models.lstm_network import save

            stored["sizes"] = self.network.sizes
            save(self.network, folder / WEIGHTS)
        (folder / PARAMETERS).write_text(json.dumps(stored))

    def load_learned(self, folder: Path) -> None:
        stored = json.loads((folder / PARAMETERS).read_text())
        self.network = None
        if stored["trained"]:
            from models.lstm_network import load

            self.network = load(stored["sizes"], folder / WEIGHTS)


def _squash(values: np.ndarray) -> np.ndarray:
    """Linear near 0, bounded by ``CLIP_UNITS``: a spike in the history must not drive the network."""
    return CLIP_UNITS * np.tanh(values / CLIP_UNITS)
