"""Where each run is drawn: rectangles over GPUs of nodes, or, for clusters and logs too large for that, a raster of nodes and times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from envs.replay.episode import Episode
from envs.replay.history import AWAKE
from envs.replay.recompute import job_gpus
from telemetry.classes import WORKLOAD_CLASSES

MOST_BARS, MOST_NODES = 12_000, 400
RASTER_ROWS, RASTER_COLUMNS = 400, 900
GAP = 0.05


def drawn_in_detail(episode: Episode) -> bool:
    """Whether every run can be drawn on its GPUs."""
    if episode.seats is None or len(episode.facts.node_pool) > MOST_NODES:
        return False
    return len(episode.seats[["row", "node"]].drop_duplicates()) + len(episode.history.segments) <= MOST_BARS


def bars_of(episode: Episode) -> pd.DataFrame:
    """Rectangles: ``job, stay, node, level`` (-1 = placed and not started), ``begin_s, end_s, low, high``; node n spans n to n + 1."""
    places = _places(episode)
    stays = episode.history.stays.reset_index(names="stay")
    waits = stays.assign(level=-1, begin_s=stays["run_s"], end_s=stays["start_s"].where(stays["start_s"] >= 0, stays["stop_s"]))
    columns = ["job", "stay", "level", "begin_s", "end_s"]
    spans = pd.concat([waits.loc[waits["end_s"] > waits["begin_s"], columns], episode.history.segments[columns]])
    return spans.merge(places, on="stay").sort_values(["node", "begin_s"], kind="stable", ignore_index=True)


def _places(episode: Episode) -> pd.DataFrame:
    """``stay, node, low, high``: neighbouring GPUs of a job are one place; shares of a GPU lie one above the other."""
    assert episode.seats is not None
    stays = episode.history.stays
    stay_of = pd.Series(np.arange(len(stays)), index=stays["row"])
    gpus = episode.facts.pools["gpus_per_node"].to_numpy()[episode.facts.node_pool]
    stop_of = stays["stop_s"].to_numpy()
    run_of = stays["run_s"].to_numpy()
    shared: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    rows = []
    for (row, node), seats in episode.seats.groupby(["row", "node"], sort=False):
        stay = int(stay_of[row])
        milli = int(seats["milli"].iloc[0])
        taken = np.sort(seats["gpu"].to_numpy())
        if milli >= 1000:
            runs = np.split(taken, np.flatnonzero(np.diff(taken) > 1) + 1)
            lanes = [(float(run[0]), float(run[-1] + 1)) for run in runs]
        elif milli == 0:
            lanes = [(0.0, 0.1)]
        else:
            lanes = [_share(shared, int(node), int(gpu), milli, int(run_of[stay]), int(stop_of[stay])) for gpu in taken]
        scale = (1 - 2 * GAP) / gpus[node]
        rows += [(stay, int(node), node + GAP + low * scale, node + GAP + high * scale) for low, high in lanes]
    return pd.DataFrame(rows, columns=["stay", "node", "low", "high"])


def _share(
    shared: dict[tuple[int, int], list[tuple[int, int, int]]], node: int, gpu: int, milli: int, run_s: int, stop_s: int
) -> tuple[float, float]:
    """The lowest free part of a GPU that is large enough; the lowest part at all when its free parts are scattered."""
    users = sorted(user for user in shared.get((node, gpu), []) if user[2] > run_s)
    low = 0
    for begin, end, _stop in users:
        if begin - low >= milli:
            break
        low = max(low, end)
    if low + milli > 1000:
        low = 0
    shared[node, gpu] = [*users, (low, low + milli, stop_s)]
    return gpu + low / 1000, gpu + (low + milli) / 1000


# ---------------------------------------------------------------- raster


@dataclass(frozen=True)
class Raster:
    """Rows of nodes (of pools where placement is not known) by bins of time.

    Attributes:
        edges: of the bins, seconds, ``[B + 1]``.
        names: of the rows; ``nodes_per_row`` nodes each at most.
        busy: share of the row's GPU time that jobs held, ``[R, B]``.
        kind: class (index) that held most of it, -1 where nothing ran, ``[R, B]``.
        state: node state that filled most of the bin, ``[R, B]``, index in ``STATES`` of the figures.
    """

    edges: np.ndarray
    names: list[str]
    first_of_pool: list[int]
    nodes_per_row: int
    busy: np.ndarray
    kind: np.ndarray
    state: np.ndarray


def raster_of(episode: Episode, edges: np.ndarray, states: tuple[str, ...]) -> Raster:
    """Aggregate runs and node states."""
    facts, history = episode.facts, episode.history
    pool_of = facts.node_pool
    if episode.seats is None:
        row_of, per_row = pool_of, int(facts.pools["nodes"].max())
        names = list(facts.pools["name"])
    else:
        per_row = -(-len(pool_of) // RASTER_ROWS)
        row_of, names = _grouped(facts.node_names, pool_of, per_row)
    first = [int(row_of[np.flatnonzero(pool_of == p)[0]]) for p in range(len(facts.pools))]
    capacity = np.bincount(row_of, facts.pools["gpus_per_node"].to_numpy()[pool_of], len(names))
    held = np.zeros((len(WORKLOAD_CLASSES), len(names), len(edges) - 1))
    segments = history.segments.reset_index(names="segment")
    gpus = _gpus_by_row(episode, segments, row_of)
    kinds = np.array([WORKLOAD_CLASSES.index(name) for name in facts.jobs["workload_class"]], dtype=np.int64)
    spans = segments.merge(gpus, on="segment")
    _fill(
        held,
        edges,
        kinds[spans["job"].to_numpy(dtype=np.int64)],
        spans["place"].to_numpy(dtype=np.int64),
        spans,
        spans["gpus"].to_numpy(dtype=float),
    )
    shown = np.zeros((len(states), len(names), len(edges) - 1))
    nodes = history.nodes
    index = nodes["state"].map({name: i for i, name in enumerate(states)}).to_numpy(dtype=np.int64)
    _fill(shown, edges, index, row_of[nodes["node"].to_numpy()], nodes, np.ones(len(nodes)))
    seconds = np.diff(edges)
    busy = held.sum(axis=0) / (capacity[:, None] * seconds)
    kind = np.where(busy > 0, held.argmax(axis=0), -1)
    shown[states.index(AWAKE)] += 1e-9
    return Raster(edges, names, first, per_row, busy, kind, shown.argmax(axis=0))


def _grouped(names: list[str], pool_of: np.ndarray, per_row: int) -> tuple[np.ndarray, list[str]]:
    """Row of each node, none across two pools, and the rows' names."""
    row_of, labels, row, left = np.zeros(len(names), dtype=np.int64), [], -1, 0
    for node, name in enumerate(names):
        if left == 0 or pool_of[node] != pool_of[node - 1]:
            row, left = row + 1, per_row
            labels.append(name)
        row_of[node], left = row, left - 1
    return row_of, labels


def _gpus_by_row(episode: Episode, segments: pd.DataFrame, row_of: np.ndarray) -> pd.DataFrame:
    """``segment, place, gpus``: GPUs that a segment held in each row."""
    if episode.seats is None:
        job, pool = (segments[name].to_numpy(dtype=np.int64) for name in ("job", "pool"))
        return pd.DataFrame({"segment": segments["segment"], "place": pool, "gpus": job_gpus(episode.facts, job, pool)})
    seats = episode.seats.assign(place=row_of[episode.seats["node"].to_numpy(dtype=np.int64)], gpus=episode.seats["milli"] / 1000.0)
    held = seats.groupby(["row", "place"], as_index=False)["gpus"].sum()
    stays = episode.history.stays.reset_index(names="stay")[["stay", "row"]]
    return segments[["segment", "stay"]].merge(stays, on="stay").merge(held, on="row")[["segment", "place", "gpus"]]


def _fill(into: np.ndarray, edges: np.ndarray, layer: np.ndarray, row: np.ndarray, spans: pd.DataFrame, weight: np.ndarray) -> None:
    """Add weight x seconds of every span to ``into[layer, row, bin]``."""
    begin, end = spans["begin_s"].to_numpy(dtype=np.int64), spans["end_s"].to_numpy(dtype=np.int64)
    first = np.searchsorted(edges, begin, side="right") - 1
    pieces = np.searchsorted(edges, end, side="left") - first
    of = np.repeat(np.arange(len(begin)), pieces)
    bins = first[of] + np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    seconds = np.minimum(end[of], edges[bins + 1]) - np.maximum(begin[of], edges[bins])
    np.add.at(into, (layer[of], row[of], bins), weight[of] * seconds)
