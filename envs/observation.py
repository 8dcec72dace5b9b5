"""The observation: the same few features for every candidate action, then features of the job, the queue and the hour.

Row layout, float32: ``n_candidates x n_candidate_features`` (candidate 0 is hold, candidate 1 + p L + l runs in pool p at level l), then
``n_global_features``. Every value lies within [-10, 10]; a candidate that the mask excludes is all zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from envs import fields as fx
from envs.kernel_accrual import column_of
from envs.kernel_compile import compiled
from envs.state import COST, PENALTY, SLEEPING

LIMIT = 10.0
DAY_S = 86_400
WEEK_S = 7 * DAY_S
SMALLEST_USD = 1e-6

CANDIDATE_FEATURES: tuple[tuple[str, str], ...] = (
    ("valid", "1 when the mask allows the action"),
    ("is_hold", "1 for hold"),
    ("level_fraction", "power limit as a fraction of the board limit; 0 for hold"),
    ("score", "look-ahead score: expected objective above the best allowed action's, relative to it; hold counts its best later start"),
    ("greedy_score", "the same against the best allowed run; 0 for hold"),
    ("energy", "log(1 + expected kWh charged to the job)"),
    ("start_delay", "log(1 + minutes until the expected start)"),
    ("slack", "hours from the expected end to the deadline, signed log(1 + |h|)"),
    ("expected_penalty", "log(1 + expected SLA penalty in USD)"),
    ("runtime", "log(1 + hours of estimated run time)"),
    ("free_share", "free share of the pool's GPUs after placement; 0 for hold"),
    ("free_gpus", "log(1 + free GPUs of the pool); 0 for hold"),
    ("nodes_woken", "log(1 + nodes that the run would wake)"),
    ("asleep_share", "share of the pool's nodes asleep; 0 for hold"),
    ("price", "price now against the mean of the forecast 24 h, relative; for hold of the cheapest site"),
    ("carbon", "carbon intensity likewise; for hold of the cleanest site"),
    ("renewable", "renewable share now; 0 for hold"),
    ("pressure", "log(1 + waiting GPUs / GPUs of the pool); 0 for hold"),
)
GLOBAL_FEATURES: tuple[tuple[str, str], ...] = (
    ("class_training", "1 when the job is of this class"),
    ("class_fine_tuning", "1 when the job is of this class"),
    ("class_batch_inference", "1 when the job is of this class"),
    ("class_realtime_inference", "1 when the job is of this class"),
    ("class_interactive", "1 when the job is of this class"),
    ("gpus", "log(1 + total GPUs of the job)"),
    ("workers", "log(1 + workers)"),
    ("estimate", "log(1 + hours of estimated run time on the reference GPU)"),
    ("latest_start", "hours to the latest start, signed log(1 + |h|)"),
    ("deadline", "hours to the deadline, signed log(1 + |h|)"),
    ("waited", "log(1 + hours since submission)"),
    ("objective", "log10 of the best allowed action's expected objective in USD, sign dropped, at least 1e-6"),
    ("queue_length", "log(1 + waiting jobs)"),
    ("queue_share", "GPUs that waiting jobs ask for as a share of the cluster's, log(1 + x)"),
    ("hour_sin", "time of day, UTC"),
    ("hour_cos", "time of day, UTC"),
    ("week_sin", "time of week, UTC, Monday 0"),
    ("week_cos", "time of week, UTC, Monday 0"),
    ("since_decision", "log(1 + minutes since the last decision)"),
    ("w_cost", "weight of cost in the objective"),
    ("w_carbon", "weight of carbon"),
    ("w_energy", "weight of energy"),
    ("w_sla", "weight of SLA penalties"),
    ("free_share", "free share of all GPUs"),
    ("asleep_share", "share of all nodes asleep"),
)
N_CANDIDATE_FEATURES = len(CANDIDATE_FEATURES)
N_GLOBAL_FEATURES = len(GLOBAL_FEATURES)
_NAMES = [name for name, _ in CANDIDATE_FEATURES]
VALID = _NAMES.index("valid")
SCORE = _NAMES.index("score")
GREEDY_SCORE = _NAMES.index("greedy_score")
FREE_GPUS = _NAMES.index("free_gpus")
NODES_WOKEN = _NAMES.index("nodes_woken")


@dataclass(frozen=True)
class ObservationLayout:
    """Shape and meaning of an observation for P pools and L levels."""

    n_pools: int
    n_levels: int

    @property
    def n_candidates(self) -> int:
        return 1 + self.n_pools * self.n_levels

    @property
    def n_candidate_features(self) -> int:
        return N_CANDIDATE_FEATURES

    @property
    def n_global_features(self) -> int:
        return N_GLOBAL_FEATURES

    @property
    def size(self) -> int:
        """Length of a row."""
        return self.n_candidates * self.n_candidate_features + self.n_global_features

    @property
    def score_index(self) -> int:
        """Candidate feature of the look-ahead score."""
        return SCORE

    @property
    def greedy_index(self) -> int:
        """Candidate feature of the greedy score."""
        return GREEDY_SCORE

    def candidates(self, observation: np.ndarray) -> np.ndarray:
        """View ``[B, A, F]`` of the candidate features of observations ``[B, D]``."""
        split = self.n_candidates * self.n_candidate_features
        return observation[:, :split].reshape(-1, self.n_candidates, self.n_candidate_features)

    def mask(self, observation: np.ndarray) -> np.ndarray:
        """Allowed actions, bool ``[B, A]``."""
        return self.candidates(observation)[..., VALID] > 0.5

    def action_name(self, action: int) -> str:
        """``hold`` or ``run(pool p, level l)``."""
        if action == 0:
            return "hold"
        pool, level = divmod(action - 1, self.n_levels)
        return f"run(pool {pool}, level {level})"

    def describe(self) -> list[tuple[int, str, str]]:
        """Index, name and meaning of every value of a row."""
        rows = []
        for action in range(self.n_candidates):
            for name, meaning in CANDIDATE_FEATURES:
                rows.append((len(rows), f"{self.action_name(action)}.{name}", meaning))
        for name, meaning in GLOBAL_FEATURES:
            rows.append((len(rows), name, meaning))
        return rows


@compiled
def _clipped(value):
    return np.float32(min(max(value, -LIMIT), LIMIT))


@compiled
def _signed_log(hours):
    return math.copysign(math.log1p(abs(hours)), hours)


@compiled
def _above_mean(sums, values, pue, known, day, column):
    """Value (x PUE) now against the mean of the next 24 h by forecast, which is that of the last 24 h known."""
    mean = (sums[known] - sums[known - day]) / day
    return (values[column] * pue[column] - mean) / max(abs(mean), 1e-3)


@compiled
def relative_score(usd, best):
    """Expected objective above the best, relative to it."""
    return _clipped((usd - best) / max(abs(best), SMALLEST_USD))


@compiled
def best_expected(state, b, first):
    """Least expected objective of the allowed actions from ``first`` on."""
    best = np.inf
    for action in range(first, state.action_i.shape[2]):
        if state.action_i[b, fx.MASK, action] and state.action_f[b, fx.EXPECTED_USD, action] < best:
            best = state.action_f[b, fx.EXPECTED_USD, action]
    return best


@compiled
def write_observation(static, jobs, grid, params, state, b, out):
    """Fill ``out`` [D] for the question of environment ``b``, which must be scored; all zeros when it has none."""
    out[:] = 0.0
    if state.env_i[b, fx.ASKING] < 0:
        return
    best = best_expected(state, b, 0)
    best_run = best_expected(state, b, 1)
    levels = static.curve.shape[2]
    _write_expected(static, jobs, state, b, 0, best, out)
    if state.action_i[b, fx.MASK, 0]:
        out[1] = 1.0
    for p in range(static.pool_i.shape[1]):
        for level in range(levels):
            action = 1 + p * levels + level
            if not state.action_i[b, fx.MASK, action]:
                continue
            at = action * N_CANDIDATE_FEATURES
            _write_expected(static, jobs, state, b, action, best, out)
            out[at + 2] = static.level[level]
            out[at + GREEDY_SCORE] = relative_score(state.action_f[b, fx.EXPECTED_USD, action], best_run)
    _write_pools(static, jobs, grid, state, b, out)
    _write_globals(static, jobs, grid, params, state, b, best, out)


@compiled
def _write_expected(static, jobs, state, b, action, best, out):
    if not state.action_i[b, fx.MASK, action]:
        return
    at = action * N_CANDIDATE_FEATURES
    window, job = state.env_i[b, fx.WINDOW], state.env_i[b, fx.ASKING]
    start, end = state.action_i[b, fx.EXPECTED_START_S, action], state.action_i[b, fx.EXPECTED_END_S, action]
    out[at + VALID] = 1.0
    out[at + SCORE] = relative_score(state.action_f[b, fx.EXPECTED_USD, action], best)
    out[at + 5] = _clipped(math.log1p(max(state.action_f[b, fx.EXPECTED_KWH, action], 0.0)))
    out[at + 6] = _clipped(math.log1p((start - state.env_i[b, fx.TIME_S]) / 60.0))
    out[at + 7] = _clipped(_signed_log((jobs.work_i[window, fx.DEADLINE_S, job] - end) / 3600.0))
    out[at + 8] = _clipped(math.log1p(state.action_f[b, fx.EXPECTED_LATE, action]))
    out[at + 9] = _clipped(math.log1p((end - start) / 3600.0))


@compiled
def _write_pools(static, jobs, grid, state, b, out):
    """Features that all levels of a pool share, and the sites' best for hold."""
    window, job = state.env_i[b, fx.WINDOW], state.env_i[b, fx.ASKING]
    levels = static.curve.shape[2]
    milli = jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job]
    column = column_of(grid, window, state.env_i[b, fx.TIME_S])
    day = DAY_S // grid.window_i[window, fx.STEP_S]
    lowest_price, lowest_carbon = LIMIT, LIMIT
    for p in range(static.pool_i.shape[1]):
        site = static.pool_i[fx.POOL_SITE, p]
        pue = grid.values[window, fx.PUE, site]
        price = _above_mean(grid.values[window, fx.CUM_PRICE, site], grid.values[window, fx.PRICE, site], pue, column + 1, day, column)
        carbon = _above_mean(
            grid.values[window, fx.CUM_CARBON, site], grid.values[window, fx.CARBON_KG, site], pue, column + 1, day, column
        )
        lowest_price, lowest_carbon = min(lowest_price, price), min(lowest_carbon, carbon)
        total = static.pool_i[fx.POOL_NODES, p] * static.pool_i[fx.POOL_GPUS, p] * 1000.0
        for level in range(levels):
            action = 1 + p * levels + level
            if not state.action_i[b, fx.MASK, action]:
                continue
            at = action * N_CANDIDATE_FEATURES
            out[at + 10] = _clipped((state.pool_i[b, fx.POOL_FREE, p] - milli) / total)
            out[at + FREE_GPUS] = free_gpus_feature(state, b, p)
            out[at + NODES_WOKEN] = nodes_woken_feature(state, b, p)
            out[at + 13] = state.pool_i[b, fx.STATE_COUNT + SLEEPING, p] / static.pool_i[fx.POOL_NODES, p]
            out[at + 14] = _clipped(price)
            out[at + 15] = _clipped(carbon)
            out[at + 16] = _clipped(grid.values[window, fx.RENEWABLE, site, column])
            out[at + 17] = _clipped(math.log1p(state.env_i[b, fx.WAITING_MILLI] / total))
    if state.action_i[b, fx.MASK, 0]:
        out[14] = _clipped(lowest_price)
        out[15] = _clipped(lowest_carbon)


@compiled
def free_gpus_feature(state, b, p):
    return _clipped(math.log1p(state.pool_i[b, fx.POOL_FREE, p] / 1000.0))


@compiled
def nodes_woken_feature(state, b, p):
    return _clipped(math.log1p(state.pool_i[b, fx.NODES_WOKEN, p]))


@compiled
def _write_globals(static, jobs, grid, params, state, b, best, out):
    at = state.action_i.shape[2] * N_CANDIDATE_FEATURES
    window, job, now = state.env_i[b, fx.WINDOW], state.env_i[b, fx.ASKING], state.env_i[b, fx.TIME_S]
    out[at + jobs.work_i[window, fx.KIND, job]] = 1.0
    out[at + 5] = _clipped(math.log1p(jobs.work_i[window, fx.WORKERS, job] * jobs.work_i[window, fx.GPU_MILLI, job] / 1000.0))
    out[at + 6] = _clipped(math.log1p(jobs.work_i[window, fx.WORKERS, job]))
    out[at + 7] = _clipped(math.log1p(jobs.work_i[window, fx.ESTIMATE_S, job] / 3600.0))
    out[at + 8] = _clipped(_signed_log((jobs.work_i[window, fx.LATEST_START_S, job] - now) / 3600.0))
    out[at + 9] = _clipped(_signed_log((jobs.work_i[window, fx.DEADLINE_S, job] - now) / 3600.0))
    out[at + 10] = _clipped(math.log1p((now - jobs.work_i[window, fx.SUBMIT_S, job]) / 3600.0))
    out[at + 11] = _clipped(math.log10(max(abs(best), SMALLEST_USD)))
    free, asleep = 0, 0
    for p in range(static.pool_i.shape[1]):
        free += state.pool_i[b, fx.POOL_FREE, p]
        asleep += state.pool_i[b, fx.STATE_COUNT + SLEEPING, p]
    total = state.gpu_free.shape[1] * 1000.0
    out[at + 12] = _clipped(math.log1p(state.env_i[b, fx.N_WAITING]))
    out[at + 13] = _clipped(math.log1p(state.env_i[b, fx.WAITING_MILLI] / total))
    moment = grid.window_i[window, fx.WEEK_S] + now
    out[at + 14] = math.sin(2.0 * math.pi * (moment % DAY_S) / DAY_S)
    out[at + 15] = math.cos(2.0 * math.pi * (moment % DAY_S) / DAY_S)
    out[at + 16] = math.sin(2.0 * math.pi * (moment % WEEK_S) / WEEK_S)
    out[at + 17] = math.cos(2.0 * math.pi * (moment % WEEK_S) / WEEK_S)
    out[at + 18] = _clipped(math.log1p((now - state.env_i[b, fx.LAST_DECISION_S]) / 60.0))
    for weight in range(COST, PENALTY + 1):
        out[at + 19 + weight] = _clipped(params.floats[b, fx.WEIGHTS + weight])
    out[at + 23] = free / total
    out[at + 24] = asleep / static.node_i.shape[1]
