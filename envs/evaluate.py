"""How policies compare: every policy through the same windows, each run to its end, and paired differences with intervals.

Metrics of one window, over the jobs submitted in it:

| metric | unit | meaning |
|---|---|---|
| ``energy_kwh, cost_usd, carbon_kg`` | | whole sites, PUE included, from second 0 to the end of the last job |
| ``penalty_usd`` | USD | late starts and missed deadlines (docs/simulator.md) |
| ``objective_usd`` | USD | weighted sum of the four above (envs/reward.py), before scaling |
| ``sla_violation_rate`` | 0-1 | jobs that started late, missed their deadline or were rejected, of all submitted; also by class |
| ``mean_wait_s, p95_wait_s`` | s | start - submit of completed jobs |
| ``mean_bounded_slowdown`` | 1 | max(1, (wait + run) / max(run, threshold)), threshold 10 s (Feitelson 2001) |
| ``gpu_utilization`` | 0-1 | GPU-seconds of running jobs, fractions as such / (all GPUs x seconds from 0 to the last end) |
| ``jobs_completed, jobs_rejected, late_starts, missed_deadlines`` | jobs | completed + rejected + withdrawn = submitted, always |
| ``jobs_withdrawn`` | jobs | replicas that were not wanted any more before they found (or, after an outage, found again) a place |
| ``down_node_hours`` | h | node-hours that outages took, from second 0 to the last end |

``gpu_utilization`` is occupancy: a lower power level lengthens a run and so raises it. A window without jobs has zeros and no (NaN) rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from envs.billing import billed_totals
from envs.kernel import run_policy
from envs.outages import down_node_hours
from envs.reward import RewardSpec
from envs.state import EpisodeTotals, Policy
from envs.world import World
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

CONTRACT_METRICS: tuple[str, ...] = (
    "energy_kwh",
    "cost_usd",
    "carbon_kg",
    "sla_violation_rate",
    "mean_wait_s",
    "p95_wait_s",
    "mean_bounded_slowdown",
    "gpu_utilization",
    "jobs_completed",
    "jobs_rejected",
)
CLASS_METRICS: tuple[str, ...] = tuple(f"sla_violation_rate_{name}" for name in WORKLOAD_CLASSES)
METRICS: tuple[str, ...] = (
    *CONTRACT_METRICS,
    "objective_usd",
    "penalty_usd",
    "missed_deadlines",
    "late_starts",
    *CLASS_METRICS,
    "jobs_withdrawn",
    "down_node_hours",
)
BOOTSTRAP_SAMPLES = 2000


def evaluate(
    worlds: World | Mapping[int, World],
    policies: Mapping[str, Policy],
    seeds: Sequence[int] = (0,),
    *,
    reward: RewardSpec | None = None,
    slowdown_threshold_s: float = 10.0,
    progress: bool = False,
    threads: int = 1,
    billed: Mapping[int, World] | None = None,
    observe: Callable[[str, int, World, EpisodeTotals], None] | None = None,
    inspect: Callable[[str, int, World, EpisodeTotals], None] | None = None,
) -> pd.DataFrame:
    """Run every policy through every window of every seed.

    Args:
        worlds: one world for all seeds, or a world for each seed (``cut_windows`` with that seed moves the windows). A policy that draws
            random numbers has a method ``reseed(seed)``, called before each run; any other policy runs once in a world that seeds share.
        policies: by name, as they shall appear in the frame.
        reward: weights of the objective; the default :class:`~envs.reward.RewardSpec` when None.
        progress: show a progress bar on standard error.
        billed: worlds by seed with the same windows, jobs and cluster as ``worlds`` and another grid: policies decide by ``worlds``, and
            energy, cost, carbon and objective are those of the same events on the grid of ``billed`` (:mod:`envs.replay.recompute`).
        observe: called after each run with the policy's name, the seed, the world, and totals with event logs.
        inspect: called likewise with the world and totals that are billed, for whom totals are enough (runs without event logs are faster).

    Returns:
        One row per (policy, window, seed): ``policy, window, seed, window_start, jobs_submitted`` and ``METRICS``.

    Raises:
        InputError: no policy, no seed, or a seed without a world.
    """
    if not policies or not seeds:
        raise InputError(f"{len(policies)} policies and {len(seeds)} seeds", where="evaluate", allowed="at least one of each")
    by_seed = dict.fromkeys(seeds, worlds) if isinstance(worlds, World) else dict(worlds)
    missing = [seed for seed in seeds if seed not in by_seed]
    if missing:
        raise InputError(f"no world for seed {missing[0]}", where="evaluate", allowed=", ".join(map(str, by_seed)))
    spec = reward or RewardSpec()
    frames: list[pd.DataFrame] = []
    with tqdm(total=len(policies) * len(seeds), desc="evaluate", unit="run", disable=not progress, dynamic_ncols=True) as bar:
        for name, policy in policies.items():
            known: dict[int, pd.DataFrame] = {}
            for seed in seeds:
                bar.set_postfix_str(f"{name}, seed {seed}")
                world, reseed = by_seed[seed], getattr(policy, "reseed", None)
                if reseed is not None:
                    reseed(seed)
                if reseed is not None or id(world) not in known:
                    logged = billed is not None or observe is not None
                    totals = run_policy(world, policy, spec, threads=threads, event_log=logged)
                    if observe is not None:
                        observe(name, seed, world, totals)
                    account = world
                    if billed is not None:
                        account, totals = billed[seed], billed_totals(billed[seed], totals, policy, spec)
                    if inspect is not None:
                        inspect(name, seed, account, totals)
                    known[id(world)] = window_metrics(world, totals, spec, slowdown_threshold_s)
                frame = known[id(world)].copy()
                frame.insert(0, "policy", name)
                frame.insert(2, "seed", seed)
                frames.append(frame)
                bar.update()
    return pd.concat(frames, ignore_index=True)


def window_metrics(world: World, totals: EpisodeTotals, reward: RewardSpec, slowdown_threshold_s: float = 10.0) -> pd.DataFrame:
    """The metrics of each window of ``world`` from its totals, one row per window."""
    return pd.DataFrame([_one_window(world, totals, reward, slowdown_threshold_s, m) for m in range(world.n_windows)])


def _one_window(world: World, totals: EpisodeTotals, reward: RewardSpec, threshold_s: float, m: int) -> dict[str, object]:
    n = int(world.jobs.count[m])
    start, end, rejected = (getattr(totals, name)[m, :n] for name in ("job_start_s", "job_end_s", "job_rejected"))
    done = end >= 0
    withdrawn = int(totals.job_withdrawn[m, :n].sum())
    assert int(done.sum()) + int((rejected > 0).sum()) + withdrawn == n, f"window {m} was not run to its end"
    late, missed = totals.job_late_start[m, :n], totals.job_missed_deadline[m, :n]
    violated = late | missed | (rejected > 0)
    wait = (start - world.jobs.submit_s[m, :n])[done].astype(float)
    run = (end - start)[done].astype(float)
    slowdown = np.maximum(1.0, (wait + run) / np.maximum(run, threshold_s))
    span_s = float(totals.end_s[m])
    kwh, usd, kg, penalty = (float(getattr(totals, name)[m].sum()) for name in ("energy_kwh", "cost_usd", "carbon_kg", "penalty_usd"))
    kind = world.jobs.kind[m, :n]
    return {
        "window": m,
        "window_start": world.window_start[m],
        "jobs_submitted": n,
        "energy_kwh": kwh,
        "cost_usd": usd,
        "carbon_kg": kg,
        "sla_violation_rate": _mean(violated),
        "mean_wait_s": _mean(wait),
        "p95_wait_s": float(np.percentile(wait, 95)) if len(wait) else float("nan"),
        "mean_bounded_slowdown": _mean(slowdown),
        "gpu_utilization": float(totals.busy_gpu_s[m]) / (world.cluster.total_gpus * span_s) if span_s > 0 else float("nan"),
        "jobs_completed": int(done.sum()),
        "jobs_rejected": int((rejected > 0).sum()),
        "objective_usd": reward.w_cost * usd
        + reward.w_carbon * reward.carbon_usd_per_kg * kg
        + reward.w_energy * reward.energy_usd_per_kwh * kwh
        + reward.w_sla * penalty,
        "penalty_usd": penalty,
        "missed_deadlines": int(missed.sum()),
        "late_starts": int(late.sum()),
        **{f"sla_violation_rate_{name}": _mean(violated[kind == index]) for index, name in enumerate(WORKLOAD_CLASSES)},
        "jobs_withdrawn": withdrawn,
        "down_node_hours": down_node_hours(world.outages[m], int(span_s)) if world.outages else 0.0,
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean of every metric over windows and seeds, one row per policy in the order of first appearance."""
    return frame.groupby("policy", sort=False)[[*METRICS]].mean()


def paired_difference(
    frame: pd.DataFrame,
    baseline: str = "k8s_default",
    *,
    metrics: Sequence[str] = METRICS,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Difference of every policy to ``baseline`` on the same windows, with a bootstrap interval.

    The unit that is resampled is the window: its seeds are averaged first, since they look at the same part of the trace. The relative
    difference is the ratio of means, resampled likewise. With fewer than two windows there is no interval (NaN). Windows in which a metric
    is undefined for either policy are left out of that metric and ``windows`` says how many remained.

    Args:
        frame: from :func:`evaluate`.
        level: coverage of the interval (percentile bootstrap, Efron and Tibshirani 1993).

    Returns:
        ``policy, baseline, metric, mean, low, high, relative, relative_low, relative_high, windows``; negative = less than the baseline.

    Raises:
        InputError: the baseline is not in the frame.
    """
    names = list(dict.fromkeys(frame["policy"]))
    if baseline not in names:
        raise InputError(f"baseline '{baseline}' was not evaluated", where="paired difference", allowed=", ".join(names))
    by_window = frame.groupby(["policy", "window"])[list(metrics)].mean()
    rows = []
    for name in names:
        if name == baseline:
            continue
        for metric in metrics:
            pair = pd.concat([by_window.loc[name, metric], by_window.loc[baseline, metric]], axis=1, keys=["policy", "baseline"]).dropna()
            values = _bootstrap(pair["policy"].to_numpy(), pair["baseline"].to_numpy(), samples, seed, level)
            rows.append({"policy": name, "baseline": baseline, "metric": metric, **values, "windows": len(pair)})
    columns = ["policy", "baseline", "metric", "mean", "low", "high", "relative", "relative_low", "relative_high", "windows"]
    return pd.DataFrame(rows, columns=columns)


def _bootstrap(policy: np.ndarray, baseline: np.ndarray, samples: int, seed: int, level: float) -> dict[str, float]:
    """Mean difference and relative difference of paired values ``[W]`` with percentile intervals."""
    result = dict.fromkeys(("mean", "low", "high", "relative", "relative_low", "relative_high"), float("nan"))
    if len(policy) == 0:
        return result
    difference, reference = policy - baseline, float(baseline.mean())
    result["mean"] = float(difference.mean())
    result["relative"] = result["mean"] / reference if reference != 0 else float("nan")
    if len(policy) < 2:
        return result
    draws = np.random.default_rng(seed).integers(0, len(policy), (samples, len(policy)))
    tail = 100 * (1 - level) / 2
    means, references = difference[draws].mean(axis=1), baseline[draws].mean(axis=1)
    result["low"], result["high"] = (float(v) for v in np.percentile(means, [tail, 100 - tail]))
    if (references != 0).all():
        relative = np.percentile(means / references, [tail, 100 - tail])
        result["relative_low"], result["relative_high"] = float(relative[0]), float(relative[1])
    return result
