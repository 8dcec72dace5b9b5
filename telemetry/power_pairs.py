"""Watts and utilisation of the same device at the same time, from the lake's samples: what power curves are fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from telemetry.series import SEPARATOR

POWER, UTILIZATION, LIMIT = "hw.power", "hw.gpu.utilization", "hw.power.limit"
PAIR_COLUMNS = ("time", "device", "node", "model", "power_w", "utilization", "limit_w", "kind", "held")
UNCLASSED_PODS = ("", "slurm-worker")  # a daemon's pod holds every GPU, whatever runs


@dataclass(frozen=True)
class Pairs:
    """Paired readings, and what was left out.

    Attributes:
        table: `PAIR_COLUMNS`, sorted by device and time; ``limit_w`` NaN where no limit is known, ``kind`` '' where no job is known,
            ``held`` whether a pod is named.
        dropped: why -> how many power readings of devices have no pair.
    """

    table: pd.DataFrame
    dropped: Mapping[str, int]


def pair_samples(samples: pd.DataFrame, models: Mapping[str, str], jobs: pd.DataFrame | None = None) -> Pairs:
    """Join watts, utilisation and limits of devices; each is taken at the time of the power reading, within half a usual step.

    Args:
        samples: the canonical table (at least its device metrics).
        models: GPU model by node.
        jobs: the canonical table; a pod is a job's when its name is the job's, or the job's, '-' and one more part.
    """
    samples = samples[samples["device"].astype(str) != ""]
    key = samples["node"].astype(str) + SEPARATOR + samples["device"].astype(str)
    samples = samples.assign(key=key, metric=samples["metric"].astype(str), node=samples["node"].astype(str))
    power = _of(samples, POWER, "power_w", keep=["node", "pod_uid"])
    dropped = {"no utilisation of the device": 0, "no utilisation at the time": 0, "GPU model not known": 0}
    unknown = ~power["node"].isin([node for node, model in models.items() if model])
    dropped["GPU model not known"] = int(unknown.sum())
    power = power[~unknown]
    use = _of(samples, UTILIZATION, "utilization")
    without = ~power["key"].isin(use["key"].unique())
    dropped["no utilisation of the device"] = int(without.sum())
    power = power[~without]
    table = _nearest(power, use, "utilization")
    late = table["utilization"].isna()
    dropped["no utilisation at the time"] = int(late.sum())
    table = table[~late]
    limits = _of(samples, LIMIT, "limit_w")
    if len(limits):
        table = pd.merge_asof(table.sort_values("time", kind="stable"), limits.sort_values("time", kind="stable"), on="time", by="key")
    else:
        table = table.assign(limit_w=np.nan)
    pods = table["pod_uid"].astype(str)
    table = table.assign(
        device=table["key"].str.replace(SEPARATOR, "/"),
        model=table["node"].map(dict(models)),
        kind=kinds_of(pods, jobs),
        held=~pods.str.startswith(UNCLASSED_PODS[1]) & (pods != ""),
    )
    table = table.sort_values(["device", "time"], kind="stable", ignore_index=True)
    return Pairs(table[list(PAIR_COLUMNS)], {why: count for why, count in dropped.items() if count})


def _of(samples: pd.DataFrame, metric: str, name: str, keep: list[str] | None = None) -> pd.DataFrame:
    rows = samples.loc[samples["metric"] == metric, ["time", "key", "value", *(keep or [])]]
    return rows.drop_duplicates(["key", "time"], keep="last").rename(columns={"value": name})


def _nearest(left: pd.DataFrame, right: pd.DataFrame, name: str) -> pd.DataFrame:
    """``left`` with ``name`` of ``right`` nearest in time for the same key, at most half the usual step away; else NaN."""
    if left.empty or right.empty:
        return left.assign(**{name: np.nan})
    steps = right.sort_values("time", kind="stable").groupby("key", sort=False)["time"].diff()
    step = steps[steps > pd.Timedelta(0)].median()
    tolerance = step / 2 if pd.notna(step) else pd.Timedelta(seconds=30)
    ordered = [frame.sort_values("time", kind="stable") for frame in (left, right[["time", "key", name]])]
    return pd.merge_asof(*ordered, on="time", by="key", direction="nearest", tolerance=tolerance)


def kinds_of(pods: pd.Series, jobs: pd.DataFrame | None) -> np.ndarray:
    """Workload class of each pod's job, '' where there is none or it has no class, object ``[N]``."""
    if jobs is None or jobs.empty:
        return np.full(len(pods), "", dtype=object)
    classes = {str(job): kind for job, kind in zip(jobs["job_id"], jobs["workload_class"], strict=True) if isinstance(kind, str)}
    names = pd.Series(pods.unique())
    known = names.map(classes).fillna(names.str.rpartition("-")[0].map(classes)).fillna("")
    return pods.map(dict(zip(names, known, strict=True))).to_numpy(dtype=object)


def node_pairs(samples: pd.DataFrame) -> pd.DataFrame:
    """A node's own meter beside the sum of its GPUs' watts: ``time, node, node_w, gpu_w, gpus`` and each device's watts as ``d0 ...``.

    Rows where every GPU of the node was read within half a usual step of the meter.
    """
    power = samples[samples["metric"].astype(str) == POWER]
    power = power.assign(node=power["node"].astype(str), device=power["device"].astype(str))
    meters = power[power["device"] == ""][["time", "node", "value"]].drop_duplicates(["node", "time"], keep="last")
    parts = []
    for node, meter in meters.groupby("node", sort=True):
        boards = power[(power["node"] == node) & (power["device"] != "")]
        if boards.empty:
            continue
        wide = boards.pivot_table(index="time", columns="device", values="value", aggfunc="last").sort_index()
        step = pd.Series(wide.index).diff().median()
        wide.columns = [f"d{i}" for i in range(wide.shape[1])]
        joined = pd.merge_asof(
            meter.sort_values("time").rename(columns={"value": "node_w"}),
            wide.dropna().reset_index(),
            on="time",
            direction="nearest",
            tolerance=(step if pd.notna(step) else pd.Timedelta(seconds=60)) / 2,
        ).dropna()
        parts.append(joined.assign(gpu_w=joined[list(wide.columns)].sum(axis=1), gpus=wide.shape[1]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["time", "node", "node_w", "gpu_w", "gpus"])
