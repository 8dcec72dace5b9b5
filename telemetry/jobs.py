"""Canonical jobs from rows of any export: one place for GPU names, work classes, completion and checks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from telemetry.classes import WORKLOAD_CLASSES
from telemetry.quality import QualityReport
from telemetry.schema import JOB_COLUMNS, JOB_NUMBERS, JOB_TEXT, JOB_TIMES, validate
from telemetry.times import utc_times


def gpu_model_name(text: str) -> str | None:
    """Short model name: ``NVIDIA-A100-SXM4-80GB``, ``Tesla V100-PCIE`` and ``a100_80gb`` become ``A100``, ``V100``, ``A100``; '' None."""
    tokens = [t for t in re.split(r"[-_ ]+", text.strip()) if t and t.upper() not in ("NVIDIA", "TESLA", "RTX", "GEFORCE", "QUADRO")]
    return tokens[0].upper() if tokens else None


MIG = re.compile(r"(?:^|[^0-9])([1-7])g\.(\d{1,3})gb", re.IGNORECASE)


def mig_share(profile: str) -> float | None:
    """Share of a GPU that a MIG profile is (``1g.5gb``, ``mig-3g.40gb``, ``a100_1g.5gb``); None when it is none.

    An A30 (1g.6gb, 2g.12gb, 4g.24gb) has four compute slices, the others seven (NVIDIA, "Supported MIG profiles").
    """
    match = MIG.search(profile)
    if match is None:
        return None
    slices, gib = int(match.group(1)), int(match.group(2))
    return slices / (4 if gib == 6 * slices else 7)


def number(text: Any) -> float | None:
    """A finite number of at least 0, or None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if 0 <= value < float("inf") else None


def flag(text: Any) -> bool | None:
    """``1/0``, ``true/false``, ``yes/no`` as a bool, anything else None."""
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(str(text).strip().lower())


def jobs_frame(rows: Sequence[dict[str, Any]], source: str, quality: QualityReport, *, where: str) -> pd.DataFrame:
    """The canonical jobs of an export.

    Args:
        rows: one dict per job with canonical keys; times as ISO text, absent keys = unknown.

    Rows without ``submit_time`` or that end before they start are ``unparseable``; the last of several rows with one ``job_id`` wins
    (``duplicate``); an optional time that is none is ``unparseable`` and left blank. Sorted by submit time and job id.
    """
    frame = pd.DataFrame(rows, columns=list(JOB_COLUMNS))
    quality.saw(source, points=len(frame) + sum(quality.total(source).values()))
    for name in JOB_TIMES:
        frame[name], wrong = utc_times(frame[name].where(frame[name].notna(), None).tolist())
        if name != "submit_time":
            quality.add(source, "unparseable", int(wrong.sum()))
    for name in JOB_NUMBERS:
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    for name in JOB_TEXT:
        frame[name] = frame[name].astype(object).where(frame[name].notna() & (frame[name] != ""), None)
    frame["preemptible"] = frame["preemptible"].astype("boolean")
    frame["source"] = source
    unknown = frame["workload_class"].notna() & ~frame["workload_class"].isin(WORKLOAD_CLASSES)
    quality.add(source, "unparseable", int(unknown.sum()))
    frame.loc[unknown, "workload_class"] = None
    wrong = frame["submit_time"].isna() | (frame["end_time"] < frame["start_time"]) | (frame["start_time"] < frame["submit_time"])
    quality.add(source, "unparseable", int(wrong.sum()))
    frame = frame[~wrong]
    again = frame["job_id"].duplicated(keep="last")
    quality.add(source, "duplicate", int(again.sum()))
    frame = frame[~again].sort_values(["submit_time", "job_id"], kind="stable", ignore_index=True)
    return validate("jobs", frame, where=where)
