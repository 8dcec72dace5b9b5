"""Readers of public job traces; the conversions themselves are in ``public_jobs`` and ``public_traces``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.errors import InputError
from telemetry.raw import FIRST_S, LAST_S
from telemetry.readers.base import Mapped
from telemetry.readers.public_jobs import eagle_jobs, gaia_jobs, openb_jobs
from telemetry.readers.public_traces import GPUS_PER_SERVER, philly_jobs
from telemetry.readers.trace_file import START, Trace, TraceReader, job_tables, loaded, reference_tables

# A century: what lies beyond is no time of a trace.
MAX_S = 100 * 365.25 * 86_400.0
MANY = 1e9


def _tell(trace: Trace, counts: dict[str, int], words: dict[str, str]) -> None:
    for key, count in counts.items():
        trace.note(words[key], count)


class OpenbReader(TraceReader):
    """Alibaba's GPU pods of 2023, or their node list (which has no time, and becomes reference)."""

    name = "openb"
    reads = "Alibaba cluster-trace-gpu-v2023 pod or node list (.parquet, .csv)"
    options = {  # noqa: RUF012 (read only, as its type says)
        "start": START,
        "duration": "run (deletion - scheduling, the default) or lifetime (deletion - creation)",
    }
    maps = (
        Mapped("name", "jobs.job_id"),
        Mapped("creation_time", "jobs.submit_time", "s"),
        Mapped("scheduled_time", "jobs.start_time", "s"),
        Mapped("deletion_time - scheduled_time", "jobs.duration_s", "s"),
        Mapped("gpu_milli (one GPU), num_gpu", "jobs.gpus", "1/1000, 1"),
        Mapped("cpu_milli", "jobs.cpus", "1/1000"),
        Mapped("memory_mib", "jobs.memory_gib", "MiB"),
        Mapped("qos", "jobs.project"),
        Mapped("sn, cpu_milli, memory_mib, gpu, model", "reference", "as stated", "a row a node and quantity"),
    )
    flaws = "pods alive at or near a snapshot: half were created in the last 16 of 149 days"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("sn"):
            return reference_tables(
                trace, ("sn", "model"), {"cpu_milli": ("cpu", "1/1000"), "memory_mib": ("memory", "MiB"), "gpu": ("gpu", "1")}
            )
        numbers = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "creation_time", "deletion_time", "scheduled_time")
        trace.require("name", "qos", *numbers)
        start = trace.start()
        duration = str(trace.option("duration", "run"))
        left = LAST_S - start.timestamp() - 1
        limits = {name: (0.0, left if name.endswith("_time") else MANY) for name in numbers}
        trace.need_numbers(limits, optional=("scheduled_time",))
        trace.need_texts("name")
        trace.need_texts("qos", blank=True)
        jobs, counts = openb_jobs(trace.frame, start=str(start), duration=duration)
        begun = trace.frame.drop_duplicates("name", keep="last").set_index("name")["scheduled_time"]
        jobs["start_time"] = start + pd.to_timedelta(jobs["job_id"].map(begun), unit="s")
        words = {
            "before_first_day": "pods before the first day",
            "never_scheduled": "pods that were never scheduled, left out",
            "no_duration": "pods without a positive duration, left out",
        }
        _tell(trace, counts, words)
        return job_tables(trace, jobs)


class GaiaReader(TraceReader):
    """Azure virtual machines as sampled for GAIA."""

    name = "gaia"
    reads = "GAIA's azure-100k: arrival_time, length (hours), cpus (.parquet, .csv)"
    options = {"start": START, "first_tile": "true (the default): the first of the repeated spans of 680 h; false: all"}  # noqa: RUF012
    maps = (
        Mapped("row number", "jobs.job_id"),
        Mapped("arrival_time", "jobs.submit_time", "h"),
        Mapped("length", "jobs.duration_s", "h"),
        Mapped("cpus", "jobs.cpus", "1"),
    )
    flaws = "one span of 680 hours laid end to end 12.9 times; no GPU; the unit (hours) follows from the authors' code"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        trace.require("arrival_time", "length", "cpus")
        start = trace.start()
        first = trace.option("first_tile", True)
        if not isinstance(first, bool):
            raise InputError(f"option 'first_tile' is {first!r}", where=trace.where, allowed="true, false")
        left = (LAST_S - start.timestamp() - 1) / 3600
        trace.need_numbers({"arrival_time": (0.0, left), "length": (0.0, MAX_S / 3600), "cpus": (0.0, MANY)})
        jobs, counts = gaia_jobs(trace.frame, start=str(start), first_tile=first)
        _tell(trace, counts, {"repeated_tiles": "machines of the repeated spans, left out"})
        return job_tables(trace, jobs)


class EagleReader(TraceReader):
    """Slurm jobs of NREL's Eagle."""

    name = "eagle"
    reads = "NREL Eagle jobs (.csv, .parquet)"
    maps = (
        Mapped("job_id", "jobs.job_id", "", "later tasks of an array get _1, _2, ..."),
        Mapped("submit_time, start_time, end_time", "jobs.submit_time, start_time, end_time", "no zone: UTC"),
        Mapped("run_time", "jobs.duration_s", "s"),
        Mapped("wallclock_req", "jobs.requested_duration_s", "s"),
        Mapped("nodes_req", "jobs.workers"),
        Mapped("gpus_req, processors_req", "jobs.gpus, cpus", "per node"),
        Mapped("account, user", "jobs.team, project"),
        Mapped("state", "jobs.state"),
    )
    flaws = "two days; the unit of mem_req is not stated, so it is not read"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        numbers = ("wallclock_req", "nodes_req", "processors_req", "gpus_req", "run_time")
        times = ("submit_time", "start_time", "end_time")
        trace.require("job_id", "user", "account", "state", *numbers, *times)
        trace.note("times without a zone, read as UTC", len(trace.frame))
        trace.need_numbers({name: (0.0, MAX_S if name in ("wallclock_req", "run_time") else MANY) for name in numbers})
        trace.need_texts("job_id", "state")
        trace.need_texts("user", "account", blank=True)
        stamps = {name: trace.iso(name) for name in times}
        trace.frame = trace.frame.assign(**stamps)
        submit = trace.frame["submit_time"]
        trace.drop(submit.isna() | (submit < _at(FIRST_S)) | (submit >= _at(LAST_S)), "unparseable")
        trace.drop(trace.frame["end_time"] < trace.frame["start_time"], "unparseable")
        jobs, counts = eagle_jobs(trace.frame)
        words = {
            "other_state": "jobs in a state without an end, left out",
            "no_duration": "jobs without a positive run time, left out",
        }
        _tell(trace, counts, words)
        return job_tables(trace, jobs)


class PhillyGavelReader(TraceReader):
    """Philly jobs in Gavel's conversion, or Gavel's measured throughputs (which have no time, and become reference)."""

    name = "philly_gavel"
    reads = "Gavel's traces of Philly with their virtual cluster, or its isolated throughputs (.parquet, .csv)"
    options = {  # noqa: RUF012
        "start": START + " (in every virtual cluster)",
        "throughputs": "file of Gavel's isolated throughputs: jobs get the duration of a V100; without it durations are unknown",
    }
    companions = ("throughputs",)
    maps = (
        Mapped("vc and place in it", "jobs.job_id"),
        Mapped("arrival_time", "jobs.submit_time", "s"),
        Mapped("total_steps / throughput", "jobs.duration_s", "1, 1/s", "of a V100 alone, at that GPU count"),
        Mapped("scale_factor", "jobs.gpus, workers", "1", "gangs of at most 8 GPUs a worker"),
        Mapped("vc", "jobs.team"),
        Mapped("job_type", "jobs.workload, project"),
        Mapped("throughput", "reference throughput", "1/s", "by worker_type, job_type, scale_factor"),
    )
    flaws = "job types and steps are Gavel's random assignment, so run times are not Philly's; arrivals restart at 0 in every cluster"

    def tables(self, trace: Trace) -> dict[str, pd.DataFrame]:
        if trace.has("worker_type"):
            return reference_tables(trace, ("worker_type", "job_type", "scale_factor"), {"throughput": ("throughput", "1/s")})
        trace.require("vc", "job_type", "total_steps", "arrival_time", "scale_factor", also=("num_steps_arg", "needs_data_dir"))
        start = trace.start()
        left = LAST_S - start.timestamp() - 1
        trace.need_numbers({"total_steps": (0.0, 1e15), "arrival_time": (0.0, left), "scale_factor": (1.0, 1e6)})
        trace.drop(trace.frame["scale_factor"] % 1 != 0, "unparseable")
        trace.need_texts("vc", "job_type")
        trace.frame["scale_factor"] = trace.frame["scale_factor"].astype(np.int64)
        given = trace.option("throughputs")
        known = given is not None
        table = self._throughputs(trace, Path(str(given))) if known else self._unknown(trace.frame)
        jobs, counts = philly_jobs(trace.frame, table, start=start, gpus_per_worker=GPUS_PER_SERVER)
        if not known:
            jobs["duration_s"] = np.nan
            trace.note("jobs of unknown duration: give the option 'throughputs'", len(jobs))
            counts = {}
        words = {
            "unknown_job_type": "jobs whose type has no throughput, left out",
            "zero_throughput": "jobs whose throughput is 0, left out",
            "too_long": "jobs that would run too long, left out",
            "smaller_scale_throughput": "jobs with the throughput of fewer GPUs than they asked for",
        }
        _tell(trace, counts, words)
        return job_tables(trace, jobs)

    def _throughputs(self, trace: Trace, path: Path) -> pd.DataFrame:
        other = loaded(path, trace.context, trace.quality)
        other.require("worker_type", "job_type", "scale_factor", "throughput")
        other.need_numbers({"scale_factor": (1.0, 1e6), "throughput": (0.0, 1e12)})
        other.drop(other.frame["scale_factor"] % 1 != 0, "unparseable")
        other.need_texts("worker_type", "job_type")
        return other.frame.astype({"scale_factor": np.int64})

    def _unknown(self, raw: pd.DataFrame) -> pd.DataFrame:
        kinds = raw["job_type"].unique()
        return pd.DataFrame({"worker_type": "v100", "job_type": kinds, "scale_factor": np.int64(1), "throughput": 1.0})


def _at(seconds: int) -> pd.Timestamp:
    return pd.Timestamp(seconds, unit="s", tz="UTC")
