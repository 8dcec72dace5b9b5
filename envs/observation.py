"""The observation: the same few features for every candidate action, then features of the job, the queue and the hour.

Row layout, float32: ``n_candidates x n_candidate_features`` (candidate 0 is hold, candidate 1 + p L + l runs in pool p at level l), then
``n_global_features``. Every value lies within [-10, 10]; a candidate that the mask excludes is all zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from envs import fields as fx
from envs.kernel_compile import compiled
from envs.kernel_node_rules import preferred_pool
from envs.kernel_power import grid_row
from envs.kernel_rates import rate_rank
from envs.kernel_scores import remaining_s
from envs.state import DOWN, FGD, SLEEPING

LIMIT = 10.0
DAY_S = 86_400
WEEK_S = 7 * DAY_S
SMALLEST_USD = 1e-6

CANDIDATE_FEATURES: tuple[tuple[str, str], ...] = (
    ("valid", "1 when the mask allows the action"),
    ("is_hold", "1 for hold (pause, in a review)"),
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
    ("is_current", "1 for the place and level that the running job in review has now"),
    ("price", "price now against the mean of the forecast 24 h, relative; for hold of the cheapest site"),
    ("carbon", "carbon intensity likewise; for hold of the cleanest site"),
    ("renewable", "renewable share now; 0 for hold"),
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
    ("down_share", "share of all nodes down"),
    ("in_review", "1 when the job runs and hold would pause it"),
    ("progress", "finished share of the estimated work, as of the last checkpoint or, in a review, of now"),
    ("load", "load of a replica's service now, in units of the reference GPU, log(1 + x); 0 for other jobs"),
    ("rate_rank", "share of the last 24 h in which the objective of a kWh was lower than now, the least of the sites of allowed runs"),
    ("preferred_pool", "(1 + pool of the node that the node rule fgd or pwr_fgd prefers) / pools; 0 under other node rules"),
)
N_CANDIDATE_FEATURES = len(CANDIDATE_FEATURES)
N_GLOBAL_FEATURES = len(GLOBAL_FEATURES)
_NAMES = [name for name, _ in CANDIDATE_FEATURES]
VALID = _NAMES.index("valid")
SCORE = _NAMES.index("score")
GREEDY_SCORE = _NAMES.index("greedy_score")
FREE_GPUS = _NAMES.index("free_gpus")
NODES_WOKEN = _NAMES.index("nodes_woken")
IS_CURRENT = _NAMES.index("is_current")
_GLOBAL_NAMES = [name for name, _ in GLOBAL_FEATURES]
RATE_RANK = _GLOBAL_NAMES.index("rate_rank")
PREFERRED_POOL = _GLOBAL_NAMES.index("preferred_pool")


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
def _above_mean(c, value, sums, site):
    """Value (x PUE) now against the mean of the next 24 h by forecast, which is that of the last 24 h known."""
    column, day = c.i[fx.COLUMN], DAY_S // c.g[fx.STEP_S]
    row = grid_row(c, sums, site) + column + 1
    mean = (c.gf[row] - c.gf[row - day]) / day
    now = c.gf[grid_row(c, value, site) + column] * c.gf[grid_row(c, fx.PUE, site) + column]
    return (now - mean) / max(abs(mean), 1e-3)


@compiled
def relative_score(usd, best):
    """Expected objective above the best, relative to it."""
    return _clipped((usd - best) / max(abs(best), SMALLEST_USD))


@compiled
def best_expected(c, first):
    """Least expected objective of the allowed actions from ``first`` on."""
    best = np.inf
    for action in range(first, c.o[fx.N_ACTIONS]):
        usd = c.f[c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.EXPECTED_USD]
        if c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK] and usd < best:
            best = usd
    return best


@compiled
def write_observation(c, out):
    """Fill ``out`` [D] for the question, which must be scored with detail; all zeros when there is none."""
    for at in range(len(out)):
        out[at] = 0.0
    if c.i[fx.ASKING] < 0:
        return
    best, best_run = best_expected(c, 0), best_expected(c, 1)
    levels = c.o[fx.N_LEVELS]
    _write_pools(c, out)
    if c.i[c.o[fx.I_ACTION] + fx.MASK]:
        _write_expected(c, 0, best, out)
        out[1] = 1.0
    for action in range(1, c.o[fx.N_ACTIONS]):
        if c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.MASK]:
            _write_expected(c, action, best, out)
            at = action * N_CANDIDATE_FEATURES
            out[at + 2] = c.kf[c.o[fx.KF_LEVEL] + (action - 1) % levels]
            out[at + GREEDY_SCORE] = relative_score(c.f[c.o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH + fx.EXPECTED_USD], best_run)
    _write_globals(c, best, out)


@compiled
def _write_expected(c, action, best, out):
    o, i, f = c.o, c.i, c.f
    at = action * N_CANDIDATE_FEATURES
    a, b = o[fx.I_ACTION] + action * fx.ACTION_WIDTH, o[fx.F_ACTION] + action * fx.ACTION_F_WIDTH
    start, end = i[a + fx.EXPECTED_START_S], i[a + fx.EXPECTED_END_S]
    deadline = c.j[o[fx.J_JOB] + i[fx.ASKING] * fx.JOB_CONSTANTS_WIDTH + fx.DEADLINE_S]
    out[at + VALID] = 1.0
    out[at + SCORE] = relative_score(f[b + fx.EXPECTED_USD], best)
    out[at + 5] = _clipped(math.log1p(max(f[b + fx.EXPECTED_KWH], 0.0)))
    if start > i[fx.TIME_S]:
        out[at + 6] = _clipped(math.log1p((start - i[fx.TIME_S]) / 60.0))
    out[at + 7] = _clipped(_signed_log((deadline - end) / 3600.0))
    if f[b + fx.EXPECTED_LATE] > 0.0:
        out[at + 8] = _clipped(math.log1p(f[b + fx.EXPECTED_LATE]))
    out[at + 9] = _clipped(math.log1p((end - start) / 3600.0))


@compiled
def _write_pools(c, out):
    """Features that all levels of a pool share, and the sites' best for hold."""
    o, i = c.o, c.i
    b = o[fx.J_JOB] + i[fx.ASKING] * fx.JOB_CONSTANTS_WIDTH
    a = o[fx.I_JOB] + i[fx.ASKING] * fx.JOB_WIDTH
    levels = o[fx.N_LEVELS]
    lowest_price, lowest_carbon = LIMIT, LIMIT
    for p in range(o[fx.N_POOLS]):
        k = o[fx.K_POOL] + p * fx.POOL_CONSTANTS_WIDTH
        site = c.k[k + fx.POOL_SITE]
        price, carbon = _above_mean(c, fx.PRICE, fx.CUM_PRICE, site), _above_mean(c, fx.CARBON_KG, fx.CUM_CARBON, site)
        lowest_price, lowest_carbon = min(lowest_price, price), min(lowest_carbon, carbon)
        total = c.k[k + fx.POOL_NODES] * c.k[k + fx.POOL_GPUS] * 1000.0
        free = i[o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.POOL_FREE]
        free_gpus = free_gpus_feature(c, p)
        for level in range(levels):
            action = 1 + p * levels + level
            x = o[fx.I_ACTION] + action * fx.ACTION_WIDTH
            if not i[x + fx.MASK]:
                continue
            at = action * N_CANDIDATE_FEATURES
            out[at + 10] = _clipped((free - c.j[b + fx.ASKED_MILLI]) / total)
            out[at + FREE_GPUS] = free_gpus
            out[at + NODES_WOKEN] = nodes_woken_feature(c, action)
            if i[fx.REVIEWING] and p == i[a + fx.POOL] and level == i[a + fx.LEVEL]:
                out[at + IS_CURRENT] = 1.0
            out[at + 14] = _clipped(price)
            out[at + 15] = _clipped(carbon)
            out[at + 16] = _clipped(c.gf[grid_row(c, fx.RENEWABLE, site) + i[fx.COLUMN]])
    if i[o[fx.I_ACTION] + fx.MASK]:
        out[14] = _clipped(lowest_price)
        out[15] = _clipped(lowest_carbon)


@compiled
def free_gpus_feature(c, p):
    return _clipped(math.log1p(c.i[c.o[fx.I_POOL] + p * fx.POOL_WIDTH + fx.POOL_FREE] / 1000.0))


@compiled
def nodes_woken_feature(c, action):
    woken = c.i[c.o[fx.I_ACTION] + action * fx.ACTION_WIDTH + fx.NODES_WOKEN]
    return _clipped(math.log1p(woken)) if woken > 0 else np.float32(0.0)


@compiled
def _write_globals(c, best, out):
    o, i, j = c.o, c.i, c.j
    at = o[fx.N_ACTIONS] * N_CANDIDATE_FEATURES
    job, now = i[fx.ASKING], i[fx.TIME_S]
    b = o[fx.J_JOB] + job * fx.JOB_CONSTANTS_WIDTH
    out[at + j[b + fx.KIND]] = 1.0
    out[at + 5] = _clipped(math.log1p(j[b + fx.ASKED_MILLI] / 1000.0))
    out[at + 6] = _clipped(math.log1p(j[b + fx.WORKERS]))
    out[at + 7] = _clipped(math.log1p(j[b + fx.ESTIMATE_S] / 3600.0))
    out[at + 8] = _clipped(_signed_log((j[b + fx.LATEST_START_S] - now) / 3600.0))
    out[at + 9] = _clipped(_signed_log((j[b + fx.DEADLINE_S] - now) / 3600.0))
    out[at + 10] = _clipped(math.log1p((now - j[b + fx.SUBMIT_S]) / 3600.0))
    out[at + 11] = _clipped(math.log10(max(abs(best), SMALLEST_USD)))
    free, asleep, down = 0, 0, 0
    for p in range(o[fx.N_POOLS]):
        pool = o[fx.I_POOL] + p * fx.POOL_WIDTH
        free += i[pool + fx.POOL_FREE]
        asleep += i[pool + fx.STATE_COUNT + SLEEPING]
        down += i[pool + fx.STATE_COUNT + DOWN]
    total = o[fx.N_GPUS] * 1000.0
    out[at + 12] = _clipped(math.log1p(i[fx.N_WAITING]))
    out[at + 13] = _clipped(math.log1p(i[fx.WAITING_MILLI] / total))
    moment = c.g[fx.WEEK_S] + now
    day, week = 2.0 * math.pi * (moment % DAY_S) / DAY_S, 2.0 * math.pi * (moment % WEEK_S) / WEEK_S
    out[at + 14] = math.sin(day)
    out[at + 15] = math.cos(day)
    out[at + 16] = math.sin(week)
    out[at + 17] = math.cos(week)
    out[at + 18] = _clipped(math.log1p((now - i[fx.LAST_DECISION_S]) / 60.0))
    for weight in range(4):
        out[at + 19 + weight] = _clipped(c.qf[fx.W_COST + weight])
    out[at + 23] = free / total
    out[at + 24] = asleep / o[fx.N_NODES]
    out[at + 25] = down / o[fx.N_NODES]
    out[at + 26] = 1.0 if i[fx.REVIEWING] else 0.0
    out[at + 27] = _clipped(1.0 - remaining_s(c, job) / j[b + fx.ESTIMATE_S]) if j[b + fx.UNTIL_S] < 0 else np.float32(0.0)
    if j[b + fx.UNTIL_S] >= 0:
        load = c.gf[o[fx.GF_LOAD] + j[b + fx.SERVICE] * o[fx.N_COLUMNS] + i[fx.COLUMN]]
        out[at + 28] = _clipped(math.log1p(load))
    out[at + RATE_RANK] = rate_rank(c)
    if c.q[fx.NODE_RULE] >= FGD:
        out[at + PREFERRED_POOL] = (1.0 + preferred_pool(c)) / o[fx.N_POOLS]
