"""Points that cleaning has kept, as canonical samples: a frame, or Arrow tables."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from telemetry.inventory import Inventory, NodeInfo
from telemetry.raw import Labels
from telemetry.schema import SAMPLE_COLUMNS
from telemetry.units import METRICS


@dataclass(frozen=True)
class Cleaned:
    """N points by series and time.

    Attributes:
        labels: of each group; group: int [N], into ``labels``.
        metric: int [N], equal for points of one metric, which lie together.
        time_ns: int [N]; value: float [N], in the metric's unit.
        filled: bool [N], points that were put into gaps in the way ``how`` names; None = none.
    """

    source: str
    labels: Sequence[Labels]
    inventory: Inventory
    metric: np.ndarray
    group: np.ndarray
    time_ns: np.ndarray
    value: np.ndarray
    filled: np.ndarray | None
    how: str

    def frame(self) -> pd.DataFrame:
        """The canonical table of what was kept, by series and time."""
        columns: dict[str, object] = {
            "time": pd.DatetimeIndex(self.time_ns.astype("datetime64[ns]")).tz_localize("UTC"),
            "value": self.value,
        }
        for name, (names, code) in self._text().items():
            columns[name] = pd.Categorical.from_codes(code[self.group], categories=names)
        filled, how = self._how_filled()
        columns["filled"] = pd.Categorical.from_codes(filled.astype(np.int8), categories=how)
        return pd.DataFrame(columns)[list(SAMPLE_COLUMNS)]

    def _how_filled(self) -> tuple[np.ndarray, list[str]]:
        """Whether each point was put into a gap, and the texts for no and yes."""
        if self.filled is None:
            return np.zeros(len(self.group), dtype=bool), [""]
        return self.filled, ["", self.how]

    def tables(self) -> Sequence[pa.Table]:
        """The same as :meth:`frame`, one Arrow table a metric, text as dictionaries."""
        if not len(self.group):
            return []
        text, metric = self._text(), self.metric
        filled, how = self._how_filled()
        bounds = [0, *(np.flatnonzero(np.diff(metric)) + 1).tolist(), len(metric)]
        found = []
        for first, end in itertools.pairwise(bounds):
            group = self.group[first:end]
            groups = np.flatnonzero(np.bincount(group, minlength=len(self.labels)))
            columns = {
                "time": pa.array(self.time_ns[first:end] // 1000, type=pa.timestamp("us", tz="UTC")),
                "value": pa.array(self.value[first:end]),
                **{name: _dictionary(code, names, group, groups) for name, (names, code) in text.items()},
                "filled": pa.DictionaryArray.from_arrays(filled[first:end].astype(np.int32), how),
            }
            found.append(pa.table({name: columns[name] for name in SAMPLE_COLUMNS}))
        return found

    def _text(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """Text columns: their distinct values, and the code of each label group."""
        labels = self.labels
        infos = [self.inventory.nodes.get(la.node, NodeInfo()) for la in labels]
        metrics = [METRICS[la.metric] for la in labels]
        text = {
            "metric": [m.rate or la.metric for m, la in zip(metrics, labels, strict=True)],
            "unit": [m.rate_unit or m.unit for m in metrics],
            "site": [la.site or info.site for la, info in zip(labels, infos, strict=True)],
            "pool": [info.pool for info in infos],
            "node": [la.node for la in labels],
            "device": [la.device for la in labels],
            "service": [la.service for la in labels],
            "pod_uid": [la.pod for la in labels],
            "namespace": [la.namespace for la in labels],
            "team": [la.team for la in labels],
            "project": [la.project for la in labels],
            "source": [self.source] * len(labels),
        }
        return {name: codes_of(told) for name, told in text.items()}


def _dictionary(code: np.ndarray, names: list[str], group: np.ndarray, groups: np.ndarray) -> pa.DictionaryArray:
    """Text as Arrow holds it, with the names that occur alone.

    Args:
        code: name of each label group; group: label group of each row; groups: those that occur.
    """
    used = np.unique(code[groups])
    if len(used) == 1:
        zeros = pa.py_buffer(bytes(4 * len(group)))
        return pa.DictionaryArray.from_arrays(pa.Array.from_buffers(pa.int32(), len(group), [None, zeros]), [names[used[0]]])
    own = np.zeros(len(code), dtype=np.int32)
    own[groups] = np.searchsorted(used, code[groups])
    return pa.DictionaryArray.from_arrays(own[group], [names[index] for index in used])


def codes_of(values: list) -> tuple[list, np.ndarray]:
    """Distinct values, sorted, and the code of each."""
    names = sorted(set(values))
    index = {name: code for code, name in enumerate(names)}
    return names, np.array([index[value] for value in values], dtype=np.int64)
