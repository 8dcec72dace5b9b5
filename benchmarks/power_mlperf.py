"""Power forecasts of measured training runs: MLPerf Training v4.0 node meters (``benchmarks.mlperf_logs``), 10 s means, 3 minutes ahead.

Runs are walked in order of time; for each, everything is learned on runs that had *ended before it began*, and origins lie 80 s apart
within it. The load is the share of active power that a phase asks for: 0 before and after, the start-up's share while a run starts, 1 in
the timed part. Its forecast knows what a scheduler knows: which benchmark runs, in which phase it is and for how long, and how long the
phases of earlier runs of that benchmark (else of all runs) lasted; never when this run will end. Curves (idle and active watts) are fitted
on those earlier runs (``envs.power.runs``), as is how watts follow them.

Logs that are byte copies of another node's are left out; a site is the sum of the run's measured nodes. A run's nodes are series ``n0`` to
``n7``, and a run's site belongs to its number of nodes, so that errors of earlier runs tell how nodes move together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from benchmarks.mlperf_logs import read_runs
from benchmarks.power_scores import Q, ratios_by_level, score_levels
from envs.power.runs import RunLog, idle_node_w, mean_active_w, mean_startup_w
from models.base import QUANTILES
from models.catalog import make_forecaster
from models.hierarchy import Reconciler
from models.intervals import NORMAL_SCORES
from models.member import HISTORY
from models.power import PowerCurve, PowerModel, Response, conditional_shares
from models.series import seasonal_scale

STEP_S, HORIZON, STRIDE, FIRST = 10, 18, 8, 6
FREQ = f"{STEP_S}s"
SEASON = 30  # no season is known; five minutes stand for one in the members that want it
TRAIN_SHARE = 0.35
REFIT_RUNS = 10
RECENT_RUNS = 25
DURATION_SPREAD = 0.03  # smallest relative doubt about a phase that is only known from earlier runs
NAIVES = ("persistence", "seasonal_naive", "empirical_persistence")
NODE_FLOOR_SHARE, NODE_CAP_W = 0.5, 10_200.0  # H100 HGX servers: power supplies are rated for 10.2 kW


@dataclass(frozen=True)
class GriddedRun:
    """A run in bins of ``STEP_S``: ``watts [nodes, T]`` of its measured nodes, and its times as seconds from the first bin's begin."""

    log: RunLog
    begin: pd.Timestamp
    watts: np.ndarray
    init_s: float
    start_s: float
    stop_s: float

    @property
    def end(self) -> pd.Timestamp:
        return self.begin + pd.Timedelta(seconds=STEP_S * self.watts.shape[1])

    def load(self, startup: float) -> np.ndarray:
        """Mean load of each bin ``[T]``: ``startup`` while it starts, 1 in the timed part."""
        edges = np.arange(self.watts.shape[1] + 1) * float(STEP_S)
        return load_of(edges, self.init_s, self.start_s, self.stop_s, startup)

    def frame(self) -> pd.DataFrame:
        """``unique_id, ds, y`` of nodes and site."""
        names = [f"power/node/n{k}" for k in range(len(self.watts))] + [f"power/site/{len(self.watts)}-nodes"]
        values = np.vstack([self.watts, self.watts.sum(axis=0)])
        ends = self.begin + pd.to_timedelta((1 + np.arange(values.shape[1])) * STEP_S, unit="s")
        return pd.DataFrame(
            {"unique_id": np.repeat(names, values.shape[1]), "ds": np.tile(ends.to_numpy(), len(names)), "y": values.reshape(-1)}
        )


def load_of(edges: np.ndarray, init_s: Any, start_s: Any, stop_s: Any, startup: float) -> np.ndarray:
    """Mean load between ``edges [..., T + 1]`` in s, for phases that begin and end at the given seconds (broadcast)."""

    def held(begin: Any, end: Any) -> np.ndarray:
        return np.clip(np.minimum(edges[..., 1:], end) - np.maximum(edges[..., :-1], begin), 0.0, STEP_S) / STEP_S

    return startup * held(init_s, start_s) + held(start_s, stop_s)


def gridded(run: RunLog) -> GriddedRun:
    """Mean watts per bin by the trapezoid rule over the time that all nodes cover."""
    logs = [log for log in run.nodes if not log.copy_of]
    begin = np.ceil(max(log.time_s[0] for log in logs))
    count = int((min(log.time_s[-1] for log in logs) - begin) // STEP_S)
    edges = begin + STEP_S * np.arange(count + 1)
    watts = []
    for log in logs:
        energy = np.concatenate([[0.0], np.cumsum(np.diff(log.time_s) * (log.watts[1:] + log.watts[:-1]) / 2)])
        times = np.union1d(log.time_s, edges)
        level = np.interp(times, log.time_s, log.watts)
        energy = np.concatenate([[0.0], np.cumsum(np.diff(times) * (level[1:] + level[:-1]) / 2)])
        watts.append(np.diff(np.interp(edges, times, energy)) / STEP_S)
    stamp = pd.Timestamp(begin, unit="s").floor("s")
    return GriddedRun(run, stamp, np.array(watts), run.init_start_s - begin, run.run_start_s - begin, run.run_stop_s - begin)


def load_quantiles(run: GriddedRun, at: int, past: Sequence[GriddedRun], startup: float) -> np.ndarray:
    """Quantiles ``[H, Q]`` of the load after bin ``at``, from the phases of earlier runs; only phase changes up to then are looked at."""
    now = STEP_S * (at + 1.0)
    edges = now + STEP_S * np.arange(HORIZON + 1)
    same = [p for p in past if (p.log.benchmark, p.log.system) == (run.log.benchmark, run.log.system)] or list(past)
    doubt = np.exp(DURATION_SPREAD * NORMAL_SCORES)[None, :]  # [1, Q]
    timed = (np.array([p.stop_s - p.start_s for p in same])[:, None] * doubt).ravel()
    starting = (np.array([p.start_s - p.init_s for p in same])[:, None] * doubt).ravel()
    never = np.inf
    if now >= run.stop_s:
        times = [(run.init_s, run.start_s, run.stop_s)]
    elif now >= run.start_s:
        left = timed[timed > now - run.start_s]
        times = [(run.init_s, run.start_s, run.start_s + d) for d in left] or [(run.init_s, run.start_s, never)]
    elif now >= run.init_s:
        pairs = [(s, d) for s, d in zip(starting, timed, strict=True) if s > now - run.init_s]
        times = [(run.init_s, run.init_s + s, run.init_s + s + d) for s, d in pairs] or [(run.init_s, never, never)]
    else:
        times = [(never, never, never)]  # nothing is known of a start to come
    init, start, stop = (np.array(values)[:, None] for values in zip(*times, strict=True))
    loads = load_of(edges[None, :], init, start, stop, startup)  # [paths, H]
    return np.quantile(loads, QUANTILES, axis=0).T


def response_of(past: Sequence[GriddedRun], curve: PowerCurve, startup: float) -> Response:
    """How node watts followed the curve in earlier runs, laid end to end with gaps between them."""
    watts, drawn = [], []
    for run in past:
        for node in run.watts:
            watts += [node, np.full(HORIZON, np.nan)]
            drawn += [curve.watts(run.load(startup)), np.full(HORIZON, np.nan)]
    return Response.fit(np.concatenate(watts), np.concatenate(drawn), HORIZON)


class _Walk:
    """Forecasts of all runs in order of time; ``done`` holds, by forecast, the windows of runs that have ended."""

    def __init__(self, runs: Sequence[GriddedRun], member: str, folder: Path) -> None:
        self.runs, self.member = runs, member
        self.folder = folder
        self.fitted_at: dict[str, int] = {}
        self.done: dict[str, list[pd.DataFrame]] = {}

    def past_of(self, number: int) -> list[GriddedRun]:
        return [run for run in self.runs[:number] if run.end < self.runs[number].begin]

    def direct(self, name: str, number: int, origins: Sequence[int]) -> pd.DataFrame:
        """Direct forecasts of one run; a member that learns across series has been fitted on runs that ended before it began."""
        run, frame, parts = self.runs[number], self.runs[number].frame(), []
        ends = run.begin + pd.to_timedelta((1 + np.array(origins)) * STEP_S, unit="s")
        model = None if name in NAIVES else self._learned(name, number, frame[frame["ds"] <= ends[0]])
        for k, end in enumerate(ends):
            if model is None:
                naive = make_forecaster(name, freq=FREQ, horizon=HORIZON, season_length=SEASON)
                forecast = naive.fit(frame[frame["ds"] <= end]).predict()
            else:
                forecast = model.update(frame[(frame["ds"] <= end) & (frame["ds"] > ends[max(k - 1, 0)])]).predict()
            parts.append(forecast.assign(origin=number * 1000 + k))
        out = pd.concat(parts, ignore_index=True).merge(frame, on=["unique_id", "ds"])
        out["step"] = ((out["ds"] - out["issued_at"]).dt.total_seconds() // STEP_S).astype(int)
        return out

    def _learned(self, name: str, number: int, known: pd.DataFrame) -> Any:
        """A member with parameters of earlier runs and the history of this run alone: its saved folder with another history in it."""
        if name not in self.fitted_at or number - self.fitted_at[name] >= REFIT_RUNS:
            past = self.past_of(number)[-3 * RECENT_RUNS :]
            frames = [p.frame().assign(unique_id=lambda f, k=k: f["unique_id"] + f"#{k}") for k, p in enumerate(past)]
            options = {"threads": 1} if name == "lightgbm" else {}
            member = make_forecaster(name, freq=FREQ, horizon=HORIZON, season_length=SEASON, **options)
            member.fit(pd.concat(frames, ignore_index=True)).save(self.folder / name)
            self.fitted_at[name] = number
        known.assign(ds=known["ds"].astype("datetime64[ns]")).to_parquet(self.folder / name / HISTORY, index=False)
        return type(make_forecaster(name, freq=FREQ, horizon=HORIZON)).load(self.folder / name)

    def model_of(self, number: int, startup: float, curve: PowerCurve) -> PowerModel:
        """The power model of one run, from runs that ended before it began and from their forecasts."""
        run, past = self.runs[number], self.past_of(number)
        ids = list(run.frame()["unique_id"].unique())
        site, count = ids[-1], len(ids) - 1
        response = response_of(past, curve, startup)
        curves = dict.fromkeys(ids[:-1], curve)
        curves[site] = PowerCurve("load", curve.idle_w * count, curve.watts_per_unit * count, 1.0)
        whole = Response(response.gain, response.pull, response.rest * np.sqrt(count))  # nodes' rests taken as independent
        responses = dict.fromkeys(ids[:-1], response) | {site: whole}
        bounds = dict.fromkeys(ids[:-1], (NODE_FLOOR_SHARE * curve.idle_w, NODE_CAP_W))
        bounds[site] = (count * NODE_FLOOR_SHARE * curve.idle_w, count * NODE_CAP_W)
        parents = dict.fromkeys(ids[:-1], site)
        ended = {n for n, other in enumerate(self.runs[:number]) if other.end < run.begin}
        direct, conditional, blended = (self._windows(name, ended) for name in ("direct", "conditional", "blended"))
        shares = conditional_shares(direct, conditional[Q].to_numpy(), HORIZON) if len(direct) else {}
        alike = blended[blended["unique_id"].isin(ids) & blended["origin"].isin(_origins_with(blended, site))] if len(blended) else blended
        reconciler = Reconciler.fit(alike, parents, bounds) if len(alike) else Reconciler(parents, bounds, {})
        return PowerModel(HORIZON, curves, responses, shares, reconciler, bounds)

    def _windows(self, name: str, ended: set[int]) -> pd.DataFrame:
        parts = [part for part in self.done.get(name, []) if int(part["origin"].iloc[0]) // 1000 in ended][-RECENT_RUNS:]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def run(self, number: int) -> None:
        """All forecasts of one run."""
        run, past = self.runs[number], self.past_of(number)
        logs = [p.log for p in past]
        idle_w = idle_node_w(logs, without_startup=True)
        same = [log for log in logs if log.benchmark == run.log.benchmark and log.system == run.log.system]
        same = same or [log for log in logs if log.benchmark == run.log.benchmark] or logs
        active_w, startup_w = mean_active_w(same), mean_startup_w(same) or mean_startup_w(logs) or idle_w
        startup = float(np.clip((startup_w - idle_w) / (active_w - idle_w), 0.0, 1.0))
        curve = PowerCurve("load", idle_w, active_w - idle_w, 1.0)
        origins = list(range(FIRST - 1, run.watts.shape[1] - 1, STRIDE))
        frames = {name: self.direct(name, number, origins) for name in (*NAIVES, self.member)}
        ends = run.begin + pd.to_timedelta((1 + np.arange(run.watts.shape[1])) * STEP_S, unit="s")
        loads = pd.concat([self._load_frame(run, at, past, startup, ends) for at in origins], ignore_index=True)
        history = pd.DataFrame({"unique_id": "load", "ds": ends, "y": run.load(startup)})
        model, direct = self.model_of(number, startup, curve), frames[self.member]
        given = model.conditional(direct, loads, run.frame(), history)
        frames["direct"] = direct
        frames["conditional"] = direct.assign(**dict(zip(Q, given.T, strict=True)))
        frames["blended"] = model.blend(direct, given)
        frames["reconciled"] = model.reconciler.apply(frames["blended"])
        for name, frame in frames.items():
            self.done.setdefault(name, []).append(frame)

    @staticmethod
    def _load_frame(run: GriddedRun, at: int, past: Sequence[GriddedRun], startup: float, ends: pd.DatetimeIndex) -> pd.DataFrame:
        issued = ends[at]
        table = pd.DataFrame(load_quantiles(run, at, past, startup), columns=Q)
        ds = issued + pd.to_timedelta((1 + np.arange(HORIZON)) * STEP_S, unit="s")
        return table.assign(unique_id="load", issued_at=issued, ds=ds)


def _origins_with(frame: pd.DataFrame, uid: str) -> set[int]:
    return set(frame.loc[frame["unique_id"] == uid, "origin"])


def mlperf_case(traces: Path, member: str, share: float = TRAIN_SHARE) -> dict[str, Any]:
    """Scores on measured runs; the first ``share`` of them only teach, and of the rest the first third teaches shares and paths."""
    runs = sorted((gridded(run) for run in read_runs(traces / "c_power").runs), key=lambda run: run.begin)
    first = round(share * len(runs))
    with TemporaryDirectory() as folder:
        walk = _Walk(runs, member, Path(folder))
        for number in tqdm(range(first, len(runs)), desc="mlperf", leave=False):
            walk.run(number)
    cut = first + (len(runs) - first) // 3
    variants = {}
    for name in dict.fromkeys([*NAIVES, member, "conditional", "blended", "reconciled"]):
        frame = pd.concat(walk.done[name], ignore_index=True)
        number = frame["origin"] // 1000
        variants[name] = (frame[number < cut], frame[number >= cut])
    ids = variants[member][1]["unique_id"].unique()
    before = pd.concat([run.frame() for run in runs[:cut]], ignore_index=True)
    watts = before.loc[before["unique_id"].str.startswith("power/node/"), "y"]
    counts = {uid: int(uid.split("/")[2].split("-")[0]) if "/site/" in uid else 1 for uid in ids}
    cap_w, scale = float(watts.quantile(0.05) + watts.quantile(0.95)) / 2, seasonal_scale(watts.to_numpy(), 1)
    caps = {uid: count * cap_w for uid, count in counts.items()}
    scales = {uid: count * scale for uid, count in counts.items()}
    limits = {uid: (0.0, count * NODE_CAP_W) for uid, count in counts.items()}
    settings = {"scales": scales, "caps": caps, "bounds": limits, "horizon": HORIZON}
    scores = {name: score_levels(*pair, **settings) for name, pair in variants.items()}
    naive = min(("persistence", "seasonal_naive"), key=lambda name: np.mean([row["wql"] for row in scores[name].values()]))
    done = walk.model_of(len(runs) - 1, 0.5, PowerCurve("load", 1000.0, 1000.0, 1.0))
    return {
        "reference": naive,
        "origins": int(variants[member][1]["origin"].nunique()),
        "series": len(ids),
        "test_runs": len(runs) - cut,
        "shares": {level: values.tolist() for level, values in done.shares.items()},
        "scores": scores,
        "ratio_to_reference": {name: ratios_by_level(variants[name][1], variants[naive][1]) for name in (member, "blended", "reconciled")},
    }
