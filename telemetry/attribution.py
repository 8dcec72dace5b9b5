"""The energy of every node and interval, tied to pods, jobs, teams, projects and workload classes.

What is split, for one node and interval:

- ``total`` = the node's own reading; where it does not cover the interval, plus what its parts measured meanwhile. A node without a reading
  of its own has the sum of its parts, and no overhead.
- ``gpu``: the energy of its boards. ``cpu``: packages and memory. ``node``: what the reading has beyond both (fans, supplies, boards that
  did not report). Where the parts exceed the reading they are scaled to it, and that is counted. A node of which no board was ever read
  has as many as the job table puts on it at one time.

How, in each of the three layers (the rule of ``envs.accounting.attribute_node``, which a test compares):

- idle energy (the idle watts of the board, or of the node's layer, for the covered time) goes by the GPU time held; what nobody held is
  ``idle``.
- energy above idle goes by weight: held GPU time times utilisation. On a board where nobody is it is ``idle``, in the layers of the node
  with nobody on any board ``overhead``.
- what is claimed by nobody known (``telemetry/claims.py``) is ``unattributed``.

Intervals of more than ten minutes are attributed in equal parts and summed. Idle watts are measured: the median of the parts in which
nobody held anything; where there are fewer than six, the 5th percentile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from telemetry.claims import NOBODY, Claimant, Claims
from telemetry.devices import place_of
from telemetry.energy import EPSILON_S, DeviceEnergy, EnergyRules, Grid, interval_energy, per_device
from telemetry.errors import InputError
from telemetry.labels import Boards
from telemetry.owners import OWNER_COLUMNS, JobSpans, job_spans, most_gpus

KINDS: tuple[str, ...] = ("job", "idle", "unattributed", "overhead")
JOB, IDLE, UNATTRIBUTED, OVERHEAD = range(4)
LAYERS: tuple[str, ...] = ("gpu", "cpu", "node")
ROW_COLUMNS: tuple[str, ...] = (
    "interval_start", "interval_end", "site", "node", *OWNER_COLUMNS, "kind", "energy_j", "source_layer",
)  # fmt: skip
FEWEST_IDLE = 6
LONGEST_S = 600.0  # longer intervals are attributed in equal parts of at most this, and summed


@dataclass(frozen=True)
class AttributionRules:
    """Choices of the attribution.

    Attributes:
        overhead: ``shared``: a node's CPU and rest go to its jobs, by the rule above; ``kept``: all of it is ``overhead``.
        busy_utilization: a board computes above this utilisation,
        busy_watts_factor: or, without utilisation, above its idle watts times this.
        mig_shares: part of the board of a slice, by ``node/gpuN/migI``; others have equal parts.
    """

    overhead: str = "shared"
    busy_utilization: float = 0.01
    busy_watts_factor: float = 1.2
    mig_shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.overhead not in ("shared", "kept"):
            raise InputError(f"{self.overhead!r}", where="attribution.overhead", allowed="shared, kept")
        if not 0 <= self.busy_utilization < 1:
            raise InputError(f"{self.busy_utilization}", where="attribution.busy_utilization", allowed="0 or more, below 1")
        if not 1 <= self.busy_watts_factor < float("inf"):
            raise InputError(f"{self.busy_watts_factor}", where="attribution.busy_watts_factor", allowed="1 or more")
        for name, share in self.mig_shares.items():
            if not 0 < share <= 1:
                raise InputError(f"{share}", where=f"attribution.mig_shares.{name}", allowed="more than 0, at most 1")


@dataclass(frozen=True)
class Attribution:
    """Where the energy went.

    Attributes:
        rows: ``ROW_COLUMNS``, one row per interval, node, owner, kind and layer with energy; '' where nothing is known.
        node_j: float64 ``[N, T]``, what the rows of each node and interval sum to.
        nodes: the N node names.
        grid: the T intervals.
        known_share: of the nodes' time, the part whose energy is known.
        counts: what was repaired, shared, ambiguous or scaled, in words.
        hours: GPU hours busy without a label, and what became of them.
        devices: the energy that was split (in parts of at most ``LONGEST_S``), with cross-checks of sources.
    """

    rows: pd.DataFrame
    node_j: np.ndarray
    nodes: np.ndarray
    grid: Grid
    known_share: float
    counts: Counter[str]
    hours: dict[str, float]
    devices: DeviceEnergy


@dataclass(frozen=True)
class _Nodes:
    """Energy by node, ``[N, T]`` J; ``total`` = boards (``gpu``, ``[D, T]``) + ``cpu`` + ``rest``. ``own_s`` are the seconds of the node's
    own reading, ``covered_s`` those in which the energy of the node is known: by its own reading where it ever has one."""

    names: np.ndarray
    site: np.ndarray
    boards: Boards
    gpu: np.ndarray
    gpu_s: np.ndarray
    cpu: np.ndarray
    cpu_s: np.ndarray
    rest: np.ndarray
    own_s: np.ndarray
    covered_s: np.ndarray
    total: np.ndarray
    scaled: int


def attribute(
    samples: pd.DataFrame, jobs: pd.DataFrame, grid: Grid, energy: EnergyRules | None = None, rules: AttributionRules | None = None
) -> Attribution:
    """Attribute the energy of all nodes in ``samples``.

    Args:
        samples: canonical samples of the window (a little before its start does no harm).
        jobs: canonical jobs that may have run in it, whenever they were submitted.

    Raises:
        InputError: no power of any node, or power that cannot be.
    """
    energy, rules, asked = energy or EnergyRules(), rules or AttributionRules(), grid
    grid, part_of = asked.refined(LONGEST_S)
    devices = per_device(interval_energy(samples, grid, energy), energy.sources)
    spans = job_spans(jobs, int(grid.edges_ns[0]), int(grid.edges_ns[-1]))
    nodes = _nodes(devices, grid, spans)
    claimant = Claimant(
        nodes.boards,
        spans,
        grid,
        energy,
        busy_use=rules.busy_utilization,
        busy_watts=rules.busy_watts_factor,
        mig=dict(rules.mig_shares),
    )
    claims = claimant.run(samples)
    rows = _split(nodes, claims, grid, len(claimant.owners.job_rows()), rules)
    counts = claimant.counts
    counts["node intervals whose parts exceed the node; parts scaled"] = nodes.scaled
    known = float(nodes.covered_s.sum() / (grid.seconds.sum() * len(nodes.names)))
    whole = _merged([replace(rows, interval=part_of[rows.interval])], len(claimant.owners.job_rows()))
    table = _table(whole, nodes, claimant.owners.table(), asked)
    node_j = np.add.reduceat(nodes.total, np.flatnonzero(np.diff(part_of, prepend=-1)), axis=1)
    return Attribution(table, node_j, nodes.names, asked, known, counts, claimant.hours, devices)


# Energy by node -----------------------------------------------------------------------------------------------------------------------


def _nodes(devices: DeviceEnergy, grid: Grid, spans: JobSpans) -> _Nodes:
    table = devices.devices
    places = [place_of(node, device) for node, device in zip(table["node"], table["device"], strict=True)]
    kind = np.array([place.kind for place in places], dtype=object)
    below = np.isin(kind, ["gpu", "mig", "cpu", "memory", "node", "psu", "psys"]) & (table["node"] != "").to_numpy(dtype=bool)
    names = np.unique(table["node"][below].astype(str).to_numpy())
    if not len(names):
        raise InputError("no power of any node in this time", where="samples", remedy="check start and end, and what was ingested")
    node = np.searchsorted(names, table["node"].astype(str).to_numpy())
    node[~below] = 0
    site = np.full(len(names), "", dtype=object)
    site[node[below]] = table["site"].astype(str).to_numpy()[below]
    own, own_s = node_readings(devices, kind, node, len(names))
    gpu, gpu_s, board_rows = _board_energy(devices, kind, places, below)
    cpu, cpu_s = np.zeros_like(own), np.zeros_like(own)
    for row in np.flatnonzero(below & np.isin(kind, ["cpu", "memory"])):
        cpu[node[row]] += devices.energy_j[row]
        cpu_s[node[row]] = np.maximum(cpu_s[node[row]], devices.covered_s[row])
    at = node[board_rows]
    seconds = grid.seconds
    # What a part used while the node was not read: taken as even over the interval.
    inside = [
        np.minimum(1.0, np.divide(own_s[of], s, out=np.ones_like(s), where=s > EPSILON_S)) for of, s in ((at, gpu_s), (slice(None), cpu_s))
    ]
    gpu_in, cpu_in = gpu * inside[0], cpu * inside[1]
    parts = cpu_in.copy()
    np.add.at(parts, at, gpu_in)
    scale = np.where(parts > own, np.divide(own, parts, out=np.ones_like(own), where=parts > 0), 1.0)
    scaled = int(((scale < 1 - 1e-9) & (own_s > EPSILON_S)).sum())
    rest = np.maximum(own - parts * scale, 0.0)
    gpu, cpu = gpu_in * scale[at] + (gpu - gpu_in), cpu_in * scale + (cpu - cpu_in)
    total = cpu + rest
    np.add.at(total, at, gpu)
    parts_s = cpu_s.copy()
    np.maximum.at(parts_s, at, gpu_s)
    covered = np.where((own_s > 0).any(axis=1)[:, None], own_s, parts_s)
    watts = np.divide(gpu, gpu_s, out=np.full_like(gpu, np.nan), where=gpu_s > 0.1 * seconds)
    pool = table["pool"].astype(str).to_numpy()[board_rows]
    device = table["device"].astype(str).to_numpy()[board_rows]
    boards = Boards(at, _parents(device), pool, watts, _low_watts(watts, pool), names)
    pool_of = dict(zip(table["node"], table["pool"], strict=True))
    boards, unread = _with_unread(boards, {n: str(pool_of[names[n]]) for n in np.setdiff1d(np.arange(len(names)), at).tolist()}, spans)
    gpu, gpu_s = (np.vstack([values, np.zeros((unread, len(grid)))]) for values in (gpu, gpu_s))
    return _Nodes(names, site, boards, gpu, gpu_s, cpu, cpu_s, rest, own_s, covered, total, scaled)


def node_readings(devices: DeviceEnergy, kind: np.ndarray, node: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The reading of each whole node, J and covered seconds ``[N, T]``: its own; where it has none the sum of its supplies; then psys.

    Supplies count where all that were ever read cover the same time: one of two is no node.
    """
    shape = (count, devices.energy_j.shape[1])
    joules, covered = np.zeros(shape), np.zeros(shape)
    for wanted in ("node", "psu", "psys"):
        found, found_s = np.zeros(shape), np.full(shape, np.inf)
        for row in np.flatnonzero(kind == wanted):
            found[node[row]] += devices.energy_j[row]
            found_s[node[row]] = np.minimum(found_s[node[row]], devices.covered_s[row])
            if wanted == "psu":
                found[node[row]] = np.where(found_s[node[row]] > EPSILON_S, found[node[row]], 0.0)
        found_s[np.isinf(found_s)] = 0.0
        better = found_s > covered + EPSILON_S
        joules, covered = np.where(better, found, joules), np.where(better, found_s, covered)
    return joules, covered


def _board_energy(devices: DeviceEnergy, kind: np.ndarray, places: list, below: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """J and seconds of each board ``[D, T]`` and the device row that stands for it.

    Slices lie within their board. Where only slices report, they are summed, unless all read the same: then each repeats the board's watts
    (as DCGM exporters do), and one counts.
    """
    rows = np.flatnonzero(below & (kind == "gpu"))
    energy, seconds = devices.energy_j[rows], devices.covered_s[rows]
    own = set(zip(devices.devices["node"].iloc[rows], devices.devices["device"].iloc[rows], strict=True))
    slices: dict[tuple[str, str], list[int]] = {}
    for row in np.flatnonzero(below & (kind == "mig")):
        key = (devices.devices["node"].iloc[row], places[row].parent)
        if key not in own:
            slices.setdefault(key, []).append(int(row))
    for members in slices.values():
        parts, covered = devices.energy_j[members], devices.covered_s[members].min(axis=0)
        same = len(members) > 1 and np.allclose(parts, parts[0], rtol=1e-6, atol=1e-6)
        total = parts[0] if same else np.where(covered > EPSILON_S, parts.sum(axis=0), 0.0)
        energy, seconds = np.vstack([energy, total]), np.vstack([seconds, covered])
        rows = np.append(rows, members[0])
    return energy, seconds, rows


def _with_unread(boards: Boards, pools: dict[int, str], spans: JobSpans) -> tuple[Boards, int]:
    """Boards, and those without any reading of nodes that have none: as many as jobs held at one time. And how many were added."""
    count = {n: int(np.ceil(most_gpus(spans, str(boards.node_names[n])) - 1e-9)) for n in pools}
    node = np.repeat(np.array(list(count), dtype=np.int64), list(count.values()))
    if not len(node):
        return boards, 0
    names = np.array([f"unread{g}" for number in count.values() for g in range(number)], dtype=object)
    pool = np.array([pools[n] for n in node.tolist()], dtype=object)
    blank = np.full((len(node), boards.watts.shape[1]), np.nan)
    added = (np.append(getattr(boards, field), more) for field, more in (("node", node), ("names", names), ("pool", pool)))
    watts, idle_w = np.vstack([boards.watts, blank]), np.append(boards.idle_w, np.zeros(len(node)))
    return Boards(*added, watts, idle_w, boards.node_names), len(node)


def _parents(names: np.ndarray) -> np.ndarray:
    return np.array([str(name).partition("/")[0] for name in names], dtype=object)


def _low_watts(watts: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """First guess of idle watts, by which busy boards are told: the 2nd percentile of a board, at most the median of its pool's."""
    if not watts.size:
        return np.zeros(len(watts))
    some = ~np.isnan(watts).all(axis=1)
    low = np.zeros(len(watts))
    low[some] = np.nanpercentile(watts[some], 2, axis=1)
    for name in np.unique(pool):
        of = pool == name
        low[of] = np.minimum(low[of], np.median(low[of]))
    return low


# The split ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Energy by node, interval, owner, kind and layer; arrays ``[R]``."""

    node: np.ndarray
    interval: np.ndarray
    owner: np.ndarray
    kind: np.ndarray
    layer: np.ndarray
    energy_j: np.ndarray


def _split(nodes: _Nodes, claims: Claims, grid: Grid, owners: int, rules: AttributionRules) -> _Rows:
    N, T = nodes.total.shape
    board_cell = claims.board * T + claims.interval
    parts = _split_layer(
        nodes.gpu, nodes.gpu_s, board_cell, claims.owner, claims.gpu_s, claims.weight, grid.seconds, IDLE, low=nodes.boards.idle_w
    )
    rows = [_Rows(nodes.boards.node[p[0] // T], p[0] % T, p[1], p[2], np.zeros(len(p[0]), dtype=np.int64), p[3]) for p in parts]
    # Held GPU time by node and owner.
    key = (nodes.boards.node[claims.board] * T + claims.interval) * owners + claims.owner
    distinct, inverse = np.unique(key, return_inverse=True)
    held = np.bincount(inverse, claims.gpu_s, minlength=len(distinct))
    cell, owner = distinct // owners, distinct % owners
    size = np.maximum(np.bincount(nodes.boards.node, minlength=N), 1)
    for layer, (joules, covered) in enumerate(((nodes.cpu, nodes.cpu_s), (nodes.rest, nodes.own_s)), start=1):
        if rules.overhead == "kept":
            at = np.flatnonzero(joules.ravel() > 0)
            found = [(at, np.zeros(len(at), dtype=np.int64), np.full(len(at), OVERHEAD), joules.ravel()[at])]
        else:
            found = _split_layer(joules, covered, cell, owner, held / size[cell // T], held, grid.seconds, OVERHEAD)
        rows += [_Rows(p[0] // T, p[0] % T, p[1], p[2], np.full(len(p[0]), layer), p[3]) for p in found]
    return _merged(rows, owners)


def _split_layer(
    joules: np.ndarray,
    covered_s: np.ndarray,
    cell: np.ndarray,
    owner: np.ndarray,
    held_s: np.ndarray,
    weight: np.ndarray,
    seconds: np.ndarray,
    nobody: int,
    low: np.ndarray | None = None,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Split ``joules`` ``[E, T]`` of entities over the owners that held them: (cell, owner, kind, J) arrays.

    Args:
        cell: int64 ``[C]``, entity and interval of each claim.
        held_s: seconds of the whole entity that the claim stands for; those of one cell sum to at most the interval.
        nobody: kind of what is above idle where there is no claim.
        low: watts ``[E]`` to take for idle where no interval was free.
    """
    size = joules.size
    T = joules.shape[1]
    total_held = np.bincount(cell, held_s, minlength=size).reshape(joules.shape)
    idle_w = _idle_watts(joules, covered_s, total_held <= 0, low)
    base = np.minimum(joules, idle_w[:, None] * covered_s)
    active = (joules - base).ravel()
    base = base.ravel()
    total_weight = np.bincount(cell, weight, minlength=size)
    no_weight = total_weight[cell] <= 0
    weight = np.where(no_weight, held_s, weight)
    total_weight = np.where(total_weight <= 0, total_held.ravel(), total_weight)
    share = held_s / seconds[cell % T]
    mine = base[cell] * share + active[cell] * np.divide(
        weight, total_weight[cell], out=np.zeros_like(weight), where=total_weight[cell] > 0
    )
    kind = np.where(owner == NOBODY, UNATTRIBUTED, JOB)
    claimed = total_weight > 0
    left = np.maximum(base - np.bincount(cell, base[cell] * share, minlength=size), 0.0)
    every = np.arange(size)
    none = np.zeros(size, dtype=np.int64)
    found = [(cell, owner, kind, mine), (every, none, np.full(size, IDLE), left)]
    loose = np.where(claimed, 0.0, active)
    return [*found, (every, none, np.full(size, nobody), loose)]


def _idle_watts(joules: np.ndarray, covered_s: np.ndarray, free: np.ndarray, low: np.ndarray | None) -> np.ndarray:
    """Idle watts ``[E]`` of each entity; see the module."""
    watts = np.divide(joules, covered_s, out=np.full(joules.shape, np.nan), where=covered_s > EPSILON_S)
    found = np.zeros(len(watts))
    for row, values in enumerate(watts):
        known = ~np.isnan(values)
        quiet = known & free[row]
        if quiet.sum() >= FEWEST_IDLE:
            found[row] = np.median(values[quiet])
        elif known.any():
            found[row] = np.percentile(values[known], 5) if low is None else min(np.percentile(values[known], 5), low[row])
    return found


def _merged(rows: list[_Rows], owners: int) -> _Rows:
    """Rows of one key as one; rows without energy are left out."""
    node, interval, owner, kind, layer, energy = (
        np.concatenate([getattr(part, name) for part in rows]) for name in ("node", "interval", "owner", "kind", "layer", "energy_j")
    )
    some = energy > 0
    key = (((interval * (node.max(initial=0) + 1) + node) * owners + owner) * len(KINDS) + kind) * len(LAYERS) + layer
    distinct, first, inverse = np.unique(key[some], return_index=True, return_inverse=True)
    joules = np.bincount(inverse, energy[some], minlength=len(distinct))
    return _Rows(*(column[some][first] for column in (node, interval, owner, kind, layer)), joules)


def _table(rows: _Rows, nodes: _Nodes, owners: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    def text(values: np.ndarray, code: np.ndarray) -> pd.Categorical:
        names, place = np.unique(np.asarray(values, dtype=str), return_inverse=True)
        return pd.Categorical.from_codes(place.reshape(-1)[code], categories=names.astype(object))

    return pd.DataFrame(
        {
            "interval_start": grid.starts[rows.interval],
            "interval_end": grid.ends[rows.interval],
            "site": text(nodes.site, rows.node),
            "node": text(nodes.names, rows.node),
            **{name: text(owners[name].to_numpy(), rows.owner) for name in OWNER_COLUMNS},
            "kind": text(np.array(KINDS), rows.kind),
            "energy_j": rows.energy_j,
            "source_layer": text(np.array(LAYERS), rows.layer),
        }
    )[list(ROW_COLUMNS)]
