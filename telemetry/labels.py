"""Pod labels as the samples carry them: which pod was said to be on which board, for how long, and how busy the board was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from telemetry.devices import Place, codes_of, combined, place_of
from telemetry.energy import NS_PER_S, POWER, EnergyRules, stretches, usual_step_ns

UTILIZATION = "hw.gpu.utilization"
POD_COLUMNS = ("pod_uid", "team", "project")


@dataclass(frozen=True)
class Boards:
    """The D boards (GPUs) of N nodes.

    Attributes:
        node: int64 ``[D]``; ``names`` ``[D]``; ``pool`` ``[D]`` ('' = not known).
        watts: float64 ``[D, T]`` mean watts of the covered time, NaN where unknown.
        idle_w: float64 ``[D]``, watts of the board when nobody computes.
    """

    node: np.ndarray
    names: np.ndarray
    pool: np.ndarray
    watts: np.ndarray
    idle_w: np.ndarray
    node_names: np.ndarray


@dataclass(frozen=True)
class Labels:
    """Label samples of boards and slices, sorted by series and time. Arrays ``[M]``; ``board`` of a slice is its GPU's."""

    board: np.ndarray
    begin_ns: np.ndarray
    end_ns: np.ndarray
    pod: np.ndarray
    use: np.ndarray  # utilisation, or 1 where only watts are known
    measured: np.ndarray  # bool: it is utilisation
    busy: np.ndarray
    share: np.ndarray  # of the board: 1, or a slice's part
    together: np.ndarray  # pods at the same time in the series
    step_s: np.ndarray  # usual time between its samples
    pods: pd.DataFrame  # [P] pod_uid, team, project


def read_labels(
    samples: pd.DataFrame, boards: Boards, rules: EnergyRules, busy_use: float, busy_watts: float, mig: Mapping[str, float]
) -> Labels:
    """The labels of one series for each board, or for each slice of it.

    Args:
        busy_use: a board is busy above this utilisation,
        busy_watts: or, where only watts are known, above its idle watts times this.
        mig: part of its board of a slice ``node/gpuN/migI``.
    """
    rows = samples[samples["metric"].isin([UTILIZATION, POWER]).to_numpy()]
    key, series = combined([codes_of(rows[name]) for name in ("node", "device", "source", "metric")])
    first = np.zeros(len(key), dtype=np.int64)
    first[series[::-1]] = np.arange(len(series))[::-1]
    told = rows.iloc[first][["node", "device", "metric"]].astype(str)
    places = [place_of(node, device) for node, device in zip(told["node"], told["device"], strict=True)]
    board = _board_of(told, places, boards)
    chosen = _best_series(told, board, np.bincount(series, (rows["pod_uid"] != "").to_numpy(), minlength=len(key)))
    share = _shares(told, board, places, chosen, len(boards.node), mig)
    keep = chosen[series]
    rows, series = rows[keep], series[keep]
    time_ns = rows["time"].dt.tz_localize(None).to_numpy().astype("datetime64[ns]").astype(np.int64)
    names = [codes_of(rows[name]) for name in POD_COLUMNS]
    pod_key, pod = combined(names)
    pods = pd.DataFrame({name: names[place][0][pod_key[:, place]] for place, name in enumerate(POD_COLUMNS)}).astype(str)
    order = np.lexsort((pod, time_ns, series))
    series, time_ns = series[order], time_ns[order]
    value = rows["value"].to_numpy(dtype=np.float64)[order]
    at, measured = board[series], (told["metric"] == UTILIZATION).to_numpy()[series]
    busy = np.where(measured, value > busy_use, value > busy_watts * boards.idle_w[at])
    begin, together, step_s = _backward(series, time_ns, len(key), rules)
    return Labels(at, begin, time_ns, pod[order], np.where(measured, value, 1.0), measured, busy, share[series], together, step_s, pods)


def _board_of(told: pd.DataFrame, places: list[Place], boards: Boards) -> np.ndarray:
    """Board of each series, -1 where it is of none."""
    index = {(boards.node_names[n], name): d for d, (n, name) in enumerate(zip(boards.node, boards.names, strict=True))}
    names = zip(told["node"], told["device"], places, strict=True)
    return np.array([index.get((node, place.parent or device), -1) for node, device, place in names], dtype=np.int64)


def _shares(
    told: pd.DataFrame, board: np.ndarray, places: list[Place], chosen: np.ndarray, count: int, mig: Mapping[str, float]
) -> np.ndarray:
    """Part of its board that each series stands for: a slice as ``mig`` says, else an equal part of the slices of that board."""
    share = np.ones(len(told))
    sliced = np.array([place.kind == "mig" for place in places], dtype=bool) & chosen
    number = np.bincount(board[sliced], minlength=count)
    for row in np.flatnonzero(sliced):
        share[row] = mig.get(f"{told['node'].iloc[row]}/{told['device'].iloc[row]}", 1.0 / number[board[row]])
    return share


def _backward(series: np.ndarray, time_ns: np.ndarray, count: int, rules: EnergyRules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin of the time that each label stands for, back to the sample before as a gauge's mean; labels at its time; usual step, s."""
    fresh = np.ones(len(series), dtype=bool)
    fresh[1:] = (np.diff(series) != 0) | (np.diff(time_ns) != 0)
    group = np.cumsum(fresh) - 1
    one = np.flatnonzero(fresh)
    none = np.zeros(len(one))
    begin = stretches(series[one], time_ns[one], none, none.astype(bool), count, EnergyRules("mean", rules.max_gap_s))[0]
    steps = usual_step_ns(series[one], time_ns[one], count) / NS_PER_S
    return begin[group], np.bincount(group)[group] if len(group) else group, steps[series]


def _best_series(told: pd.DataFrame, board: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """One series for each board, or each of its slices: with labels before without, utilisation before watts, most labels first."""
    table = pd.DataFrame(
        {
            "node": told["node"].to_numpy(),
            "device": told["device"].to_numpy(),
            "bare": labelled == 0,
            "watts": (told["metric"] != UTILIZATION).to_numpy(),
            "fewest": -labelled,
            "board": board,
            "slice": ["/" in name for name in told["device"]],
        }
    )
    table = table[table["board"] >= 0]
    best = table.sort_values(["node", "device", "bare", "watts", "fewest"], kind="stable").groupby(["node", "device"], sort=False).head(1)
    sliced = set(best.loc[best["slice"], "board"])
    best = best[best["slice"] | ~best["board"].isin(sliced)]
    chosen = np.zeros(len(told), dtype=bool)
    chosen[best.index.to_numpy(dtype=np.int64)] = True
    return chosen
